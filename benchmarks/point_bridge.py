"""Point Bridge's policy at the authors' size: latency of acting, and the Trainer's overhead over a bare loop. Prints; asserts nothing.

    OMP_NUM_THREADS=1 python benchmarks/point_bridge.py              # everything
    OMP_NUM_THREADS=1 python benchmarks/point_bridge.py latency      # one part
    python benchmarks/point_bridge.py --real                         # GPU: the same, and SAM 2.1 large that tracks two objects at 720p

Numbers are of the machine as it is: run it when nothing else does. Ratios compare things measured in turn, in one process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from visiongraft.methods.point_bridge.dataset import PolicyDataset, TaskEpisodes, policy_statistics
from visiongraft.methods.point_bridge.episodes import Episode
from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.methods.point_bridge.language import HashedWords
from visiongraft.methods.point_bridge.model import PointBridgeModel, create_model
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.recipe import PointBridgeRecipe
from visiongraft.methods.point_bridge.sam2 import Sam2Tracker
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.training import TrainerConfig, train
from visiongraft.training.order import SeededItems, StepBatches


def episode(seed: int, steps: int = 60, objects: int = 2, points: int = 128) -> Episode:
    rng = np.random.default_rng(seed)
    shapes = {"proprioception": (steps, 10), "robot_points": (steps, 8, 3), "object_points": (steps, objects, points, 3)}
    return Episode(instruction="put the mug on the plate", **{k: rng.random(shape, np.float32) for k, shape in shapes.items()})


def tasks() -> list[TaskEpisodes]:
    return [TaskEpisodes(task="bench/a", episodes=[episode(seed) for seed in range(8)])]


def latency(repeats: int, device: str = "cpu") -> None:
    """Milliseconds of one observation to one chunk, through the policy, against the bare network on ready tensors."""
    seen = episode(9)
    observation = {"instruction": seen.instruction}
    observation |= {name: getattr(seen, name)[0] for name in ("proprioception", "robot_points", "object_points")}
    for size in ("official", "small"):
        model = create_model(size)
        policy = PointBridgePolicy(model, policy_statistics(tasks(), model), PolicyCard(object_counts=(2,))).to(device)
        batch = {name: torch.from_numpy(np.asarray(observation[name]))[None, None] for name in observation if name != "instruction"}
        batch["language"] = torch.from_numpy(HashedWords()([seen.instruction]))
        batch = {name: values.to(device) for name, values in batch.items()}

        @torch.inference_mode()
        def bare(model: PointBridgeModel = model, batch: dict = batch) -> None:
            model(batch)
            settle()

        times: dict[str, list[float]] = {"policy": [], "network": []}
        for number in range(repeats + 3):
            for name, call in (("policy", lambda: policy.act(observation)), ("network", bare)):
                started = time.perf_counter()
                call()
                if number >= 3:  # warm
                    times[name].append(time.perf_counter() - started)
        middle = {name: 1000 * statistics.median(values) for name, values in times.items()}
        worst = 1000 * sorted(times["policy"])[int(0.95 * repeats)]
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{size} ({parameters:.2f} M): {middle['policy']:.2f} ms an action chunk (95 %: {worst:.2f} ms), "
            f"{1000 / middle['policy']:.0f} Hz; {middle['policy'] / middle['network']:.3f}x the bare network; 20 Hz control has 50 ms"
        )


def bare_loop(model: PointBridgeModel, data: PolicyDataset, steps: int, batch_size: int) -> float:
    """The loop as one would write it, with the same samples, optimiser and clipping."""
    order = StepBatches(length=len(data), batch_size=batch_size, seed=0, steps=steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # as the Trainer does
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    last = 0.0
    for batch in DataLoader(SeededItems(data, 0), batch_sampler=order, pin_memory=device == "cuda"):  # pyright: ignore[reportArgumentType]
        batch = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        optimizer.zero_grad()
        loss = model(batch, batch["actions"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
    return last


def trainer(model: PointBridgeModel, data: PolicyDataset, steps: int, batch_size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        config = TrainerConfig(
            output=output, steps=steps, batch_size=batch_size, logger="none", progress=False, checkpoint_every=10**6, keep_checkpoints=1
        )
        train(PointBridgeRecipe(model, data), config)
        return float((output / "losses.jsonl").read_text().splitlines()[-1].split()[-1].rstrip("}"))


def training(repeats: int) -> None:
    """Seconds a step of the Trainer and of the bare loop: the time between few and many steps, so that what is done once is left out."""
    for size, few, many in (("official", 2, 12), ("small", 5, 45)):
        torch.manual_seed(0)
        start = create_model(size, dropout=0.0)
        data = PolicyDataset(tasks(), start, policy_statistics(tasks(), start), text_encoder=HashedWords())

        def fresh() -> PointBridgeModel:
            model = create_model(size, dropout=0.0)
            model.load_state_dict(start.state_dict())
            return model

        seconds: dict[str, list[float]] = {"bare loop": [], "Trainer": []}
        losses: dict[str, float] = {}
        for _ in range(repeats):  # in turn, so that a busy moment hits both
            for name, run in (("bare loop", bare_loop), ("Trainer", trainer)):
                models = fresh(), fresh()
                begun = time.perf_counter()
                run(models[0], data, few, 16)
                between = time.perf_counter()
                losses[name] = run(models[1], data, many, 16)
                seconds[name].append((time.perf_counter() - between - (between - begun)) / (many - few))
        bare, ours = (min(values) for values in seconds.values())
        told = ", ".join(f"{name} {value:.6f}" for name, value in losses.items())
        print(
            f"{size}, batch 16: {1000 * bare:.1f} ms a step bare, {1000 * ours:.1f} ms in the Trainer: {100 * (ours / bare - 1):+.1f} % "
            f"(limit 5 %); last losses: {told}"
        )


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def tracking(frames: int) -> None:
    """A frame of SAM 2.1 large (random weights, bfloat16) that tracks two objects at 1280x720, against Transformers' bare model."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "window_positional_embedding_background_size": [7, 7],
        "global_attention_blocks": [23, 33, 43],
    }
    vision = {"backbone_config": backbone, "backbone_channel_list": [1152, 576, 288, 144]}
    with torch.device("cuda"):
        model = Sam2VideoModel(Sam2VideoConfig(vision_config=vision)).to(torch.bfloat16).eval()
    rng = np.random.default_rng(0)
    camera = Camera(intrinsics_from_fovy(0.9, (720, 1280)), np.eye(4), (720, 1280))
    images = [Frame(rng.integers(256, size=(720, 1280, 3), dtype=np.uint8), camera) for _ in range(4)]
    masks = {name: np.zeros((720, 1280), bool) for name in ("cup", "plate")}
    masks["cup"][200:300, 300:400] = masks["plate"][400:550, 700:900] = True
    tracker = Sam2Tracker(model)
    tracker.start(images[0], masks)
    pixels = torch.rand(1, 3, 1024, 1024, device="cuda", dtype=torch.bfloat16)

    @torch.inference_mode()
    def encoder() -> None:
        model.get_image_features(pixels)

    times: dict[str, list[float]] = {"a tracked frame": [], "image encoder alone": []}
    for number in range(frames):
        for name, call in (("a tracked frame", lambda number=number: tracker.track(images[number % 4])), ("image encoder alone", encoder)):
            settle()
            started = time.perf_counter()
            call()
            settle()
            if number >= 8:  # warm, and the memory is full
                times[name].append(time.perf_counter() - started)
    middle = {name: 1000 * statistics.median(values) for name, values in times.items()}
    tracked, alone = middle.values()
    print(
        f"SAM 2.1 large, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M: {tracked:.1f} ms a frame with two objects, "
        f"{tracked / alone:.2f}x its image encoder ({alone:.1f} ms); peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("latency", "training", "tracking"))
    parser.add_argument("--repeats", type=int, default=5, help="of the training measurement, of which the fastest counts")
    parser.add_argument("--real", action="store_true", help="on a GPU, with the perception's largest part")
    options = parser.parse_args()
    if options.real and not torch.cuda.is_available():
        raise SystemExit("--real needs a GPU; leave it out to measure on the CPU.")
    if options.part == "tracking" and not options.real:
        raise SystemExit("SAM 2.1 large is measured on a GPU only; add --real.")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.real else f'{torch.get_num_threads()} threads'}")
    if options.part in (None, "latency"):
        latency(100, "cuda" if options.real else "cpu")
    if options.part in (None, "training"):
        training(options.repeats)
    if options.real and options.part in (None, "tracking"):
        tracking(40)


if __name__ == "__main__":
    main()
