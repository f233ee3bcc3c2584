"""The gallery section: bundled weights attacked, defended and certified on the spot, beside the study's numbers."""

from pathlib import Path

import torch
from torch import Tensor

from visiongraft.media.images import center_square, resize
from visiongraft.methods.feature_smoothing import figures
from visiongraft.methods.feature_smoothing.attacks import AttackConfig, eot_cosine_objective, pgd
from visiongraft.methods.feature_smoothing.bounds import cosine_bound
from visiongraft.methods.feature_smoothing.certification import DISCLAIMER, Certificate, CertificateConfig, certify
from visiongraft.methods.feature_smoothing.pipeline import WEIGHTS, EncoderConfig, ZeroShot, load_smoothed
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig, unit
from visiongraft.studies import Figure, Report, Section, Table
from visiongraft.worlds.captioned import CLASS_PROMPTS
from visiongraft.worlds.scans import DIGITS, photograph, scanned_digits

_EPS, _SIGMA, _SAMPLES = 2.0, 0.5, 512
_PHOTOGRAPHS = ("cat", "temple")


def demo(output: Path) -> Section:
    """Attacks four scanned digits and two photographs, with and without the graft, and certifies them.

    Args:
        output: folder for the pictures.

    Returns:
        The method's section of the gallery.
    """
    smoothed = load_smoothed(EncoderConfig(encoder="small"), SmoothingConfig(sigma=_SIGMA, token_mode="pooled", chunk_size=128))
    head = ZeroShot("small", list(CLASS_PROMPTS))
    digits, labels = scanned_digits("test", 32)
    chosen = [int((labels == d).nonzero()[3]) for d in (2, 3, 5, 8)]
    photographs = [resize(center_square(photograph(name)), (32, 32)) for name in _PHOTOGRAPHS]
    images = torch.stack([*digits[chosen], *photographs])
    truth = [f"a scanned digit {DIGITS[int(labels[i])]}" for i in chosen] + [f"a photograph of the {n}" for n in _PHOTOGRAPHS]
    attacked_bare, attacked_smoothed = (_attack(smoothed, images, defended) for defended in (False, True))
    config = CertificateConfig(n=_SAMPLES, eps=(0.25, 0.5, 1.0))
    certificates = [certify(smoothed, image, config, classes=head.classes) for image in images]
    strip = _strip(output / "attacks.png", smoothed, head, images, attacked_bare, attacked_smoothed, truth, certificates)
    study = Report.read(WEIGHTS / "study")
    for figure in study.figures:
        figure.path = str(WEIGHTS / "study" / figure.path)
    return Section(
        method="feature_smoothing",
        title="Certified feature smoothing",
        arxiv="2601.16200",
        lead=(
            "An image encoder is fooled by a change nobody would notice. Averaged over Gaussian noise, with a purifier in front and a "
            "small mapper behind, the same encoder stands firm — and for each image comes a number: every image within this l2 "
            "distance keeps its features at least this similar. The pictures and certificates of the first figure and table were "
            "computed just now, with the bundled encoder of 32 x 32 pixels."
        ),
        figures=[strip, *study.figures],
        tables=[_table(truth, certificates), *study.tables],
        claims=list(study.claims),
        notes=[
            DISCLAIMER,
            "The encoder was trained on crops of these photographs and on other scans of digits; the digits shown are held out.",
            *[note for note in study.notes if note != DISCLAIMER],
        ],
        commands=[
            "visiongraft feature_smoothing certify photo.jpg",
            "visiongraft feature_smoothing attack photo.jpg --defended false",
            "visiongraft feature_smoothing study",
        ],
        html=None,
    )


def _attack(smoothed: SmoothedEncoder, images: Tensor, defended: bool) -> Tensor:
    """Untargeted attack in l2, on the bare encoder or through everything that defends it."""
    generator = torch.Generator().manual_seed(0)
    if defended:
        features = lambda x, samples: smoothed.mean_feature(x, samples, generator)
    else:
        features = lambda x, samples: smoothed.reference(x)
    objective = eot_cosine_objective(features, smoothed.reference(images), samples=8)
    budget = AttackConfig(norm="l2", eps=_EPS, steps=20, restarts=1)
    return pgd(objective, images, budget, generator).images


@torch.inference_mode()
def _strip(
    path: Path,
    smoothed: SmoothedEncoder,
    head: ZeroShot,
    images: Tensor,
    attacked_bare: Tensor,
    attacked_smoothed: Tensor,
    truth: list[str],
    certificates: list[Certificate],
) -> Figure:
    generator = torch.Generator().manual_seed(1)
    clean = smoothed.reference(images)[:, 0]
    bare = unit(smoothed.readout(smoothed.encoder(attacked_bare)))
    firm = smoothed.mean_feature(attacked_smoothed, 256, generator)[:, 0]
    said = {name: head.predict(f) for name, f in (("clean", clean), ("bare", bare), ("firm", firm))}
    rows = []
    for i, image in enumerate(images):
        change = figures.amplified(attacked_bare[i] - image)
        # what the smoothed encoder sees of the attacked image: noise, then the purifier's picture
        noisy = attacked_smoothed[i] + _SIGMA * torch.randn(image.shape, generator=generator)
        seen = smoothed.purifier(noisy[None], torch.tensor([_SIGMA]))[0] if smoothed.purifier is not None else noisy
        radius = certificates[i].radii["reference"]
        captions = [
            _short(said["clean"][i]),
            "amplified",
            f"{_verdict(said['bare'][i], truth[i])}\ncosine {float(clean[i] @ bare[i]):.2f}",
            "one of the noisy copies",
            f"{_verdict(said['firm'][i], truth[i])}\ncosine {float(torch.cosine_similarity(clean[i], firm[i], dim=0)):.2f}, "
            f"certified to l2 {max(radius, 0):.2f}",
        ]
        rows.append(([image, change, attacked_bare[i], noisy, seen], captions))
    headers = ["image", "attack", "bare encoder", "noise", "with the graft"]
    figures.attack_strip(path, rows, headers)
    return Figure(
        title="The same encoder, bare and grafted",
        path=str(path),
        alt="Six images; an attack fools the bare encoder and not the grafted one",
        caption=f"Attacks of l2 size {_EPS} (on average {255 * _EPS / 3072**0.5:.0f} grey levels a pixel) on held-out digits and on "
        "photographs: larger than the certified radii, so standing firm here is measured, not certified. The bare encoder and "
        "the grafted one are each attacked with full knowledge of themselves. The last column is one noisy copy after the purifier.",
    )


def _short(prompt: str) -> str:
    return prompt.removeprefix("a scanned ").removeprefix("a photograph of the ")


def _verdict(said: str, truth: str) -> str:
    return f"{'still' if said == truth else 'fooled:'} {_short(said)}"


def _table(truth: list[str], certificates: list[Certificate]) -> Table:
    rows = [
        [
            name,
            round(c.reference.mean, 3),
            round(c.reference.lower, 3),
            *(round(max(c.radii[b], 0), 3) for b in ("fcsb", "reference", "smoothed")),
            round(float(cosine_bound(c.reference.lower, 0.5 / c.sigma, "reference")), 3),
            "abstains" if c.prediction is None or c.prediction.vote_radius == 0 else f"{c.prediction.vote_radius:.3f}",
        ]
        for name, c in zip(truth, certificates, strict=True)
    ]
    return Table(
        title="Certificates of these images",
        columns=["image", "score S", "lower bound", "radius F", "radius A", "radius B", "cosine at l2 0.5 (A)", "prediction radius (vote)"],
        rows=rows,
        note=f"sigma {_SIGMA}, n {_SAMPLES}, alpha 0.001, pooled features; a radius keeps cosine 0.5. -1: nothing certified.",
    )
