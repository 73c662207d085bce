"""Writes what a run found: raw numbers as JSON, a table as Markdown, and a contact sheet to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.quality.generate import Pictures
from benchmarks.quality.metrics import Interval
from benchmarks.quality.stories import BenchStory

COLUMNS = {
    "prompt": "prompt agreement",
    "consistency": "cross-frame agreement",
    "consistency_stated": "... of stated",
    "consistency_unstated": "... of unstated",
    "background": "background distance",
    "scenes": "distinct scenes",
}
_LABEL, _GAP, _LINE = 84, 4, 16  # pixels


def _cell(interval: Interval | None) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]" if interval else "-"


def table(rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """A Markdown table: one row per name, one column per figure, as mean [95 % interval]."""
    lines = ["| setting | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(_cell(figures.get(column)) for column in COLUMNS) + " |"
        for name, figures in rows.items()
    ]
    return "\n".join(lines)


def page(name: str, table: str, facts: Mapping[str, Any]) -> str:
    """The Markdown page of a run."""
    reader = facts["reader"].get("mean")
    read = f"it reads {100 * reader:.1f} % of held-out renders' visible attributes right" if reader else "not measured"
    return f"""# Picture quality of {facts["model"]["name"]}, {name}

`{facts["command"]}`

{table}

Means over stories with bootstrap 95 % intervals. Prompt agreement: stated and visible attributes, and the scene, that
are read as stated. Cross-frame agreement: attributes read the same in two frames of a story, over all pairs, and
separately for attributes that the prompts state and for those they leave open. Background distance: RMS over the part
of two frames where nobody stands. Distinct scenes: different scenes read per frame. The row `renders` scores the true
pictures of the same stories and so bounds what the reader can measure ({read}).

![Stories by setting]({name}.png)
"""


def summary_line(rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """The last line of a run: the three figures of every setting."""
    parts = [
        f"{name}: prompt {figures['prompt'].mean:.3f}, cross-frame {figures['consistency'].mean:.3f}, "
        f"background {figures['background'].mean:.3f}"
        for name, figures in rows.items()
    ]
    return "quality | " + " | ".join(parts)


def contact_sheet(stories: Sequence[BenchStory], pictures: Mapping[str, Sequence[Pictures]]) -> Image.Image:
    """Each story's description, and below it one row of frames per setting."""
    first = next(iter(pictures.values()))[0]
    frames, height, width = first.shape[:3]
    block = _LINE + len(pictures) * (height + _GAP) + _GAP
    sheet = Image.new("RGB", (_LABEL + frames * (width + _GAP), block * len(stories)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, story in enumerate(stories):
        top = position * block
        draw.text((_GAP, top + 2), story.description.text, fill="black")
        for row, (name, made) in enumerate(pictures.items()):
            y = top + _LINE + row * (height + _GAP)
            draw.text((_GAP, y + height // 2 - 6), name, fill="black")
            for frame in range(frames):
                sheet.paste(Image.fromarray(made[position][frame]), (_LABEL + frame * (width + _GAP), y))
    return sheet
