"""The contact sheet: nothing overlaps, nothing is cut off, and every picture is where its caption is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from storyloom._sheet import contact_sheet, plan, wrap

_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@given(
    cells=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.integers(0, 90)), min_size=1, max_size=12),
    columns=st.integers(1, 5),
    gap=st.integers(2, 30),
    title_height=st.integers(0, 60),
)
def test_nothing_overlaps_and_all_is_inside(
    cells: list[tuple[int, int, int]], columns: int, gap: int, title_height: int
) -> None:
    sizes = [(width, height) for width, height, _ in cells]
    heights = [height for _, _, height in cells]
    layout = plan(sizes, heights, columns=columns, gap=gap, title_height=title_height)
    cell = max(width for width, _ in sizes)
    captions = [
        (left, top, left + cell, top + height) for (left, top), height in zip(layout.captions, heights, strict=True)
    ]
    title = (gap, gap, layout.size[0], gap + title_height)
    boxes = [*layout.pictures, *captions, title]
    assert not any(_overlap(one, other) for one, other in itertools.combinations(boxes, 2))
    assert all(left >= gap and top >= gap for left, top, _, _ in boxes)
    assert all(right <= layout.size[0] and bottom <= layout.size[1] - gap for _, _, right, bottom in boxes)
    assert [(right - left, bottom - top) for left, top, right, bottom in layout.pictures] == sizes
    rows = [layout.pictures[start : start + columns] for start in range(0, len(sizes), columns)]
    assert all(len({top for _, top, _, _ in row}) == 1 for row in rows)
    # A caption is under its own picture.
    assert all(
        picture[0] == caption[0] and picture[3] < caption[1]
        for picture, caption in zip(layout.pictures, captions, strict=True)
    )


@given(st.text(max_size=80), st.integers(1, 20))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrap(text, width, lambda line: float(len(line)))
    assert all(0 < len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_words_are_broken_only_when_they_must_be() -> None:
    assert wrap("mia is walking in a park", 10, lambda line: float(len(line))) == ["mia is", "walking in", "a park"]
    assert wrap("an extraordinarily", 8, lambda line: float(len(line))) == ["an", "extraord", "inarily"]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (6, 3, 2), (10, 4, 3)])
def test_the_grid_is_close_to_a_square(count: int, columns: int, rows: int) -> None:
    sheet = contact_sheet([Image.new("RGB", (256, 256))] * count, ["x"] * count)
    assert sheet.width // (256 + 16) == columns
    assert sheet.height // (256 + 16) == rows


def test_pictures_are_in_order_and_small_ones_enlarged() -> None:
    pictures = [Image.new("RGB", (128, 128), colour) for colour in _COLOURS]
    sheet = contact_sheet(pictures, ["a caption"] * 6, columns=3)
    pixels = [sheet.getpixel((x, y)) for y in (100, sheet.height - 150) for x in (140, 420, 690)]
    assert pixels == _COLOURS
    runs = [len(list(run)) for colour, run in itertools.groupby(sheet.getpixel((x, 100)) for x in range(sheet.width))]
    assert runs == [16, 256, 16, 256, 16, 256, 16]


def test_title_and_captions_are_drawn() -> None:
    picture = Image.new("RGB", (256, 256), (9, 9, 9))

    def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
        part = sheet.crop(box)
        return ImageChops.difference(part, Image.new("RGB", part.size, sheet.getpixel((0, 0)))).getbbox() is not None

    sheet = contact_sheet([picture], ["mia is walking"], title="A day")
    blank = contact_sheet([picture], [""], title="")
    assert sheet.height > blank.height
    assert ink(sheet, (0, 0, sheet.width, 40))
    assert ink(sheet, (0, sheet.height - 34, sheet.width, sheet.height))
    assert not ink(blank, (0, 0, blank.width, 15))
    assert not ink(blank, (0, 256 + 17, blank.width, blank.height))


def test_counts_must_match() -> None:
    with pytest.raises(ValueError, match="1 pictures and 2 captions"):
        contact_sheet([Image.new("RGB", (8, 8))], ["a", "b"])
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([], [])
