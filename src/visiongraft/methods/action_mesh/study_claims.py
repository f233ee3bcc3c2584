"""The study's claims. The rules were written before anything was measured.

Distances are in units of the box [-1, 1]. What the headline compares is on clips of the motion ``const``, as the brief's pass bars are:
where a tail crosses the middle, its picture does not tell whether it goes on or turns back. Ablations, anchors and windows are on clips
of both motions, compared with the same clips of the full method.
"""

import math
from collections.abc import Callable
from typing import Any

from visiongraft.methods.action_mesh.study_options import StudyBudget
from visiongraft.methods.action_mesh.study_training import AUTOENCODER
from visiongraft.methods.action_mesh.study_values import Results, agreement, interval_text, paired, seed_values
from visiongraft.studies import Claim
from visiongraft.studies.claim import spread

CONST = ("const",)
SAME_SHAPE = 0.010
"""Most that CD-3D or CD-4D may differ where the paper says that it does not."""
AGREES, GUESSES = 0.80, 0.65
IOU_GAIN, IOU_SAME = 0.05, 0.03
VERTEX_SHARE = 0.4


def study_claims(results: Results, plan: StudyBudget) -> list[Claim]:
    """Every claim with its values and verdict."""
    return [
        stays_together(results),
        shapes_as_good(results),
        one_side(results),
        overlap(results),
        more_than_noise(results),
        stage_two_keeps(results),
        vertices(results),
        steadier(results),
        *(ablation(results, plan, *words) for words in _ABLATIONS),
        anchors(results, plan),
        windows(results),
    ]


_ABLATIONS = (
    ("RoPE", "Without the rotary frame number stage I is less consistent.", "0.069 to 0.084", "no-rope", "one", "cd_4d"),
    (
        "masked sources",
        "Without known frames stage I is less consistent.",
        "0.069 to 0.116",
        "no-sources",
        "one",
        "cd_4d",
    ),
    ("normals", "Without normals in the queries stage II follows the surface less well.", "0.137 to 0.148", "no-normals", "two", "cd_m"),
    ("pair in the tokens", "With the time pair in the queries stage II is worse.", "0.137 to 0.151", "pair-in-queries", "two", "cd_m"),
)
_NAMES = {"cd_3d": "CD-3D", "cd_4d": "CD-4D", "cd_m": "CD-M"}


def stays_together(results: Results) -> Claim:
    """CD-4D of the base and of stage I."""
    base, graft = (seed_values(results, key, "cd_4d", CONST) for key in ("base", "one"))
    return Claim(
        name="one shape over time",
        sentence="Stage I makes the shapes of all frames one shape in one pose.",
        source="ablations: CD-4D 0.187 without, 0.069 with (both stages)",
        quantity=f"CD-4D: single frames, against stage I; difference {_difference(results, 'one', 'base', 'cd_4d')}",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g: g < b, base, graft),
        rule="lower in every seed",
    )


def shapes_as_good(results: Results) -> Claim:
    """CD-3D of the base and of stage I."""
    base, graft = (seed_values(results, key, "cd_3d", CONST) for key in ("base", "one"))
    return Claim(
        name="single shapes unchanged",
        sentence="The shape of each frame by itself stays as good as the base's.",
        source="ablations: CD-3D 0.050 without and with",
        quantity=f"CD-3D: single frames, against stage I; difference {_difference(results, 'one', 'base', 'cd_3d')}",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g: abs(g - b) <= SAME_SHAPE, base, graft),
        rule=f"at most {SAME_SHAPE:.3f} apart in every seed",
    )


def one_side(results: Results) -> Claim:
    """Side agreement of the base and of stage I."""
    base, graft = (agreement(results, key, CONST) for key in ("base", "one"))
    return Claim(
        name="one answer to the ambiguity",
        sentence="Where the picture leaves the depth open, single frames guess anew each time; stage I keeps to what frame 0 says.",
        source="figure 3; bars of the brief",
        quantity="share of frames whose tail is on the side that frame 0 says (chance 0.5)",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g: b <= GUESSES and g >= AGREES, base, graft),
        rule=f"at least {AGREES:.2f} with and at most {GUESSES:.2f} without, in every seed",
    )


def overlap(results: Results) -> Claim:
    """Overlap with the truth, in one pose and frame by frame."""
    base, graft = (seed_values(results, key, "iou_4d", CONST) for key in ("base", "one"))
    alone = [seed_values(results, key, "iou_3d", CONST) for key in ("base", "one")]
    return Claim(
        name="overlap",
        sentence="In one pose for the whole clip, shapes overlap more with the truth; each by itself as much as before.",
        source="the same pattern as overlap; bars of the brief",
        quantity=f"IoU-4D: single frames, against stage I (IoU-3D {spread(alone[0])}, against {spread(alone[1])})",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g, b3, g3: g - b >= IOU_GAIN and abs(g3 - b3) <= IOU_SAME, base, graft, *alone),
        rule=f"IoU-4D at least {IOU_GAIN:.2f} more with IoU-3D at most {IOU_SAME:.2f} apart, in every seed",
    )


def more_than_noise(results: Results) -> Claim:
    """The cheap control: the base with one noise for all frames."""
    control, graft = (seed_values(results, key, "cd_4d", CONST) for key in ("same-noise", "one"))
    return Claim(
        name="more than equal noise",
        sentence="Starting all frames from the same noise does not do what stage I does.",
        source="control of the brief",
        quantity=f"CD-4D: single frames from one noise, against stage I; difference {_difference(results, 'one', 'same-noise', 'cd_4d')}",
        without=control,
        with_graft=graft,
        held=_every(lambda c, g: g < c, control, graft),
        rule="lower in every seed",
    )


def stage_two_keeps(results: Results) -> Claim:
    """CD-4D before and after stage II."""
    one, two = (seed_values(results, key, "cd_4d", CONST) for key in ("one", "two"))
    return Claim(
        name="one mesh without loss",
        sentence="Moving one mesh through the clip is as near to the truth as a mesh of every frame.",
        source="ablations: CD-4D 0.069 without and with stage II",
        quantity=f"CD-4D: stage I, against stage I + II; difference {_difference(results, 'two', 'one', 'cd_4d')}",
        without=one,
        with_graft=two,
        held=_every(lambda a, b: b <= a + SAME_SHAPE, one, two),
        rule=f"at most {SAME_SHAPE:.3f} more in every seed",
    )


def vertices(results: Results) -> Claim:
    """Stage II on the true latents, vertex by vertex."""
    key = f"{AUTOENCODER}, true"
    nearest, error, still = (seed_values(results, key, name, CONST) for name in ("nearest", "error", "still"))
    return Claim(
        name="vertices go where they belong",
        sentence="Stage II knows where each vertex goes, not only what the shape is.",
        source="bar of the brief",
        quantity="mean vertex error on true latents: nearest vertex of the true target mesh, against stage II "
        f"(staying at the source {spread(still)})",
        without=nearest,
        with_graft=error,
        held=_every(lambda n, e: e <= VERTEX_SHARE * n, nearest, error),
        rule=f"at most {VERTEX_SHARE:.1f} of the nearest vertex's error in every seed",
    )


def steadier(results: Results) -> Claim:
    """Flicker of the base and of both stages."""
    base, graft = (seed_values(results, key, "detour", CONST) for key in ("base", "two"))
    return Claim(
        name="no flicker",
        sentence="Animations do not flicker as meshes of single frames do.",
        source="figure 3 and the videos",
        quantity="detour between neighbouring frames: single frames, against stage I + II (true shapes "
        f"{spread(seed_values(results, 'truth', 'detour', CONST))})",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g: g < b, base, graft),
        rule="lower in every seed",
    )


def ablation(results: Results, plan: StudyBudget, name: str, sentence: str, paper: str, key: str, full: str, distance: str) -> Claim:
    """The full method against it without one part."""
    clips, metric = plan.side_clips, _NAMES[distance]
    without, with_graft = (seed_values(results, one, distance, clips=clips) for one in (key, full))
    difference = interval_text(paired(results, full, key, distance, clips=clips))
    return Claim(
        name=name,
        sentence=sentence,
        source=f"ablations: {metric} {paper}",
        quantity=f"{metric}: without, against the full method; difference {difference}",
        without=without,
        with_graft=with_graft,
        held=_every(lambda w, f: f < w, without, with_graft),
        rule="the full method lower in every seed",
    )


def anchors(results: Results, plan: StudyBudget) -> Claim:
    """Anchors at the beginning, in the middle, and at the end."""
    first, middle, last = (seed_values(results, key, "cd_4d", clips=plan.side_clips) for key in ("one", "middle", "last"))
    return Claim(
        name="anchor",
        sentence="The earlier the anchor, the better.",
        source="anchor: CD-4D 0.069 first, 0.074 middle, 0.079 last",
        quantity=f"CD-4D of stage I: anchor at the end, against the beginning (middle {spread(middle)})",
        without=last,
        with_graft=first,
        held=_every(lambda f, m, e: f <= m <= e, first, middle, last),
        rule="first <= middle <= last in every seed",
    )


def windows(results: Results) -> Claim:
    """Clips of two windows."""
    base, graft = (seed_values(results, key, "cd_4d") for key in ("long-base", "two-windows"))
    one = seed_values(results, "one-window", "cd_4d")
    return Claim(
        name="longer clips",
        sentence="Windows that share a frame carry the shape through clips that are longer than one.",
        source="31 frames: CD-4D 0.098 in two windows",
        quantity=f"CD-4D: single frames, against stage I in two windows (in one longer window {spread(one)})",
        without=base,
        with_graft=graft,
        held=_every(lambda b, g: g < b, base, graft),
        rule="lower in every seed",
    )


def _difference(results: Results, key: str, other: str, name: str, motions: tuple[str, ...] = CONST) -> str:
    return interval_text(paired(results, key, other, name, motions))


def _every(rule: Callable[..., bool], *values: tuple[float, ...]) -> bool:
    """Whether the rule holds in every seed; never where a value is missing."""
    rows: list[Any] = list(zip(*values, strict=True))
    return all(all(map(math.isfinite, row)) and rule(*row) for row in rows)
