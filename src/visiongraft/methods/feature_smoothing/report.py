"""Certifying and attacking folders of images: resumable JSON Lines, a summary and a plot."""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from visiongraft.media.files import append_jsonl, atomic_write, ensure_writable_folder, read_jsonl
from visiongraft.media.images import list_images, save_image
from visiongraft.methods.feature_smoothing.attacks import AttackConfig, AttackResult, apgd, eot_cosine_objective, pgd
from visiongraft.methods.feature_smoothing.bounds import BOUNDS, cosine_bound
from visiongraft.methods.feature_smoothing.certification import DISCLAIMER, CertificateConfig, certify
from visiongraft.methods.feature_smoothing.commands import AttackOptions, CertifyOptions, Protection
from visiongraft.methods.feature_smoothing.figures import bound_against_attack
from visiongraft.methods.feature_smoothing.pipeline import EncoderConfig, ZeroShot, load_smoothed, prepare_image
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig
from visiongraft.methods.feature_smoothing.transfer_attacks import TransferConfig, attack_vlm, foa, m_attack

_ESTIMATE_SAMPLES = 256


def certify_folder(options: CertifyOptions) -> int:
    """Certifies every image of a file or folder; done images are kept when stopped, and a rerun continues.

    Returns:
        0, or 1 when some images could not be read (each is named on stderr; the others are certified).

    Raises:
        ValueError, FileNotFoundError, PermissionError: options, encoder, images or output folder that cannot be used.
    """
    paths = list_images(options.images)
    config = CertificateConfig(
        n=options.n,
        n_ref=options.n_ref,
        alpha=options.alpha,
        method=options.method,
        eps=tuple(options.eps),
        tau=options.tau,
        simultaneous=len(paths) if options.simultaneous else 1,
        stop_radius=options.stop_radius,
    )
    ensure_writable_folder(options.output)
    smoothed = _load(options)
    head = ZeroShot(options.encoder, options.classes, options.device) if options.classes else None
    settings = _fingerprint(options, config)
    file = options.output / "report.jsonl"
    done = {row["path"]: row for row in (read_jsonl(file) if file.exists() else []) if row.get("settings") == settings}
    rows, unread = [], []
    for path in tqdm(paths, desc="certifying", unit="image"):
        if str(path) in done:
            rows.append(done[str(path)])
            continue
        try:
            image = prepare_image(path, smoothed.encoder).to(options.device)
        except (ValueError, OSError) as error:
            unread.append(path)
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        started = time.monotonic()
        certificate = certify(smoothed, image, config, classes=None if head is None else head.classes, seed=options.seed)
        row = {
            "path": str(path),
            "settings": settings,
            "encoder": options.encoder,
            "purifier": options.purifier,
            "mapper": options.mapper,
            **certificate.to_dict(),
            "prompt": head.prompts[certificate.prediction.label] if head and certificate.prediction else None,
            "statement": certificate.statement(),
            "seconds": round(time.monotonic() - started, 3),
        }
        append_jsonl(file, row)
        rows.append(row)
    if not rows:
        raise ValueError(f"None of the {len(paths)} images of {options.images} could be read; nothing was certified.")
    summary = _summary(rows, options)
    with atomic_write(options.output / "summary.md") as path:
        path.write_text(summary)
    _plot(rows, options)
    print(summary)
    print(f"Report: {file}")
    return 1 if unread else 0


def _load(options: Protection) -> SmoothedEncoder:
    chosen = EncoderConfig(
        encoder=options.encoder, purifier=options.purifier, mapper=options.mapper, dtype=options.dtype, device=options.device
    )
    smoothing = SmoothingConfig(sigma=options.sigma, n0=options.n0, token_mode=options.token_mode, chunk_size=options.chunk_size)
    return load_smoothed(chosen, smoothing)


def _fingerprint(options: CertifyOptions, config: CertificateConfig) -> str:
    """What a certificate depends on beside the image; rows with other settings are not taken over by a rerun."""
    relevant = {k: v for k, v in asdict(options).items() if k not in ("images", "output", "device", "chunk_size")}
    text = json.dumps({**relevant, "simultaneous": config.simultaneous}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _summary(rows: Sequence[dict[str, Any]], options: CertifyOptions) -> str:
    """Markdown table of the means over images, and what it does not say."""
    grey = 255 * options.sigma
    mean = lambda key: float(np.mean([key(row) for row in rows]))
    lines = [
        f"# Certificates of {len(rows)} image{'s' * (len(rows) > 1)}",
        "",
        f"Encoder {options.encoder}, sigma {options.sigma:g} ({grey:.0f} grey levels), n {options.n}, alpha {options.alpha:g} "
        f"{'for all images together' if options.simultaneous else 'for each image'}, {options.method}, "
        f"{options.token_mode} features.",
        "",
        "| quantity | mean over images |",
        "|---|---|",
        f"| score to the clean feature, lower bound | {mean(lambda r: r['reference']['lower']):.4f} |",
        f"| score to the smoothed feature, lower bound | {mean(lambda r: r['smoothed']['lower']):.4f} |",
    ]
    for name in BOUNDS:
        radius = mean(lambda r, b=name: max(r["radii"][b], 0))
        share = mean(lambda r, b=name: r["radii"][b] > 0)
        lines.append(f"| certified l2 radius at cosine {options.tau:g}, {name} | {radius:.4f} ({share:.0%} of images certified) |")
    for eps in options.eps:
        cells = ", ".join(f"{b} {mean(lambda r, b=b, e=eps: max(r['bounds'][f'{e:g}'][b], 0)):.3f}" for b in BOUNDS)
        lines.append(
            f"| certified cosine at l2 {eps:g} | {cells}; deployed with n0={options.n0}: "
            f"{mean(lambda r, e=eps: r['deployed'][f'{e:g}']):.3f} |"
        )
    if rows[0]["prediction"] is not None:
        for kind in ("margin", "vote"):
            lines.append(f"| prediction radius, {kind} | {mean(lambda r, k=kind: r['prediction'][f'{k}_radius']):.4f} |")
    return "\n".join([*lines, "", DISCLAIMER, ""])


def _plot(rows: Sequence[dict[str, Any]], options: CertifyOptions) -> None:
    grid = np.linspace(0, max(max(options.eps), 1e-3), 26)
    curves = {}
    for name in BOUNDS:
        scores = np.array([row["smoothed" if name == "smoothed" else "reference"]["lower"] for row in rows])
        curves[name] = [float(np.mean(np.maximum(cosine_bound(scores, e / options.sigma, name), 0))) for e in grid]
    bound_against_attack(options.output / "radius.png", grid.tolist(), curves, [], {})


def attack_folder(options: AttackOptions) -> int:
    """Attacks every image of a file or folder; writes the attacked images and one row each, resumable.

    Raises:
        ValueError, FileNotFoundError, PermissionError: options, encoder, images or output folder that cannot be used.
    """
    paths = list_images(options.images)
    if options.attack in ("attack-vlm", "m-attack", "foa") and options.target is None:
        raise ValueError(f"{options.attack} imitates a target image; give one with --target other.jpg.")
    ensure_writable_folder(options.output)
    smoothed = _load(options)
    target = None if options.target is None else prepare_image(options.target, smoothed.encoder)[None].to(options.device)
    file = options.output / "attacks.jsonl"
    settings = hashlib.sha256(
        json.dumps({k: v for k, v in asdict(options).items() if k not in ("images", "output")}, default=str).encode()
    ).hexdigest()[:16]
    done = {row["path"] for row in (read_jsonl(file) if file.exists() else []) if row["settings"] == settings}
    for path in tqdm(paths, desc="attacking", unit="image"):
        if str(path) in done:
            continue
        image = prepare_image(path, smoothed.encoder)[None].to(options.device)
        generator = torch.Generator().manual_seed(options.seed)
        result = _run_attack(options, smoothed, image, target, generator)
        row = {
            "path": str(path),
            "settings": settings,
            "attack": options.attack,
            "defended": options.defended,
            "l2": float(torch.linalg.vector_norm(result.images - image)),
            "linf": float((result.images - image).abs().max()),
            **_distances(smoothed, image, result.images, target, generator),
        }
        save_image(result.images[0].cpu(), options.output / f"{path.stem}-{options.attack}.png")
        append_jsonl(file, row)
        tqdm.write(
            f"{path.name}: l2 {row['l2']:.3f}; cosine to the clean feature: bare {row['cosine_bare']:.3f}, "
            f"smoothed {row['cosine_smoothed']:.3f}"
        )
    print(f"Report: {file}\n{DISCLAIMER}")
    return 0


def _run_attack(
    options: AttackOptions, smoothed: SmoothedEncoder, image: Tensor, target: Tensor | None, generator: torch.Generator
) -> AttackResult:
    if options.attack in ("pgd", "apgd"):
        features = smoothed.mean_feature if options.defended else lambda x, samples: smoothed.reference(x)
        aim = smoothed.reference(image if target is None else target)
        eps = options.eps if options.eps is not None else (0.5 if options.norm == "l2" else 8 / 255)
        budget = AttackConfig(norm=options.norm, eps=eps, steps=options.steps or 20, restarts=options.restarts)
        objective = eot_cosine_objective(features, aim, options.samples, targeted=target is not None)
        return (pgd if options.attack == "pgd" else apgd)(objective, image, budget, generator)
    if target is None:
        raise ValueError(f"{options.attack} needs a target image.")
    eps = options.eps if options.eps is not None else (8 if options.attack == "attack-vlm" else 16) / 255
    budget = TransferConfig(eps=eps, steps=options.steps or 300)
    victim: Any = smoothed if options.defended else smoothed.encoder
    if options.attack == "attack-vlm":
        return attack_vlm([victim], image, target, budget)
    return (m_attack if options.attack == "m-attack" else foa)([victim], image, target, budget, generator=generator)


@torch.inference_mode()
def _distances(
    smoothed: SmoothedEncoder, image: Tensor, attacked: Tensor, target: Tensor | None, generator: torch.Generator
) -> dict[str, float | None]:
    """Cosines to the clean feature (and the target's) of the attacked image, bare and smoothed with 256 samples."""
    clean = smoothed.reference(image)
    bare = smoothed.reference(attacked)
    mean = smoothed.mean_feature(attacked, _ESTIMATE_SAMPLES, generator)
    cosine = lambda a, b: float(torch.cosine_similarity(a, b, dim=-1).mean())
    aim = None if target is None else smoothed.reference(target)
    return {
        "cosine_bare": cosine(clean, bare),
        "cosine_smoothed": cosine(clean, mean),
        "target_cosine_bare": None if aim is None else cosine(aim, bare),
        "target_cosine_smoothed": None if aim is None else cosine(aim, mean),
    }
