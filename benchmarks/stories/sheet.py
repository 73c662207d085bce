"""A picture of a run: a line of frames for each method, so that methods can be looked at beside each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.stories.report import Report
from benchmarks.stories.scores import Scored

_SIDE = 128  # pixels
_MARGIN = 4
_LABEL = 16
_FRAMES = 6


def sheets(report: Report) -> dict[int, Image.Image]:
    """For each number of people the first story that was made, by all methods that made it.

    The first line has the references, where there are some. Frames are fitted into squares; at most six are shown.
    """
    found = {}
    for group in report.groups():
        for stories in zip(*(group.rows[name] for name in report.methods), strict=True):
            made = {name: story for name, story in zip(report.methods, stories, strict=True) if story.outcome.folder}
            if made:
                found[group.people] = _sheet(made)
                break
    return found


def write_sheets(report: Report, out: Path) -> list[Path]:
    """Writes sheet-PEOPLE.png for each number of people."""
    files = []
    for people, sheet in sheets(report).items():
        files.append(out / f"sheet-{people}.png")
        sheet.save(files[-1])
    return files


def _sheet(made: dict[str, Scored]) -> Image.Image:
    asked = next(iter(made.values())).outcome.asked
    lines = [("references", [_picture(io.BytesIO(picture)) for picture in asked.references.values()])]
    for name, story in made.items():
        assert story.outcome.folder is not None
        files = sorted(story.outcome.folder.glob("frame-*.png"))[:_FRAMES]
        lines.append((name, [_picture(file) for file in files]))
    return _drawn([line for line in lines if line[1]])


def _picture(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file) as picture:
        fitted = picture.convert("RGB")
    fitted.thumbnail((_SIDE, _SIDE))
    return fitted


def _drawn(lines: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    height = _LABEL + _SIDE + _MARGIN
    width = max(len(pictures) for _, pictures in lines) * (_SIDE + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, len(lines) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (name, pictures) in enumerate(lines):
        pen.text((_MARGIN, row * height + 1), name, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (_MARGIN + column * (_SIDE + _MARGIN), row * height + _LABEL))
    return sheet
