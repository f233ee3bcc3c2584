"""ActionMesh's networks against upstream's arithmetic, in one process. Prints; asserts nothing.

    OMP_NUM_THREADS=1 python benchmarks/action_mesh.py            # forward passes on the CPU, tiny and medium, as ratios
    python benchmarks/action_mesh.py --real                       # GPU: the released size with random weights, whole and one step

The peer has upstream's operations in upstream's form (modules): separate projections whose outputs are joined, reshaped and split at
every call, norms one by one, real-valued rotations over repeated tables. It shares our weights, so both give the same answer, which
is printed too. ``--real`` prints what the authors report beside it. Times are of the process (or the GPU), measured in turn, so that a
busy moment hits both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import trimesh
from torch import Tensor, nn
from torch.nn import functional as F

from visiongraft.geometry.isosurfaces import extract_isosurface
from visiongraft.methods.action_mesh.blocks import ACTION_MESH, TRIPOSG, renamed
from visiongraft.methods.action_mesh.config import SIZES, create
from visiongraft.methods.action_mesh.embeddings import pair_features, point_features, timestep_features
from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline
from visiongraft.methods.action_mesh.memory import autocast as stage_autocast
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.presets import PRESETS, Preset
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler

MEDIUM = {
    "denoiser": {"width": 512, "num_attention_heads": 8, "num_layers": 7, "in_channels": 64, "cross_attention_dim": 256},
    "autoencoder": {"width": 512, "num_attention_heads": 4, "num_layers": 4},
    "vae": {"width_encoder": 256, "width_decoder": 512, "num_attention_heads": 4, "num_layers_encoder": 2, "num_layers_decoder": 4},
}


class PlainAttention(nn.Module):
    """As upstream runs it; ``context_dim`` makes it a cross-attention."""

    def __init__(self, width: int, heads: int, context_dim: int | None, qk_norm: bool, norm_context: bool) -> None:
        super().__init__()
        self.heads, self.cross, inner = heads, context_dim is not None, context_dim or width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(inner, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_cross = nn.LayerNorm(inner) if norm_context else None
        self.norm_q, self.norm_k = (nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None for _ in range(2))

    def forward(self, x: Tensor, context: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, length, width = x.shape
        context = x if context is None else context if self.norm_cross is None else self.norm_cross(context)
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        dim = width // self.heads
        if self.cross:
            q = q.view(batch, length, self.heads, dim)
            k, v = torch.cat([k, v], dim=-1).view(batch, -1, self.heads, 2 * dim).split(dim, dim=-1)
        else:
            q, k, v = torch.cat([q, k, v], dim=-1).view(batch, length, self.heads, 3 * dim).split(dim, dim=-1)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        if rope is not None:
            q, k = _rotate(q, rope), _rotate(k, rope)
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return (x.float() * rope[0] + torch.stack([-b, a], dim=-1).flatten(3).float() * rope[1]).to(x.dtype)


def _tables(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = (positions[..., None] * frequencies).repeat_interleave(2, dim=-1)[:, None]
    return angles.cos(), angles.sin()


class PlainBlock(nn.Module):
    """Under ActionMesh's names."""

    def __init__(
        self, width: int, heads: int, *, own: bool = True, context_dim: int | None = None, qk_norm=False, norm_context=False, skip=False
    ) -> None:
        super().__init__()
        if own:
            self.norm_s_attn, self.s_attn = nn.LayerNorm(width), PlainAttention(width, heads, None, qk_norm, False)
        if context_dim is not None:
            self.norm_x_attn, self.x_attn = nn.LayerNorm(width), PlainAttention(width, heads, context_dim, qk_norm, norm_context)
        self.norm_ff, self.ff = nn.LayerNorm(width), nn.Module()
        projection = nn.Module()
        projection.proj = nn.Linear(width, 4 * width)
        self.ff.net = nn.ModuleList([projection, nn.Dropout(0.0), nn.Linear(4 * width, width)])
        self.own, self.cross, self.skip = own, context_dim is not None, skip
        if skip:
            self.norm_skip, self.linear_skip = nn.LayerNorm(width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, skip: Tensor | None = None, rope: Any = None, frames: int = 1) -> Tensor:
        if self.skip:
            x = self.norm_skip(self.linear_skip(torch.cat([skip, x], dim=-1)))
        if self.own:
            inflated = self.norm_s_attn(x).reshape(x.shape[0] // frames, -1, x.shape[-1])
            x = x + self.s_attn(inflated, None, rope).reshape(x.shape)
        if self.cross:
            x = x + self.x_attn(self.norm_x_attn(x), context, None)
        first, dropout, last = self.ff.net
        return x + last(dropout(F.gelu(first.proj(self.norm_ff(x)))))


class PlainDenoiser(nn.Module):
    def __init__(self, in_channels: int, num_layers: int, num_attention_heads: int, width: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.heads, self.half = num_attention_heads, num_layers // 2
        self.time_proj = nn.Module()
        self.time_proj.linear_1, self.time_proj.linear_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.proj_in, self.norm_out, self.proj_out = nn.Linear(in_channels, width), nn.LayerNorm(width), nn.Linear(width, in_channels)
        options = {"context_dim": cross_attention_dim, "qk_norm": True}
        self.blocks = nn.ModuleList(PlainBlock(width, num_attention_heads, skip=i > self.half, **options) for i in range(num_layers))

    def forward(self, latents: Tensor, context: Tensor, framestep: Tensor, timestep: Tensor) -> Tensor:
        batch, frames, tokens, _ = latents.shape
        width = self.proj_in.out_features
        features = timestep_features(timestep.repeat_interleave(frames), width)
        time_token = self.time_proj.linear_2(F.gelu(self.time_proj.linear_1(features)))[:, None]
        x = torch.cat([time_token, self.proj_in(latents.flatten(0, 1))], dim=1)
        positions = (framestep - framestep.amin(1, keepdim=True)).repeat_interleave(tokens + 1, dim=1)
        rope, context, skips = _tables(positions, width // self.heads), context.flatten(0, 1), []
        for i, block in enumerate(self.blocks):
            x = block(x, context, skips.pop() if i > self.half else None, rope, frames)
            if i < self.half:
                skips.append(x)
        return self.proj_out(self.norm_out(x)[:, 1:]).unflatten(0, (batch, frames))


class PlainAutoencoder(nn.Module):
    def __init__(self, latent_channels: int, width: int, num_layers: int, num_attention_heads: int, embed_frequency: int) -> None:
        super().__init__()
        self.heads, self.octaves = num_attention_heads, embed_frequency
        self.post_quant, self.norm_out, self.proj_out = nn.Linear(latent_channels, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.proj_query = nn.Linear(6 + 6 * embed_frequency, width)
        last = PlainBlock(width, num_attention_heads, own=False, context_dim=width, norm_context=True)
        self.blocks = nn.ModuleList([*(PlainBlock(width, num_attention_heads) for _ in range(num_layers)), last])

    def forward(self, latents: Tensor, framestep: Tensor, source: Tensor, target: Tensor, points: Tensor, normals: Tensor) -> Tensor:
        frames, tokens = latents.shape[1:3]
        width = self.post_quant.out_features
        first = framestep.amin(1)
        span, positions = framestep.amax(1) - first, framestep - first[:, None]
        pair = pair_features((source - first) / span, (target - first) / span, width)[:, None].expand(-1, frames, -1)
        x = torch.cat([self.post_quant(latents).flatten(1, 2), pair], dim=1)
        rope = _tables(torch.cat([positions.repeat_interleave(tokens, dim=1), positions], dim=1), width // self.heads)
        for block in self.blocks[:-1]:
            x = block(x, rope=rope)
        queries = self.proj_query(torch.cat([point_features(points, self.octaves), normals], dim=-1))
        return (2 * torch.sigmoid(-self.proj_out(self.norm_out(self.blocks[-1](queries, x)))) - 1).clamp(-1, 1)


class PlainDecoder(nn.Module):
    """TripoSG's VAE from latents to logits, the context computed once for all chunks of points."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        config = vae.config
        width, heads = config.width_decoder, config.num_attention_heads
        self.octaves = config.embed_frequency
        self.post_quant, self.norm_out, self.proj_out = nn.Linear(config.latent_channels, width), nn.LayerNorm(width), nn.Linear(width, 1)
        self.proj_query = nn.Linear(3 + 6 * self.octaves, width)
        last = PlainBlock(width, heads, own=False, context_dim=width, norm_context=True)
        self.blocks = nn.ModuleList([*(PlainBlock(width, heads) for _ in range(config.num_layers_decoder)), last])

    def forward(self, latents: Tensor, points: Tensor, chunk: int) -> Tensor:
        x = self.post_quant(latents)
        for block in self.blocks[:-1]:
            x = block(x)
        pieces = (self.proj_query(point_features(piece, self.octaves)) for piece in points.split(chunk, dim=1))
        return torch.cat([-self.proj_out(self.norm_out(self.blocks[-1](piece, x)))[..., 0] for piece in pieces], dim=1)


def compare(name: str, ours: Callable[[], Tensor], plain: Callable[[], Tensor], repeats: int) -> None:
    """Milliseconds of both, and the ratio of neighbouring runs (its median and quartiles)."""
    times: tuple[list[float], list[float]] = ([], [])
    difference = float((ours() - plain()).abs().max())
    for number in range(repeats + 2):
        for run, kept in zip((ours, plain), times, strict=True):
            started = time.process_time()
            run()
            if number >= 2:  # warm
                kept.append(time.process_time() - started)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    best = min(times[0]) / min(times[1])
    print(
        f"{name}: {1e3 * statistics.median(times[0]):.2f} ms against {1e3 * statistics.median(times[1]):.2f} ms of the plain peer; ratio "
        f"{middle:.3f} (quartiles {low:.3f} to {high:.3f}; of the fastest runs {best:.3f}); greatest difference {difference:.1e}",
        flush=True,
    )


@torch.inference_mode()
def forward(repeats: int) -> None:
    """Forward passes of both grafts and of the base's decoder."""
    draw = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for size, frames, tokens, pictures, points, count in (("tiny", 4, 8, 16, 64, 60 * repeats), ("medium", 8, 128, 65, 2048, repeats)):
        torch.manual_seed(0)
        options = SIZES["tiny"] if size == "tiny" else MEDIUM
        steps = torch.arange(float(frames))[None]

        model = create("denoiser", **options["denoiser"]).eval()
        keys = ("in_channels", "num_layers", "num_attention_heads", "width", "cross_attention_dim")
        plain: Any = PlainDenoiser(**{key: model.config[key] for key in keys}).eval()
        plain.load_state_dict(model.state_dict())
        latents, context = draw(1, frames, tokens, model.config.in_channels), draw(1, frames, pictures, model.config.cross_attention_dim)
        given: Any = (latents, context, steps, torch.tensor([500.0]))
        compare(f"stage I, {size}", lambda: model(*given), lambda: plain(*given), count)

        model = create("autoencoder", **options["autoencoder"]).eval()
        keys = ("latent_channels", "width", "num_layers", "num_attention_heads", "embed_frequency")
        plain = PlainAutoencoder(**{key: model.config[key] for key in keys}).eval()
        plain.load_state_dict(model.state_dict())
        queries = torch.rand(1, points, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
        given = (draw(1, frames, tokens, model.config.latent_channels), steps, torch.zeros(1), torch.ones(1), queries, queries)
        compare(f"stage II, {size}", lambda: model(*given), lambda: plain(*given), count)

        vae = create("vae", **options["vae"]).eval()
        decoder = PlainDecoder(vae).eval()
        state = {key.removeprefix("decoder."): v for key, v in vae.state_dict().items() if key.startswith(("decoder.", "post_quant."))}
        decoder.load_state_dict({renamed([key], TRIPOSG, ACTION_MESH)[key]: v for key, v in state.items()})
        latents, chunk = draw(1, tokens, vae.config.latent_channels), points // 8  # as a coarse-to-fine extraction asks
        ours = lambda: vae.query(vae.decode_context(latents), queries, chunk)
        compare(f"decoder in 8 chunks, {size}", ours, lambda: decoder(latents, queries, chunk), count)


UPSTREAM = {"default": "75 s on an H100, 32 GB", "fast": "45 s on an H100, 32 GB", "low memory": "12 GB, on a T4"}


class StageClock:
    """Seconds and the greatest memory of each stage; one ends where the next begins."""

    def __init__(self, device: str) -> None:
        self.on_gpu, self.running, self.started = device == "cuda", "", 0.0
        self.stages: dict[str, tuple[float, float]] = {}

    def begin(self, stage: str) -> None:
        self.end()
        self.running, self.started = stage, time.perf_counter()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        if not self.running:
            return
        if self.on_gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else 0.0
        self.stages[self.running], self.running = (time.perf_counter() - self.started, peak), ""

    def told(self, name: str) -> str:
        parts = ", ".join(f"{stage} {seconds:.1f} s ({peak:.1f} GiB)" for stage, (seconds, peak) in self.stages.items())
        total, peak = sum(seconds for seconds, _ in self.stages.values()), max(peak for _, peak in self.stages.values())
        return f"{name}: {total:.1f} s, peak {peak:.1f} GiB (the authors: {UPSTREAM[name]}); {parts}"


def released_models(size: str, device: str) -> dict[str, Any]:
    """Random weights; the base's in float16 on a GPU as upstream has it, the grafts' in float32 for autocast."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.device(device):
        models: dict[str, Any] = {name: create(name, size) for name in ("vae", "dit", "denoiser", "autoencoder")}
        layers, heads = (24, 16) if size == "released" else (1, 2)
        wide = models["dit"].config.cross_attention_dim
        config = Dinov2Config(hidden_size=wide, num_hidden_layers=layers, num_attention_heads=heads, patch_size=14, image_size=518)
        models["image_encoder"] = Dinov2Model(config)
    for name in ("vae", "dit", "image_encoder"):
        nn.Module.to(models[name], torch.float16 if device == "cuda" else torch.float32)
    return {name: model.eval() for name, model in models.items()}


@torch.no_grad()
def whole(
    size: str = "released", device: str = "cuda", *, presets: dict[str, Preset] = PRESETS, resolution: int = 256, detail: int = 5
) -> None:
    """All stages, from pictures to vertices, in the default, fast and low-memory mode.

    Random weights have no surface: stage 0 runs to its latents, the extraction asks the decoder at the points that a ball needs, and the
    mesh of a ball (10,242 vertices, 20,480 faces) goes on.
    """
    models = released_models(size, device)
    count, tokens = (models["denoiser"].config[key] for key in ("temporal_context_size", "num_tokens_nominal"))
    frames, ball = torch.rand(count, 3, 512, 512), trimesh.creation.icosphere(subdivisions=detail, radius=0.9)
    mesh = torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).long()
    base = {"transformer": models["dit"], "vae": models["vae"], "scheduler": RectifiedFlowScheduler()}
    shapes = ImageTo3DPipeline(**base, image_encoder_dinov2=models["image_encoder"], feature_extractor_dinov2=None)
    pipeline = ActionMeshPipeline(**models, scheduler=RectifiedFlowScheduler())
    for each in (shapes, pipeline):
        each.set_progress_bar_config(disable=True)
    # once for nobody's account: libraries load and kernels are chosen
    brief = Preset(shape_steps=1, shape_guidance=7.5, steps=1)
    for name, preset in (("", brief), ("default", presets["default"]), ("fast", presets["fast"]), ("low memory", presets["default"])):
        if name == "low memory":
            for each in (shapes, pipeline):
                each.enable_model_cpu_offload(device=device)
        clock = StageClock(device)
        clock.begin("stage 0")
        steps = {"num_inference_steps": preset.shape_steps, "guidance_scale": preset.shape_guidance}
        latents = shapes(frames[0], num_tokens=tokens, output_type="latent", **steps).latents
        clock.begin("extraction")
        with pipeline.working("vae") as vae, stage_autocast(torch.device(device), "shape"):
            context = vae.decode_context(latents[None].to(device, vae.dtype))

            def asked(points: Tensor) -> Tensor:
                vae.query(context, points[None])
                return 0.9 - points.norm(dim=-1)

            extract_isosurface(asked, resolution, device=device)
        settings: dict[str, Any] = {"preset": preset, "anchor_latents": latents.float(), "window": count, "slide": count - 1}
        pipeline(frames, mesh, fit_scale=0.9, on_stage=clock.begin, **settings)
        clock.end()
        if name:
            print(clock.told(name), flush=True)


@torch.inference_mode()
def one_step(repeats: int) -> None:
    """One step of each graft at the released size: 16 frames of 2048 tokens, in bfloat16 autocast and with half the memory."""
    frames, tokens, vertices = 16, 2048, 20_000
    with torch.device("cuda"):
        steps = torch.arange(float(frames))[None]
        for stored in (torch.float32, torch.bfloat16):
            label = str(stored).removeprefix("torch.")
            autocast = torch.autocast("cuda", torch.bfloat16, enabled=stored == torch.float32)
            denoiser = create("denoiser").to(stored).eval()
            for branches in (2, 1):
                latents, context = torch.randn(branches, frames, tokens, 64), torch.randn(branches, frames, 257, 1024)
                given = (latents, context, steps.expand(branches, -1), torch.full((branches,), 500.0))
                with autocast:
                    seconds, peak = _on_gpu(lambda: denoiser(*given), repeats)
                step = seconds * 2 / branches
                print(
                    f"stage I, weights in {label}, {branches} guidance branch(es) at once: {step:.3f} s a step, "
                    f"{30 * step:.1f} s for 30 steps, {15 * step:.1f} s for 15; peak {peak:.1f} GiB",
                    flush=True,
                )
            del denoiser
            autoencoder = create("autoencoder").to(stored).eval()
            latents, queries = torch.randn(1, frames, tokens, 64), torch.rand(1, vertices, 3) * 2 - 1

            def target() -> Tensor:
                with autocast:
                    found = autoencoder.decode_context(latents, steps, torch.zeros(1), torch.ones(1))
                    return autoencoder.query(found, queries, queries)

            seconds, peak = _on_gpu(target, repeats)
            print(
                f"stage II, weights in {label}, {vertices:,} vertices: {seconds:.3f} s a target, {15 * seconds:.1f} s for 15; "
                f"peak {peak:.1f} GiB",
                flush=True,
            )
            with autocast:
                found = autoencoder.decode_context(latents, steps, torch.zeros(1), torch.ones(1))
                for count in (20_000, 200_000):
                    queries = torch.rand(1, count, 3) * 2 - 1
                    _, peak = _on_gpu(lambda: autoencoder.query(found, queries, queries), 1)
                    print(f"stage II, queries of {count:,} vertices alone: peak {peak:.2f} GiB", flush=True)
            del autoencoder


def _on_gpu(run: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Median seconds and the greatest memory in GiB."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30


def real(repeats: int) -> None:
    """The released size on a GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("--real needs a GPU; leave it out to compare forward passes on the CPU.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; random weights, 16 frames")
    whole()
    torch.cuda.empty_cache()
    one_step(repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="on a GPU, at the released size")
    parser.add_argument("--repeats", type=int, default=5, help="of the medium size; the tiny one runs 60 times as often")
    options = parser.parse_args()
    (real if options.real else forward)(options.repeats)
