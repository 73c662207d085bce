"""From pictures to figures: every metric on every story, story by story so that few pictures are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.quality.metrics import Interval, bootstrap
from benchmarks.stories.generate import Outcome
from benchmarks.stories.metric import Column, Metric
from benchmarks.stories.similarity import PerPicture, mean
from benchmarks.stories.stories import MadeStory

EVALUATIONS = Column("evaluations", "UNet evaluations a frame", "of one sample each", digits=1)
SECONDS = Column("seconds", "seconds a frame", "encoding, denoising and decoding, nothing else on the server", digits=2)
PROCESSOR = Column(
    "processor", "processor seconds a frame", "of all the server's processes, which other work hardly changes", digits=2
)
COSTS = (EVALUATIONS, SECONDS, PROCESSOR)
DISCOVERY_EVALUATIONS = Column(
    "discovery_evaluations",
    "discovery: UNet evaluations a story",
    "of the candidates of its characters, at the model's own steps; not in the column of a frame",
    digits=0,
)
DISCOVERY_SECONDS = Column(
    "discovery_seconds",
    "discovery: seconds a story",
    "until its characters are known; not in that of a frame",
    digits=1,
)
DISCOVERY = (DISCOVERY_EVALUATIONS, DISCOVERY_SECONDS)
RENDERS = "renders"
"""The row of true pictures, which bounds what can be measured."""


@dataclass(frozen=True)
class Scored:
    """A story by one method: what became of it, and for each column a value for each picture."""

    outcome: Outcome
    prompts: tuple[str, ...] = ()
    values: Mapping[str, PerPicture] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """One number a column: means over pictures, and costs."""
        means = {key: mean(values) for key, values in self.values.items()}
        known = {key: value for key, value in means.items() if value is not None}
        cost = self.outcome.cost
        if cost is None:
            return known
        known |= {EVALUATIONS.key: cost.evaluations, SECONDS.key: cost.seconds}
        if cost.processor is not None:
            known[PROCESSOR.key] = cost.processor
        if cost.discovery is not None:
            known |= {
                DISCOVERY_EVALUATIONS.key: cost.discovery.evaluations,
                DISCOVERY_SECONDS.key: cost.discovery.seconds,
            }
        return known


def cost_columns(rows: Mapping[str, Sequence[Scored]]) -> tuple[Column, ...]:
    """Those of costs; those of discovery only where characters were found for a story."""
    costs = (story.outcome.cost for stories in rows.values() for story in stories)
    discovered = any(cost is not None and cost.discovery is not None for cost in costs)
    return (*COSTS, *DISCOVERY) if discovered else COSTS


def score(outcome: Outcome, made: MadeStory | None, metrics: Iterable[Metric]) -> Scored:
    """Scores one story; one that was refused has no values."""
    if made is None:
        return Scored(outcome)
    values = {key: list(column) for metric in metrics for key, column in metric.measure(made).items()}
    return Scored(outcome, made.prompts, values)


def summary(stories: Sequence[Scored]) -> dict[str, Interval]:
    """Each figure over the stories that have it, with a bootstrap 95 % interval over stories."""
    rows = [story.figures() for story in stories]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: bootstrap([row[key] for row in rows if key in row]) for key in keys}


def differences(stories: Sequence[Scored], baseline: Sequence[Scored]) -> dict[str, Interval]:
    """Each figure minus the baseline's on the same story: the interval tells whether a method changes it."""
    pairs = [(ours.figures(), theirs.figures()) for ours, theirs in zip(stories, baseline, strict=True)]
    keys = dict.fromkeys(key for ours, theirs in pairs for key in ours if key in theirs)
    return {
        key: bootstrap([ours[key] - theirs[key] for ours, theirs in pairs if key in ours and key in theirs])
        for key in keys
    }
