"""Things that stand in scenes. Units: the picture's height is 1, y down."""

from __future__ import annotations

from random import Random

from storyloom_training.storydb.pen import Pen, shade

SKY = {"day": (0x6FB7F0, 0xD8EEFA), "sunset": (0x8C4FA3, 0xF9A65A), "night": (0x0B1030, 0x2B3A6B)}
DIM = {"day": 1.0, "sunset": 0.82, "night": 0.48}
BRIGHT = (0xD93030, 0xF08A24, 0xF4D03F, 0x3C9A4B, 0x1FA6A0, 0x2F6FDB, 0x7D3FA8, 0xF08FB5)


def sky(pen: Pen, rng: Random, time: str, horizon: float) -> None:
    pen.gradient((0, 0, 1, horizon + 0.02), *SKY[time])
    if time == "night":
        for _ in range(22):
            pen.ellipse((rng.random(), rng.random() * horizon), 0.006, 0.006, 0xFFFFFF, outline=False)
        pen.ellipse((rng.uniform(0.1, 0.9), 0.13), 0.06, 0.06, 0xF4F1D0, outline=False)
    elif time == "sunset":
        pen.ellipse((rng.uniform(0.15, 0.85), horizon - 0.03), 0.1, 0.1, 0xFFE08A, outline=False)
    else:
        if rng.random() < 0.6:
            pen.ellipse((rng.choice((0.1, 0.9)), 0.12), 0.07, 0.07, 0xFFE45C, outline=False)
        for _ in range(rng.randint(1, 3)):
            x, y = rng.random(), rng.uniform(0.06, 0.3)
            for dx in (-0.06, 0, 0.06):
                pen.ellipse((x + dx, y - 0.02 * (dx == 0)), 0.065, 0.035, 0xFFFFFF, outline=False)


def ground(pen: Pen, time: str, horizon: float, near: int, far: int) -> None:
    dim = DIM[time]
    pen.gradient((0, horizon, 1, 1), shade(far, dim), shade(near, dim))


def hills(pen: Pen, rng: Random, time: str, horizon: float, colour: int, height: float) -> None:
    x = -0.2
    while x < 1.2:
        width = rng.uniform(0.25, 0.45)
        pen.ellipse((x, horizon), width, height * rng.uniform(0.6, 1.0), shade(colour, DIM[time]), outline=False)
        x += width


def tree(pen: Pen, x: float, y: float, size: float, colour: int, dim: float) -> None:
    pen.box(x - 0.07 * size, y - 0.5 * size, x + 0.07 * size, y, shade(0x7A5230, dim))
    for dx, dy in ((-0.2, -0.55), (0.2, -0.55), (0, -0.8)):
        pen.ellipse((x + dx * size, y + dy * size), 0.27 * size, 0.25 * size, shade(colour, dim))


def fir(pen: Pen, x: float, y: float, size: float, colour: int) -> None:
    pen.box(x - 0.05 * size, y - 0.2 * size, x + 0.05 * size, y, 0x5D4030)
    for i in range(3):
        half, base = (0.34 - 0.08 * i) * size, y - (0.15 + 0.25 * i) * size
        pen.polygon([(x - half, base), (x + half, base), (x, base - 0.42 * size)], colour)


def flowers(pen: Pen, rng: Random, count: int, top: float) -> None:
    for _ in range(count):
        x, y = rng.random(), rng.uniform(top, 0.99)
        pen.stroke([(x, y + 0.035), (x, y)], 0.01, 0x2E7D32)
        pen.ellipse((x, y), 0.022, 0.022, rng.choice((0xE8436A, 0xF5B83D, 0xB56BD6, 0xFFFFFF)), outline=False)


def bench(pen: Pen, x: float, y: float) -> None:
    for dx in (-0.13, 0.13):
        pen.box(x + dx - 0.012, y, x + dx + 0.012, y + 0.1, 0x3B3B3B)
    for dy in (-0.1, -0.05, 0.0):
        pen.box(x - 0.17, y + dy, x + 0.17, y + dy + 0.03, 0x9A6234)


def house(pen: Pen, rng: Random, left: float, right: float, top: float, bottom: float, dim: float) -> None:
    pen.box(left, top, right, bottom, shade(rng.choice((0xB5654A, 0xC9B79C, 0x8C9BA8, 0xD8A25E, 0x7E8F6A)), dim))
    glass = 0xFFE9A0 if dim < 0.6 else 0xBFE3F5
    rows, columns = max(1, int((bottom - top) / 0.12)), max(1, int((right - left) / 0.09))
    for row in range(rows):
        for column in range(columns):
            x = left + (column + 0.5) * (right - left) / columns
            y = top + 0.05 + row * 0.12
            pen.box(x - 0.022, y, x + 0.022, y + 0.055, glass, outline=False)


def window(pen: Pen, rng: Random, x: float, y: float, size: float = 0.16) -> None:
    pen.box(x - size, y - size, x + size, y + size, 0xFFFFFF)
    pen.box(x - size + 0.02, y - size + 0.02, x + size - 0.02, y + size - 0.02, 0xA9DAF5, outline=False)
    pen.ellipse((x + 0.05, y + size - 0.05), 0.08, 0.03, 0x6DB36A, outline=False)
    pen.stroke([(x, y - size), (x, y + size)], 0.02, 0xFFFFFF)
    pen.stroke([(x - size, y), (x + size, y)], 0.02, 0xFFFFFF)


def picture_frame(pen: Pen, rng: Random, x: float, y: float, size: float = 0.09) -> None:
    pen.box(x - size, y - size * 0.8, x + size, y + size * 0.8, 0x6E4A25)
    pen.box(x - size * 0.8, y - size * 0.6, x + size * 0.8, y + size * 0.6, rng.choice(BRIGHT), outline=False)
    pen.ellipse((x, y + 0.01), size * 0.35, size * 0.3, rng.choice(BRIGHT), outline=False)


def plant(pen: Pen, x: float, y: float, size: float) -> None:
    for dx, dy in ((-0.3, -0.75), (0.3, -0.75), (0, -1.0), (-0.15, -0.55), (0.15, -0.55)):
        pen.ellipse((x + dx * size, y + dy * size), 0.22 * size, 0.32 * size, 0x3F8F4A)
    pen.polygon([(x - 0.25 * size, y - 0.35 * size), (x + 0.25 * size, y - 0.35 * size), (x + 0.18 * size, y),
                 (x - 0.18 * size, y)], 0xB5623A)  # fmt: skip


def lamp(pen: Pen, x: float, length: float, colour: int) -> None:
    pen.stroke([(x, 0), (x, length)], 0.012, 0x33302C)
    pen.polygon([(x - 0.08, length + 0.07), (x + 0.08, length + 0.07), (x + 0.03, length), (x - 0.03, length)], colour)
    pen.ellipse((x, length + 0.075), 0.045, 0.025, 0xFFF3B0, outline=False)


def shelf(pen: Pen, rng: Random, left: float, right: float, top: float, bottom: float) -> None:
    """A bookcase full of books."""
    pen.box(left, top, right, bottom, 0x6B4423)
    rows = max(1, round((bottom - top) / 0.17))
    step = (bottom - top) / rows
    for row in range(rows):
        base = top + (row + 1) * step - 0.02
        x = left + 0.02
        while x < right - 0.05:
            width = rng.uniform(0.022, 0.042)
            pen.box(x, base - step * rng.uniform(0.55, 0.82), x + width, base, rng.choice(BRIGHT), outline=False)
            x += width + 0.004


def table(pen: Pen, left: float, right: float, top: float, colour: int) -> None:
    for x in (left + 0.03, right - 0.05):
        pen.box(x, top, x + 0.025, min(top + 0.3, 1), shade(colour, 0.75))
    pen.box(left, top, right, top + 0.04, colour)


def room(pen: Pen, wall: int, floor: int, horizon: float) -> None:
    pen.gradient((0, 0, 1, horizon), shade(wall, 1.06), wall)
    pen.gradient((0, horizon, 1, 1), shade(floor, 0.9), floor)
    pen.box(-0.1, horizon - 0.02, 1.1, horizon + 0.01, shade(wall, 0.72), outline=False)
