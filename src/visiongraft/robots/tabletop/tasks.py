"""The tabletop's tasks and their instance pairs, as data. Source: brief, section 9 (our world, after the paper's bowls and mugs)."""

from dataclasses import dataclass

from visiongraft.robots.tabletop.objects import TableObject

HELD_OUT_PAIR = 4
"""Index of the pair that training leaves out."""


@dataclass(frozen=True)
class TabletopTask:
    """Put one object on or into another.

    Args:
        name: without the suite.
        sentence: instruction with the words of both objects.
        done: name of the last subtask's signal.
        pairs: (manipulated, target) objects; the last pair is held out.
    """

    name: str
    sentence: str
    done: str
    pairs: tuple[tuple[TableObject, TableObject], ...]

    def instruction(self, pair: int) -> str:
        """What to do, in words."""
        manipulated, target = self.pairs[pair]
        return self.sentence.format(manipulated.words, target.words)


def _plate(colour: str, radius: float) -> TableObject:
    return TableObject(colour, "plate", (radius, 0.006), 0.3)


def _block(colour: str, half: float, half_height: float) -> TableObject:
    return TableObject(colour, "box", (half, half, half_height), 0.25)


def _bin(colour: str, half_x: float, half_y: float, half_height: float) -> TableObject:
    return TableObject(colour, "bin", (half_x, half_y, half_height), 0.4)


TASKS: dict[str, TabletopTask] = {
    task.name: task
    for task in (
        TabletopTask(
            "put_on_plate",
            "put the {} on the {}",
            "on_plate",
            (
                (TableObject("red", "box", (0.022, 0.022, 0.025)), _plate("white", 0.075)),
                (TableObject("blue", "cylinder", (0.022, 0.028)), _plate("yellow", 0.08)),
                (TableObject("green", "mug", (0.026, 0.03)), _plate("white", 0.085)),
                (TableObject("orange", "box", (0.02, 0.026, 0.02)), _plate("grey", 0.075)),
                (TableObject("purple", "mug", (0.024, 0.034)), _plate("green", 0.08)),
            ),
        ),
        TabletopTask(
            "stack",
            "stack the {} on the {}",
            "stacked",
            (
                (TableObject("red", "box", (0.02, 0.02, 0.02)), _block("blue", 0.036, 0.025)),
                (TableObject("yellow", "cylinder", (0.021, 0.022)), _block("green", 0.036, 0.025)),
                (TableObject("green", "box", (0.024, 0.024, 0.018)), _block("white", 0.04, 0.02)),
                (TableObject("orange", "mug", (0.024, 0.024)), _block("grey", 0.04, 0.022)),
                (TableObject("purple", "box", (0.022, 0.022, 0.024)), _block("yellow", 0.038, 0.028)),
            ),
        ),
        TabletopTask(
            "put_in_bin",
            "put the {} in the {}",
            "in_bin",
            (
                (TableObject("red", "box", (0.022, 0.022, 0.022)), _bin("grey", 0.07, 0.07, 0.025)),
                (TableObject("green", "cylinder", (0.02, 0.03)), _bin("blue", 0.075, 0.07, 0.025)),
                (TableObject("yellow", "mug", (0.024, 0.028)), _bin("white", 0.08, 0.075, 0.025)),
                (TableObject("blue", "box", (0.026, 0.02, 0.024)), _bin("orange", 0.07, 0.075, 0.028)),
                (TableObject("orange", "cylinder", (0.024, 0.026)), _bin("purple", 0.075, 0.075, 0.022)),
            ),
        ),
    )
}
