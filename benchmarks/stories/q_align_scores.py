"""Q-Align's columns, from the file that `q_align` leaves in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.stories.metric import Column
from benchmarks.stories.q_align import TASKS, digest, read
from benchmarks.stories.similarity import PerPicture
from benchmarks.stories.stories import MadeStory

_ABOUT = "of One-Align, from 1 to 5 (Wu et al. 2023; IdentityStory)"
QUALITY = Column("q_align_quality", "Q-Align quality", f"quality {_ABOUT}", digits=2)
AESTHETICS = Column("q_align_aesthetics", "Q-Align aesthetics", f"aesthetics {_ABOUT}", digits=2)


class QAlignMetric:
    """Scores that are there; pictures that came later have none."""

    columns = (QUALITY, AESTHETICS)

    def __init__(self, known: Mapping[str, Mapping[str, float]]) -> None:
        self._known = known

    @classmethod
    def of(cls, out: Path) -> QAlignMetric | None:
        """Those of a run's folder, if it has some."""
        known = read(out)
        return cls(known) if known else None

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        found = [self._known.get(digest(file), {}) for file in story.files]
        return {
            column.key: [own.get(task) for own in found]
            for column, task in zip(self.columns, TASKS, strict=True)
            if found
        }
