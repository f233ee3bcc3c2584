"""Demonstrations: recorded episodes, and files of them that robomimic, MimicGen and LIBERO's tools read.

Record some and write them::

    environment = make_environment("tabletop/put_on_plate")
    expert = scripted_expert(environment)
    with DemonstrationWriter("plate.hdf5", describe_environment(environment)) as writer:
        for seed in range(5):
            if (demonstration := record(environment, expert, seed)) is not None:
                writer.append(demonstration)

Read them again: ``read_demonstrations("plate.hdf5")`` is a sequence of :class:`Demonstration`.
"""

from visiongraft.robots.demonstration_reading import DemonstrationFile, read_demonstrations
from visiongraft.robots.demonstration_writing import DemonstrationWriter, describe_environment, write_demonstrations
from visiongraft.robots.episodes import Demonstration
from visiongraft.robots.recording import Replay, annotate, record, replay

__all__ = [
    "Demonstration",
    "DemonstrationFile",
    "DemonstrationWriter",
    "Replay",
    "annotate",
    "describe_environment",
    "read_demonstrations",
    "record",
    "replay",
    "write_demonstrations",
]
