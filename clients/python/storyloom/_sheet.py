"""The contact sheet: all pictures of a story in a grid, each with its caption, under the title."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_MIN_CELL = 256  # pixels; smaller pictures are enlarged, so that captions have room
_BACKGROUND = (250, 249, 246)
_INK = (34, 34, 34)
Box = tuple[int, int, int, int]
Measure = Callable[[str], float]


@dataclass(frozen=True, slots=True)
class SheetLayout:
    """Where everything goes, in pixels of the sheet.

    :ivar size: width and height of the sheet.
    :ivar pictures: (left, top, right, bottom) of each picture.
    :ivar captions: left and top of each caption.
    :ivar title: left and top of the title.
    """

    size: tuple[int, int]
    pictures: tuple[Box, ...]
    captions: tuple[tuple[int, int], ...]
    title: tuple[int, int]


def plan(
    sizes: Sequence[tuple[int, int]], caption_heights: Sequence[int], *, columns: int, gap: int, title_height: int
) -> SheetLayout:
    """Places pictures row by row, each row as high as its highest picture plus its highest caption.

    :param sizes: (width, height) of each picture, as it is shown.
    :param caption_heights: one for each picture.
    :param columns: pictures in a row.
    :param gap: space around pictures and between a picture and its caption.
    :param title_height: 0 for a sheet without title.
    """
    cell = max(width for width, _ in sizes)
    pictures: list[Box] = []
    captions: list[tuple[int, int]] = []
    top = gap + (title_height + gap if title_height else 0)
    for start in range(0, len(sizes), columns):
        row = sizes[start : start + columns]
        row_height = max(height for _, height in row)
        for column, (width, height) in enumerate(row):
            left = gap + column * (cell + gap)
            pictures.append((left, top, left + width, top + height))
            captions.append((left, top + row_height + gap // 2))
        top += row_height + gap // 2 + max(caption_heights[start : start + columns]) + gap
    return SheetLayout((gap + columns * (cell + gap), top), tuple(pictures), tuple(captions), (gap, gap))


def wrap(text: str, width: float, measure: Measure) -> list[str]:
    """Breaks `text` into lines no wider than `width`, at spaces where it can and inside words where it must."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if measure(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and measure(word) > width:
            fitting = max(1, sum(1 for end in range(1, len(word)) if measure(word[:end]) <= width))
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return [*lines, line] if line else lines


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, title: str = "", columns: int | None = None
) -> Image.Image:
    """Draws the contact sheet of a story.

    :param pictures: at least one.
    :param captions: one for each picture.
    :param columns: pictures in a row; None for a grid close to a square.
    :raises ValueError: when the counts do not match, or there is nothing to show.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"got {len(pictures)} pictures and {len(captions)} captions; give as many, and at least one")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    shown = [_enlarge(picture.convert("RGB")) for picture in pictures]
    cell = max(picture.width for picture in shown)
    gap = cell // 16
    font = ImageFont.load_default(size=cell / 17)
    title_font = ImageFont.load_default(size=cell / 10)
    heading = wrap(title, columns * (cell + gap) - gap, title_font.getlength)
    texts = ["\n".join(wrap(text, cell, font.getlength)) for text in captions]

    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heights = [math.ceil(ruler.multiline_textbbox((0, 0), text, font=font)[3]) for text in texts]
    title_height = math.ceil(ruler.multiline_textbbox((0, 0), "\n".join(heading), font=title_font)[3])
    sizes = [picture.size for picture in shown]
    layout = plan(sizes, heights, columns=columns, gap=gap, title_height=title_height if heading else 0)

    sheet = Image.new("RGB", layout.size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text(layout.title, "\n".join(heading), fill=_INK, font=title_font)
    for picture, text, box, place in zip(shown, texts, layout.pictures, layout.captions, strict=True):
        sheet.paste(picture, box)
        draw.multiline_text(place, text, fill=_INK, font=font)
    return sheet


def _enlarge(picture: Image.Image) -> Image.Image:
    # A whole factor, so that a small picture keeps its character.
    factor = math.ceil(_MIN_CELL / picture.width)
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
