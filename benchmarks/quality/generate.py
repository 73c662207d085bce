"""Makes the pictures of the scored stories, a few at a time, and keeps them on disk so that a run can resume."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.quality.stories import BenchStory
from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.noise import frame_seed

Pictures = npt.NDArray[np.uint8]  # [frames, height, width, 3] RGB


@dataclass(frozen=True)
class Setting:
    """How stories are made: with which weights, and whether frames see each other."""

    name: str
    adapter: str | None
    cross_frame: bool


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("none", None, cross_frame=False),
        Setting("amsa", "amsa", cross_frame=True),
        Setting("amsa-mask", "amsa-mask", cross_frame=True),
    )
}


@dataclass(frozen=True)
class Sampling:
    """What all settings share. Sizes in pixels; a frame's noise follows from `seed`, the story and the frame alone."""

    steps: int
    seed: int
    guidance_scale: float
    solver: str
    width: int
    height: int

    def as_dict(self) -> dict[str, int | float | str]:
        return asdict(self)

    def job(self, story: BenchStory, setting: Setting) -> StoryJob:
        story_seed = frame_seed(self.seed, story.index)
        return StoryJob(
            frames=tuple(FrameJob(prompt, frame_seed(story_seed, i)) for i, prompt in enumerate(story.prompts)),
            negative_prompt="",
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            solver=self.solver,
            width=self.width,
            height=self.height,
            adapter=setting.adapter,
            cross_frame=setting.cross_frame,
        )


@dataclass(frozen=True)
class PictureStore:
    """Pictures by (model, number type, job): `folder/<digest>.npz`. What another model or job made is never found."""

    folder: Path
    model: str
    dtype: str

    def _file(self, job: StoryJob) -> Path:
        digest = hashlib.sha256(f"{self.model} {self.dtype} {job!r}".encode()).hexdigest()
        return self.folder / f"{digest[:32]}.npz"

    def get(self, job: StoryJob) -> Pictures | None:
        file = self._file(job)
        if not file.exists():
            return None
        with np.load(file) as stored:
            pictures: Pictures = stored["pictures"]
        return pictures

    def put(self, job: StoryJob, pictures: Pictures) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(job).with_suffix(".partial")
        with partial.open("wb") as target:
            np.savez_compressed(target, pictures=pictures)
        os.replace(partial, self._file(job))


def fingerprint(package: Path) -> str:
    """A digest of every file of a model package but its texts for people."""
    digest = hashlib.sha256()
    for file in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".md"):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        with file.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def batches(jobs: Sequence[StoryJob], rows: int) -> Iterator[Sequence[StoryJob]]:
    """Splits jobs, in order, into batches of at most `rows` UNet rows; a job that is larger goes alone."""
    start = taken = 0
    for position, job in enumerate(jobs):
        if position > start and taken + job.rows > rows:
            yield jobs[start:position]
            start, taken = position, 0
        taken += job.rows
    if start < len(jobs):
        yield jobs[start:]


def make(denoiser: Denoiser, jobs: Sequence[StoryJob], rows: int) -> Iterator[Pictures]:
    """Makes the pictures of each job, in order and batch by batch; the jobs must be of one setting.

    Raises:
        RuntimeError: a story went wrong, so that scoring the others would flatter the model.
    """
    for batch in batches(jobs, rows):
        states = [denoiser.encode(job) for job in batch]
        while not all(state.done for state in states):
            denoiser.step(states)
            broken = [state.error for state in states if state.error]
            if broken:
                raise RuntimeError(f"a story of the setting went wrong: {broken[0]}; try --dtype float32")
        for job, state in zip(batch, states, strict=True):
            yield denoiser.decode(state, range(len(job.frames)))
