"""From stories to figures: renders or makes the pictures, reads them, scores them, and lists every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.progress import Progress

from benchmarks.quality import metrics
from benchmarks.quality.attributes import PERSON, Reading
from benchmarks.quality.generate import Pictures, PictureStore, Sampling, Setting, make
from benchmarks.quality.network import Reader
from benchmarks.quality.stories import BenchStory
from storyloom_model.denoiser import Denoiser
from storyloom_training.storydb.picture import render

RENDERS = "renders"  # the row of the true pictures
BASELINE = "none"  # the setting that the others are compared with


@dataclass(frozen=True)
class Result:
    """Everything measured of one setting, story by story."""

    pictures: list[Pictures]
    readings: list[list[Reading]]
    scores: list[metrics.StoryScore]


def score(story: BenchStory, readings: Sequence[Reading], pictures: Pictures) -> metrics.StoryScore:
    """The figures of one story."""
    visible = [story.visible(frame) for frame in range(len(readings))]
    scenes = [record.scene for record in story.group.frames]
    unstated = [name for name in PERSON if name not in story.stated]
    return metrics.StoryScore(
        prompt=metrics.prompt_agreement(readings, story.stated, scenes, visible).fraction,
        consistency=metrics.cross_frame_agreement(readings, visible).fraction,
        consistency_stated=metrics.cross_frame_agreement(readings, visible, story.stated).fraction,
        consistency_unstated=metrics.cross_frame_agreement(readings, visible, unstated).fraction,
        background=metrics.background_distance(pictures),
        scenes=metrics.scene_diversity(readings),
    )


def measure(reader: Reader, stories: Sequence[BenchStory], pictures: list[Pictures]) -> Result:
    """Reads and scores the pictures of each story."""
    readings = [reader.read(made) for made in pictures]
    scores = [score(*parts) for parts in zip(stories, readings, pictures, strict=True)]
    return Result(pictures, readings, scores)


def render_stories(stories: Sequence[BenchStory], size: int) -> list[Pictures]:
    """The true pictures of the stories."""
    return [
        np.stack([render(story.group, frame, size).image for frame in range(len(story.prompts))]) for story in stories
    ]


def make_stories(
    denoiser: Denoiser,
    store: PictureStore,
    sampling: Sampling,
    setting: Setting,
    stories: Sequence[BenchStory],
    rows: int,
    progress: Progress,
) -> list[Pictures]:
    """The pictures of each story in one setting, from the store where it has them."""  # fmt: skip
    jobs = [sampling.job(story, setting) for story in stories]
    pictures = {place: stored for place, job in enumerate(jobs) if (stored := store.get(job)) is not None}
    missing = [place for place in range(len(jobs)) if place not in pictures]
    task = progress.add_task(setting.name, total=len(jobs), completed=len(pictures))
    for place, made in zip(missing, make(denoiser, [jobs[place] for place in missing], rows), strict=True):
        store.put(jobs[place], made)
        pictures[place] = made
        progress.advance(task)
    return [pictures[place] for place in range(len(jobs))]


def document(
    results: Mapping[str, Result],
    rows: Mapping[str, Mapping[str, metrics.Interval]],
    stories: Sequence[BenchStory],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON record of a run: what made it, the figures, and the raw numbers of every story."""  # fmt: skip
    baseline = results.get(BASELINE)
    return dict(facts) | {
        "figures": {name: {key: asdict(value) for key, value in row.items()} for name, row in rows.items()},
        "differences": {
            name: {
                key: asdict(value) for key, value in metrics.paired_differences(result.scores, baseline.scores).items()
            }
            for name, result in results.items()
            if baseline is not None and name not in (BASELINE, RENDERS)
        },
        "stories": [
            {
                "index": story.index,
                "prompts": [prompt.text for prompt in story.prompts],
                "framings": [record.framing for record in story.group.frames],
                "stated": {name: sorted(values) for name, values in story.stated.items()},
                "scores": {name: result.scores[place].as_dict() for name, result in results.items()},
                "readings": {name: result.readings[place] for name, result in results.items()},
            }
            for place, story in enumerate(stories)
        ],
    }
