"""The small-scale study of panoramas: where the seam comes from and what cures it, and whether placement needs a camera.

Per seed: an autoencoder on procedural worlds, two transformers on its latents (ordinary and circular), and one transformer for each
way of giving the input. Nothing is tuned in between.
"""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_from_perspective
from visiongraft.media.files import atomic_write, ensure_writable_folder
from visiongraft.methods.panorama import placement, seam_origin, small
from visiongraft.methods.panorama.camera import SearchConfig, estimate_cameras
from visiongraft.methods.panorama.circular import reconstruct
from visiongraft.methods.panorama.released import load, save_graft
from visiongraft.methods.panorama.small_training import CLIPS, HELD_OUT, encode_samples, train_transformer, train_vae, worlds
from visiongraft.methods.panorama.study_figures import PLACEMENT_PICTURES, SEAM_PICTURES, enlarged, outlined, picture_grid
from visiongraft.methods.panorama.study_report import StudyConfig, study_report
from visiongraft.methods.panorama.world_samples import WorldSamples
from visiongraft.metrics.masked import masked_psnr
from visiongraft.metrics.seams import seam_ratio
from visiongraft.studies import Report, Study
from visiongraft.worlds.generation import KINDS

ENCODINGS = ("plain", "circular")
_SHOWN = 4


def run_study(config: StudyConfig) -> Report:
    """Trains and measures every seed, writes report.json, report.md and figures to ``config.output``, and returns the report.

    With ``bundle`` the small models of the package are trained too, into ``config.output / "weights"``. Processes may share the
    work, each with seeds of its own, on one output; a last call with all seeds then only reports.
    """
    settings = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in ("output", "seeds", "bundle")}, default=str))
    study = Study(name="panorama", output=config.output, settings=settings)
    results = [{"seams": seams(study, config, seed), "placement": placements(study, config, seed)} for seed in config.seeds]
    bundled = bundle(study, config) if config.bundle else None
    for picture in (SEAM_PICTURES, PLACEMENT_PICTURES):
        shutil.copyfile(config.output / f"seed-{config.seeds[0]}" / picture, config.output / picture)
    report = study_report(config, results, bundled, settings, study.seconds)
    report.write(config.output)
    return report


# --- where the seam comes from ------------------------------------------------------------------------------------------


def seams(study: Study, config: StudyConfig, seed: int) -> dict[str, Any]:
    """Seams of one autoencoder in all combinations, and of two transformers on its latents."""
    folder, budget, cache = config.output / f"seed-{seed}", config.budget, config.output / "worlds"
    names = ("autoencoder", *(f"generator {encoding}" for encoding in ENCODINGS))
    vae: Any = None
    results = {}
    for name in names:

        def work(name: str = name) -> dict[str, Any]:
            nonlocal vae
            samples = worlds(budget.scenes, seed, cache, budget.draws)
            tests = worlds(config.test_scenes, HELD_OUT + seed, cache)
            vae = vae or train_vae(samples, seed, budget.vae, folder / "autoencoder")
            if name == "autoencoder":
                _seam_pictures(vae, tests, folder / SEAM_PICTURES)
                return _autoencoder(vae, tests)
            return _generator(vae, samples, tests, name.removeprefix("generator "), seed, config, folder)

        results[name] = study.unit(f"{name}-{seed}", work)
    return results


def _autoencoder(vae: Any, tests: WorldSamples) -> dict[str, Any]:
    padding = small.image_graft().padding
    return {
        "rows": seam_origin.autoencoder_seams(vae, tests.panoramas, padding),
        "roll": seam_origin.roll_errors(vae, tests.panoramas, padding),
    }


@torch.no_grad()
def _seam_pictures(vae: Any, tests: WorldSamples, path: Path) -> None:
    """Panoramas of each kind, rolled by half a turn, through all combinations of encoder and decoder."""
    pixels, padding = seam_origin.to_signed(tests.panoramas[:4]), small.image_graft().padding
    columns = [pixels, *(reconstruct(vae, pixels, encoder=e, decoder=d, padding=padding) for e, d in seam_origin.COMBINATIONS)]  # pyright: ignore[reportArgumentType]
    turned = [seam_origin.to_unit(column).roll(column.shape[-1] // 2, -1) for column in columns]
    titles = ["ground truth", *(f"{e} encoder, {d} decoder" for e, d in seam_origin.COMBINATIONS)]
    picture_grid([[column[i] for column in turned] for i in range(len(pixels))], titles, list(KINDS[: len(pixels)]), path)


def _generator(
    vae: Any, samples: WorldSamples, tests: WorldSamples, encoding: str, seed: int, config: StudyConfig, folder: Path
) -> dict[str, Any]:
    """A transformer trained on latents of one encoding: its bias at the border, and the seams of what it makes."""
    pipeline = small.image_pipeline(vae, small.small_transformer(seed), samples.captions)
    padding, circular = pipeline.graft.padding, encoding == "circular"
    encoded = encode_samples(pipeline, samples, folder, circular)
    transformer = train_transformer(
        pipeline, encoded, seed, config.budget.transformer, config.budget.batch_size, folder / f"transformer-{encoding}"
    )
    held_out = encode_samples(pipeline, tests, folder, circular).tensors
    own = {t: seam_origin.generated_latents(transformer, held_out, t, seed, config.sampling_steps) for t in (*config.starts, 1.0)}
    result = {
        "bias of data": seam_origin.border_bias(encoded.tensors["panorama"]),
        "bias of samples": seam_origin.border_bias(own[1.0]),
        "autoencoder alone": seam_origin.decoded_seam_ratios(vae, held_out["panorama"], padding),
        "own latents": {f"{t:g}": seam_origin.decoded_seam_ratios(vae, latents, padding) for t, latents in own.items()},
        "truth": seam_ratio(tests.panoramas.float() / 255).tolist(),
    }
    circular_tests = held_out if circular else encode_samples(pipeline, tests, folder, circular=True).tensors
    same = {t: seam_origin.generated_latents(transformer, circular_tests, t, seed, config.sampling_steps) for t in config.starts}
    result["circular latents"] = {f"{t:g}": seam_origin.decoded_seam_ratios(vae, latents, padding) for t, latents in same.items()}
    return result


# --- placement without a camera -------------------------------------------------------------------------------------------


def placements(study: Study, config: StudyConfig, seed: int) -> dict[str, Any]:
    """Every way of giving the input, and the estimator of cameras on true panoramas."""
    results = {
        name: study.unit(f"placement-{seed}-{name}", lambda name=name: _placement(name, seed, config)) for name in placement.VARIANTS
    }
    return results | {"true panoramas": study.unit(f"placement-{seed}-truth", lambda: _estimator(seed, config))}


def _test_pairs(seed: int, config: StudyConfig, ranges: placement.CameraRanges, canonical: bool = True) -> placement.Pairs:
    return placement.pairs(config.test_worlds, ranges, torch.Generator().manual_seed(1_000_003 + seed), canonical)


def _placement(name: str, seed: int, config: StudyConfig) -> dict[str, Any]:
    variant = placement.VARIANTS[name]
    folder = config.output / f"seed-{seed}" / f"placement-{name.replace(', ', '-').replace(' ', '-')}"
    transformer = placement.train_variant(name, seed, config.placement_steps, folder).eval()

    def made(ranges: placement.CameraRanges) -> tuple[Tensor, placement.Pairs]:
        truth = _test_pairs(seed, config, ranges, variant.canonical)
        generator = torch.Generator().manual_seed(seed)
        return placement.generate(transformer, variant, truth.image, truth.camera, generator, config.sampling_steps), truth

    panoramas, truth = made(placement.ALL_CAMERAS)
    _keep_pictures(name, panoramas[:_SHOWN], seed, config)
    everywhere = torch.ones(len(panoramas), 1, *panoramas.shape[-2:], dtype=torch.bool)
    result: dict[str, Any] = {"whole": masked_psnr(panoramas, truth.panorama, everywhere).tolist()}
    if not variant.canonical:  # its panoramas are turned: the input lies at their centre
        level = truth.camera * torch.tensor([1.0, 0.0, 0.0, 0.0])
        visible = placement.warped(truth.image, level)[1]
        return result | {"visible": masked_psnr(panoramas, truth.panorama, visible).tolist()}
    result["visible"] = placement.visible_psnr(panoramas, truth).tolist()
    result["shuffled"] = placement.visible_psnr(panoramas.roll(1, 0), truth).tolist()
    result |= _found_cameras(panoramas, truth)
    result["robustness"] = {label: placement.visible_psnr(*made(ranges)).mean().item() for label, ranges in config.robustness.items()}
    return result


def _keep_pictures(name: str, panoramas: Tensor, seed: int, config: StudyConfig) -> None:
    """Keeps a variant's panoramas; the last variant draws the picture of all."""
    folder, names = ensure_writable_folder(config.output / f"seed-{seed}" / "pictures"), list(placement.VARIANTS)
    save_file({"panoramas": panoramas.contiguous()}, folder / f"{names.index(name)}.safetensors")
    files = [folder / f"{i}.safetensors" for i in range(len(names))]
    if not all(file.is_file() for file in files):
        return
    upright = {name: load_file(file)["panoramas"] for (name, v), file in zip(placement.VARIANTS.items(), files, strict=True) if v.canonical}
    shown = _test_pairs(seed, config, placement.ALL_CAMERAS)
    mask = placement.warped(shown.image, shown.camera)[1]
    rows = [
        [enlarged(shown.image[i], 8), outlined(shown.panorama[i], mask[i]), *(outlined(made[i], mask[i]) for made in upright.values())]
        for i in range(_SHOWN)
    ]
    titles = ["input", "true panorama", *upright]
    picture_grid(rows, titles, [""] * _SHOWN, folder.parent / PLACEMENT_PICTURES)


def _found_cameras(panoramas: Tensor, truth: placement.Pairs) -> dict[str, Any]:
    """The cameras that the panoramas betray: absolute errors in degrees, and PSNR in dB of the inputs as seen by them."""
    found = estimate_cameras(truth.image, panoramas, SearchConfig())
    angles = torch.stack([found.hfov_deg, found.pitch_deg, found.roll_deg], 1)
    errors = (angles - truth.camera[:, [0, 2, 3]] * (180 / math.pi)).abs()
    return {"errors": {name: errors[:, i].tolist() for i, name in enumerate(("hfov", "pitch", "roll"))}, "found": found.psnr.tolist()}


def _estimator(seed: int, config: StudyConfig) -> dict[str, Any]:
    """Errors of the estimator itself, and of answering the middle of each range."""
    truth = _test_pairs(seed, config, placement.ALL_CAMERAS)
    middle = torch.tensor([sum(r) / 2 for r in placement.ALL_CAMERAS])
    constant = (truth.camera[:, [0, 2, 3]] * (180 / math.pi) - middle).abs()
    return {
        **_found_cameras(truth.panorama, truth),
        "constant": {name: constant[:, i].tolist() for i, name in enumerate(("hfov", "pitch", "roll"))},
    }


# --- the bundled models -----------------------------------------------------------------------------------------------------


def bundle(study: Study, config: StudyConfig) -> dict[str, Any]:
    """Trains the small models that the package ships, in half precision, and measures them on held-out worlds."""
    return {
        "image": study.unit("bundle-image", lambda: _bundle_image(config)),
        "video": study.unit("bundle-video", lambda: _bundle_video(config)),
    }


def _bundle_image(config: StudyConfig) -> dict[str, Any]:
    folder, cache, budget = config.output / "seed-0", config.output / "worlds", config.budget
    samples = worlds(budget.scenes, 0, cache, budget.draws)
    vae = train_vae(samples, 0, budget.vae, folder / "autoencoder")
    pipeline = small.image_pipeline(vae, small.small_transformer(0), samples.captions)
    encoded = encode_samples(pipeline, samples, folder)
    pipeline.transformer = train_transformer(pipeline, encoded, 0, budget.image, budget.batch_size, folder / "bundled-image")
    return _save_and_measure(pipeline, config, worlds(config.test_scenes, HELD_OUT, cache), "image")


def _bundle_video(config: StudyConfig) -> dict[str, Any]:
    folder, cache, budget = config.output / "seed-0", config.output / "worlds", config.budget
    samples = worlds(budget.clips, CLIPS, cache, budget.draws, small.NUM_FRAMES)
    vae = train_vae(samples, 0, budget.video_vae, folder / "video-autoencoder")
    pipeline = small.video_pipeline(vae, small.small_video_transformer(0), samples.captions)
    encoded = encode_samples(pipeline, samples, folder)
    pipeline.transformer = train_transformer(pipeline, encoded, 0, budget.video, 8, folder / "bundled-video")
    return _save_and_measure(pipeline, config, worlds(config.test_clips, HELD_OUT, cache, frames=small.NUM_FRAMES), "video")


def _save_and_measure(pipeline: Any, config: StudyConfig, tests: WorldSamples, mode: str) -> dict[str, Any]:
    """Saves a pipeline in half precision and measures what it is after loading: input kept, seam, and the autoencoder alone."""
    folder = save_graft(config.output / "weights" / mode, pipeline, complete=True)
    for file in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()}
        with atomic_write(file) as temporary:
            save_file(halved, temporary, metadata={"format": "pt"})
    loaded = load(folder)
    loaded.set_progress_bar_config(disable=True)
    inputs, truth = tests.inputs.float() / 255, tests.panoramas.float() / 255
    generator = torch.Generator().manual_seed(0)
    made = []
    for part in torch.arange(len(tests)).split(16):
        options: dict[str, Any] = {"generator": generator, "num_inference_steps": config.sampling_steps, "output_type": "pt"}
        if mode == "video":
            options["guidance_scale"] = 1.0
        out = loaded(inputs[part], [tests.captions[i] for i in part], **options)
        made.append(out.images if mode == "image" else out.frames)
    panoramas = torch.cat(made)
    first, first_truth, first_input = (p if mode == "image" else p[:, 0] for p in (panoramas, truth, inputs))
    visible = panorama_from_perspective(
        first_input, tests.cameras[:, 0], rotation_from_angles(*tests.cameras[:, 1:].unbind(1)), small.HEIGHT
    )[1]
    return {
        "visible": masked_psnr(first, first_truth, visible).tolist(),
        "shuffled": masked_psnr(first.roll(4, 0), first_truth, visible).tolist(),
        "seam ratio": seam_ratio(first).tolist(),
        "seam ratio of truth": seam_ratio(first_truth).tolist(),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }
