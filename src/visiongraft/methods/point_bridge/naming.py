"""Which objects a task is about: given names, rules over a vocabulary, or a vision-language model.

A *namer* maps (image, instruction) to names in the order in which the task touches them.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from visiongraft.methods.point_bridge.chat import Chat

Namer = Callable[[UInt8[np.ndarray, "height width 3"], str], list[str]]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "mug": ("cup", "coffee mug"),
    "block": ("cube", "brick", "box"),
    "box": ("cube", "block"),
    "plate": ("dish", "saucer"),
    "bin": ("container", "basket", "tray"),
    "bowl": ("basin",),
    "cylinder": ("can", "tube"),
    "sphere": ("ball",),
}
"""Other words for the last word of a name."""

_OBJECTS = re.compile(r"<objects>\s*\[(.*?)\]\s*</objects>", re.DOTALL)
_NAME = re.compile(r"[^\W_][\w '/&.()-]{0,79}")
_MAX_NAMES = 16

# our own wording of what the brief asks for; the replies' format is the paper's
_LOOK = """You see what a robot's camera sees. The robot has to do this: "{instruction}".
First think about the steps in which it would do that, one after the other.
Then name the objects that it has to touch, move or place something on, in the order in which the steps need them.
- Leave out the robot itself: its arm, gripper, hands.
- Name whole objects, not their parts: "drawer", not "handle of the drawer"; "mug", not "rim of the mug".
- Leave out everything that the task does not need, even if it is in view.
- Name only what you can see in the image.
End with the list, exactly like this: <objects>[first object, second object]</objects>"""
_REDUCE = """A robot has to do this: "{instruction}".
Somebody listed the objects that it needs: <objects>[{names}]</objects>
If two entries mean the same thing, or one is a part of another, keep only the one that the robot acts on: of "cabinet" and
"cabinet drawer" keep "cabinet drawer". Keep the order. Add nothing.
Answer with the shortened list, exactly like this: <objects>[first object, second object]</objects>"""


def given_names(names: Sequence[str]) -> Namer:
    """A namer that knows the answer.

    Raises:
        ValueError: no names, an empty one, or the same twice.
    """
    fixed = [name.strip() for name in names]
    if not fixed or not all(fixed):
        raise ValueError("Names of objects must be given, and none may be empty, such as given_names(['mug', 'plate']).")
    if len(set(fixed)) < len(fixed):
        raise ValueError(
            f"Names of objects must differ, got {', '.join(fixed)}; tell identical objects apart by a number: 'bowl 1', 'bowl 2'."
        )
    return lambda image, instruction: list(fixed)


def rule_namer(vocabulary: Sequence[str], synonyms: Mapping[str, Sequence[str]] = SYNONYMS) -> Namer:
    """Names of a known scene in their order of appearance in the instruction. Offline stand-in: it reads words, not the image.

    A name is found as a whole ("red_box" by "red box"), with its last word replaced by a synonym ("red cube"), or by its last word
    alone where no other name of the vocabulary answers to it.

    Args:
        vocabulary: names of the objects in the scene; underscores count as spaces.
        synonyms: other words for a name's last word.

    Returns:
        A namer; it raises ValueError, listing what the scene holds, where the instruction mentions none of it, or mentions something
        that several objects answer to.
    """
    if not vocabulary:
        raise ValueError("A rule-based namer needs a vocabulary: the names of the objects in the scene.")
    spellings = {name: _spellings(name, synonyms) for name in vocabulary}

    def name(image: UInt8[np.ndarray, "height width 3"], instruction: str) -> list[str]:
        text = " ".join(re.findall(r"\w+", instruction.lower().replace("_", " ")))
        found = _find(text, {phrase: name for name, (full, _) in spellings.items() for phrase in full})
        short: dict[str, list[str]] = {}
        for candidate, (_, heads) in spellings.items():
            for head in heads:
                short.setdefault(head, []).append(candidate)
        places = dict(found)
        taken = [(start, end) for start, end in found.values()]
        for head, candidates in short.items():
            spans = [match.span() for match in re.finditer(rf"\b{re.escape(head)}s?\b", text)]
            free = [span for span in spans if not any(span[0] < end and start < span[1] for start, end in taken)]
            left = [candidate for candidate in candidates if candidate not in found]
            exact = [candidate for candidate in left if candidate.replace("_", " ").lower().split()[-1] == head] or left
            if free and len(exact) > 1:
                raise ValueError(f"{head!r} in {instruction!r} may be any of {', '.join(exact)}; say which.")
            if free and exact:
                places.setdefault(exact[0], free[0])
        if not places:
            raise ValueError(
                f"The instruction {instruction!r} names nothing that is in the scene; the scene holds {', '.join(vocabulary)}."
            )
        return sorted(places, key=lambda candidate: places[candidate][0])

    return name


def _spellings(name: str, synonyms: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Full phrases, and heads (last words) that may stand alone."""
    *adjectives, head = name.lower().replace("_", " ").split()
    heads = [head, *synonyms.get(head, ())]
    return [" ".join([*adjectives, word]) for word in heads], heads


def _find(text: str, phrases: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """First place of every name; longer phrases first, so that "coffee mug" is not also "mug"."""
    places: dict[str, tuple[int, int]] = {}
    taken: list[tuple[int, int]] = []
    for phrase in sorted(phrases, key=lambda phrase: (-phrase.count(" "), -len(phrase))):
        for match in re.finditer(rf"\b{re.escape(phrase)}s?\b", text):
            if not any(match.start() < end and start < match.end() for start, end in taken):
                taken.append(match.span())
                if phrases[phrase] not in places or match.start() < places[phrases[phrase]][0]:
                    places[phrases[phrase]] = match.span()
    return places


def chat_namer(chat: Chat) -> Namer:
    """A vision-language model's answer, in two questions: what the task touches, and the shortest list without doubles.

    Args:
        chat: :class:`~visiongraft.methods.point_bridge.chat.GeminiChat`, ``OpenAiChat``, ``TransformersChat`` or a callable like them.

    Source: Point Bridge's scene filtering (brief, 2.4); the wording is ours.
    """

    def name(image: UInt8[np.ndarray, "height width 3"], instruction: str) -> list[str]:
        quoted = " ".join(instruction.replace('"', "'").split())
        names = parse_objects(chat(_LOOK.format(instruction=quoted), image))
        return parse_objects(chat(_REDUCE.format(instruction=quoted, names=", ".join(names)), None))

    return name


def parse_objects(reply: str) -> list[str]:
    """Names out of every ``<objects>[a, b]</objects>`` of a reply: lower case, unique, in order.

    Raises:
        ValueError: no such list, an empty one, more than 16 names, or a name that is none.
    """
    lists = _OBJECTS.findall(reply)
    if not lists:
        raise ValueError(f"The model's reply holds no <objects>[…]</objects> list; it begins with {reply[:80]!r}. Give the names yourself.")
    names = list(dict.fromkeys(name for found in lists for part in found.split(",") if (name := part.strip(" \t\r\n'\"").lower())))
    if not names:
        raise ValueError("The model named no objects: it sees none of what the instruction needs. Give the names yourself.")
    if len(names) > _MAX_NAMES:
        raise ValueError(f"The model named {len(names)} objects; at most {_MAX_NAMES} are accepted. Give the names yourself.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"The model's reply has {name[:80]!r} in its list, which is no name of an object.")
    return names
