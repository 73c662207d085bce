"""Writes what was found: a JSON file for each method, and one page and one plot of all methods in the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.long.figures import Agreement, Course, WindowCost

PAGE, PLOT = "long.md", "long.png"
_HEAD = (
    "method, story", "steps", "first {n} among themselves", "last {n} with first {n}", "difference",
    "to the reference: first, last", "faces", "processor seconds a frame: first, last tenth", "growth",
    "wall seconds: first, last tenth", "growth",
)  # fmt: skip


@dataclass(frozen=True)
class StoryFigures:
    """What is known of one story by one method.

    Attributes:
        identity: of the first block and the last one.
        blocks: the first block with each block, itself first; None where too few faces are found.
        to_reference: mean cosine of a face with that of the reference picture, for each block.
        windows: what frames cost.
        processor, wall: how that goes through the story.
    """

    name: str
    identity: Agreement | None
    blocks: Sequence[Agreement | None]
    to_reference: Sequence[float | None]
    windows: Sequence[WindowCost]
    processor: Course | None
    wall: Course | None


def write(method: str, stories: Sequence[StoryFigures], facts: Mapping[str, Any], folder: Path) -> None:
    """Writes METHOD.json, then the page and the plot of all methods that are there.

    Args:
        facts: `about`, `block`, `frames`, `steps`, `command`, `date`, `machine`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {"method": method, **facts, "stories": [asdict(story) for story in stories]}
    (folder / f"{method.replace(':', '-')}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    (folder / PAGE).write_text(page(documents), encoding="utf-8")
    plot(documents, folder / PLOT)


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The page: a row for each story of each method, and what the columns are."""
    block = documents[0]["block"]
    head = [heading.format(n=block) for heading in _HEAD]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for document in documents:
        lines += ["| " + " | ".join(_row(document, story)) + " |" for story in document["stories"]]
    methods = "\n".join(
        f"- **{document['method']}**: {document['about']}. {document['frames']} frames, {document['date']}, "
        f"`{document['command']}`"
        for document in documents
    )
    return (
        "# Long stories\n\n" + "\n".join(lines) + "\n\n"
        "Identity agreement is the cosine of the judge's embeddings of two frames' faces, over all pairs with a face "
        "in both; brackets hold bootstrap 95 % intervals over frames, the difference is on the same draws. "
        f"Every {block} frames have every scene and as many portraits, close-ups and full-body pictures. Faces: found "
        f"in the first and the last {block}. Processor seconds are the engine's, on one thread; wall seconds depend on "
        "what else the machine did. Both are of windows that cost the same by design: not of the first, which has no "
        "anchors, nor of a shorter last one. Growth is from the first of them to the last by linear regression, as a "
        "part of the mean, with an interval over windows: 0 is flat.\n\n"
        f"![agreement and cost over the stories]({PLOT})\n\n## Methods\n\n{methods}\n"
    )  # fmt: skip


def plot(documents: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Agreement with the first block over the blocks, and processor seconds a frame over the windows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    for colour, document in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], documents, strict=False):
        for number, story in enumerate(document["stories"]):
            label = f"{document['method']}, {document['steps']} steps" if number == 0 else None
            _agreement(upper, story, document["block"], colour, label)
            windows = story["windows"]
            frames = [window["first"] + window["frames"] / 2 for window in windows]
            lower.plot(frames, [window["processor"] for window in windows], color=colour, label=label, linewidth=1.2)
    block = documents[0]["block"]
    upper.set_title(f"identity agreement of {block} frames with the first {block} (first point: among themselves)",
                    loc="left", fontsize=9)  # fmt: skip
    lower.set_title("processor seconds of the engine a frame, window by window", loc="left", fontsize=9)
    lower.set_xlabel("frame")
    for panel in (upper, lower):
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _agreement(panel: Any, story: Mapping[str, Any], block: int, colour: str, label: str | None) -> None:
    points = [
        (block * (place + 0.5), _first(one) if place == 0 else one["between"])
        for place, one in enumerate(story["blocks"])
        if one is not None
    ]
    values = [figure["mean"] for _, figure in points]
    ends = [
        [figure["mean"] - figure["low"] for _, figure in points],
        [figure["high"] - figure["mean"] for _, figure in points],
    ]
    panel.errorbar([frame for frame, _ in points], values, ends, color=colour, label=label, marker="o", capsize=3)


def _first(agreement: Mapping[str, Any]) -> Mapping[str, float]:
    within: Mapping[str, float] = agreement["within"]
    return within


def _row(document: Mapping[str, Any], story: Mapping[str, Any]) -> list[str]:
    identity = story["identity"]
    figures = ["-"] * 3 if identity is None else [_cell(identity[key]) for key in ("within", "between", "difference")]
    faces = "-" if identity is None else "{} and {}".format(*identity["faces"])
    references = [_number(story["to_reference"][place]) for place in (0, -1)]
    return [
        f"{document['method']}, {story['name']}",
        str(document["steps"]),
        *figures,
        ", ".join(references),
        faces,
        *_course(story["processor"]),
        *_course(story["wall"]),
    ]


def _course(course: Mapping[str, Any] | None) -> list[str]:
    if course is None:
        return ["-", "-"]
    growth = course["growth"]
    low, high = (f"{100 * growth[end]:+.1f}" for end in ("low", "high"))
    return [f"{course['first']:.2f}, {course['last']:.2f}", f"{100 * growth['mean']:+.1f} % [{low}, {high}]"]


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
