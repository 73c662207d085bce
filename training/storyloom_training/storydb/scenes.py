"""Backgrounds: one function per scene. Units: the picture's height is 1, y down; HORIZON splits far and near."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from storyloom_training.storydb import props
from storyloom_training.storydb.pen import Pen, shade
from storyloom_training.storydb.props import BRIGHT, DIM

Scene = Callable[[Pen, Random, str], None]
HORIZON = 0.58


def _park(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, HORIZON)
    props.hills(pen, rng, time, HORIZON, 0x6FAE62, 0.12)
    props.ground(pen, time, HORIZON, 0x4FA34A, 0x86C96F)
    pen.polygon([(0.35, 1), (0.75, 1), (0.54, HORIZON), (0.5, HORIZON)], shade(0xD9C79A, DIM[time]), outline=False)
    for x in (rng.uniform(-0.02, 0.14), rng.uniform(0.84, 1.02)):
        props.tree(pen, x, rng.uniform(0.68, 0.78), 0.6, 0x4E9B3F, DIM[time])
    props.bench(pen, rng.choice((0.2, 0.8)), 0.76)


def _beach(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.48)
    props.ground(pen, time, 0.48, 0x35A0C9, 0x1C6FB0)
    pen.blob([(-0.2, 0.72), (0.3, 0.66), (0.7, 0.72), (1.2, 0.65), (1.2, 1.2), (-0.2, 1.2)],
             shade(0xF0D79A, DIM[time]), outline=False)  # fmt: skip
    x = rng.choice((0.14, 0.86))
    pen.stroke([(x, 0.42), (x, 0.86)], 0.016, 0x8A6A45)
    for i in range(4):
        left = x - 0.2 + 0.1 * i
        pen.polygon([(left, 0.46), (left + 0.1, 0.46), (x, 0.3)], 0xE04848 if i % 2 else 0xFFFFFF)
    pen.ellipse((1 - x, 0.9), 0.06, 0.06, rng.choice(BRIGHT))


def _forest(pen: Pen, rng: Random, time: str) -> None:
    pen.gradient((0, 0, 1, 1), shade(0x2F5D3A, DIM[time]), shade(0x7FA35C, DIM[time]))
    for i in range(9):
        x = (i + rng.random()) / 9
        width = rng.uniform(0.015, 0.045)
        pen.box(x - width, -0.1, x + width, rng.uniform(0.65, 0.8), shade(0x5B4028, DIM[time] * rng.uniform(0.7, 1.1)))
    for _ in range(10):
        centre = (rng.random(), rng.uniform(-0.05, 0.2))
        pen.ellipse(centre, 0.16, 0.1, shade(rng.choice((0x2E6B34, 0x3F8040, 0x235528)), DIM[time]))
    props.ground(pen, time, 0.78, 0x4B6B32, 0x5F8240)
    for _ in range(5):
        pen.ellipse((rng.random(), rng.uniform(0.8, 0.97)), 0.05, 0.025, shade(0x3C7D3C, DIM[time]))


def _kitchen(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xF3E7B8, 0xC98F5B, 0.72)
    for i in range(11):
        pen.stroke([(i / 10, 0.3), (i / 10, 0.6)], 0.008, 0xFFFFFF)
        pen.stroke([(0, 0.3 + i * 0.06), (1, 0.3 + i * 0.06)], 0.008, 0xFFFFFF) if i < 6 else None
    for i in range(4):
        pen.box(i * 0.25 + 0.01, 0.0, i * 0.25 + 0.24, 0.22, 0x5E8C9E)
        pen.box(i * 0.25 + 0.01, 0.6, i * 0.25 + 0.24, 0.86, 0x5E8C9E)
    pen.box(-0.1, 0.56, 1.1, 0.61, 0xF7F7F2)
    x = rng.choice((0.13, 0.86))
    pen.box(x - 0.1, 0.42, x + 0.1, 0.57, 0xC9CDD1)
    for _ in range(3):
        jar = rng.random()
        pen.box(jar, 0.48, jar + 0.05, 0.565, rng.choice(BRIGHT), radius=0.01)


def _library(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0x7A5A3A, 0x94653C, 0.82)
    props.shelf(pen, rng, -0.02, 0.49, 0.03, 0.8)
    props.shelf(pen, rng, 0.51, 1.02, 0.03, 0.8)
    props.lamp(pen, rng.choice((0.1, 0.5, 0.9)), 0.1, 0x2E7D5B)


def _cafe(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xB98A63, 0x6B4A33, 0.7)
    props.window(pen, rng, rng.choice((0.2, 0.8)), 0.34, 0.2)
    for x in (0.15, 0.5, 0.85):
        props.lamp(pen, x + rng.uniform(-0.04, 0.04), 0.1, 0xD9532C)
    for left in (0.0, 0.72):
        props.table(pen, left, left + 0.27, 0.7, 0x8F5F35)
        pen.box(left + 0.1, 0.64, left + 0.16, 0.7, 0xFFFFFF, radius=0.01)


def _city_street(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, HORIZON)
    x = -0.05
    while x < 1:
        width = rng.uniform(0.16, 0.26)
        props.house(pen, rng, x, x + width, rng.uniform(0.05, 0.3), 0.72, DIM[time])
        x += width
    props.ground(pen, time, 0.72, 0x6D7178, 0xA7ABB0)
    for i in range(5):
        pen.box(i * 0.24, 0.92, i * 0.24 + 0.12, 0.945, 0xF2F2F2, outline=False)


def _mountains(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.62)
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.75, 1.0), rng.uniform(0.4, 0.6)):
        peak, half = rng.uniform(0.08, 0.22), rng.uniform(0.3, 0.42)
        pen.polygon([(x - half, 0.66), (x, peak), (x + half, 0.66)], shade(0x7D8796, DIM[time]))
        slope = 0.13 / (0.66 - peak) * half
        pen.polygon([(x - slope, peak + 0.13), (x, peak), (x + slope, peak + 0.13), (x, peak + 0.09)], 0xFFFFFF)
    props.ground(pen, time, 0.64, 0x7A9A55, 0x9DB56F)
    for _ in range(4):
        pen.ellipse((rng.random(), rng.uniform(0.75, 0.97)), 0.05, 0.03, shade(0x85888C, DIM[time]))


def _garden(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.5)
    props.ground(pen, time, 0.5, 0x58A84F, 0x7FC06B)
    for i in range(14):
        x = i / 13
        pen.polygon([(x - 0.024, 0.66), (x - 0.024, 0.44), (x, 0.41), (x + 0.024, 0.44), (x + 0.024, 0.66)],
                    shade(0xFAFAF5, DIM[time]))  # fmt: skip
    for _ in range(5):
        pen.ellipse((rng.random(), 0.68), 0.1, 0.07, shade(0x3E8E41, DIM[time]))
    props.flowers(pen, rng, 34, 0.64)


def _bedroom(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xB9A7D6, 0xC7A17A, 0.74)
    props.window(pen, rng, rng.choice((0.18, 0.5)), 0.28)
    colour = rng.choice(BRIGHT)
    pen.box(0.45, 0.5, 1.1, 0.66, 0x7A4F2B, radius=0.03)
    pen.box(0.4, 0.64, 1.1, 0.86, colour, radius=0.04)
    pen.box(0.82, 0.58, 1.0, 0.69, 0xFFFFFF, radius=0.04)
    props.picture_frame(pen, rng, 0.82, 0.24)


def _living_room(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xE9C9A0, 0x9C6B43, 0.74)
    colour = rng.choice((0x2F7F79, 0x9C3F3F, 0x4F5F9C))
    pen.box(0.05, 0.5, 0.95, 0.78, colour, radius=0.06)
    for left in (0.0, 0.87):
        pen.box(left, 0.58, left + 0.13, 0.84, shade(colour, 0.85), radius=0.04)
    for x in (0.25, 0.5, 0.75):
        props.picture_frame(pen, rng, x, 0.24)
    props.plant(pen, rng.choice((0.06, 0.94)), 0.86, 0.26)


def _classroom(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xE5E0D0, 0xB98D5E, 0.76)
    pen.box(0.1, 0.1, 0.9, 0.5, 0x8A5F33)
    pen.box(0.13, 0.13, 0.87, 0.47, 0x2F5F4A, outline=False)
    for i in range(4):
        pen.stroke([(0.2, 0.2 + 0.07 * i), (rng.uniform(0.3, 0.8), 0.2 + 0.07 * i)], 0.014, 0xE8F0EA)
    for left in (-0.05, 0.75):
        props.table(pen, left, left + 0.3, 0.74, 0xD9A860)


def _lake(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.48)
    props.hills(pen, rng, time, 0.5, 0x4F8A6B, 0.18)
    props.ground(pen, time, 0.5, 0x4FA8C9, 0x88CBE0)
    for _ in range(8):
        x, y = rng.random(), rng.uniform(0.54, 0.76)
        pen.stroke([(x, y), (x + 0.09, y)], 0.009, shade(0xCBEAF2, DIM[time]))
    pen.blob([(-0.3, 0.88), (0.3, 0.78), (0.8, 0.84), (1.3, 0.78), (1.3, 1.3), (-0.3, 1.3)],
             shade(0x8FA860, DIM[time]), outline=False)  # fmt: skip
    for _ in range(6):
        x = rng.choice((rng.uniform(0, 0.2), rng.uniform(0.8, 1)))
        pen.stroke([(x, 0.86), (x + rng.uniform(-0.03, 0.03), 0.66)], 0.012, 0x4E7A3A)


def _snowy_field(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, HORIZON)
    props.hills(pen, rng, time, HORIZON, 0xDDE8F0, 0.12)
    props.ground(pen, time, HORIZON, 0xFAFCFF, 0xDCE7F0)
    for _ in range(5):
        props.fir(pen, rng.choice((rng.uniform(0, 0.3), rng.uniform(0.7, 1))), rng.uniform(0.62, 0.75), 0.42, 0x4E7F74)
    for _ in range(36):
        pen.ellipse((rng.random(), rng.random()), 0.009, 0.009, 0xFFFFFF, outline=False)


def _market(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.4)
    props.ground(pen, time, 0.6, 0xC0A98A, 0xA9926F)
    for left in (-0.05, 0.36, 0.72):
        colour = rng.choice(BRIGHT)
        pen.box(left + 0.02, 0.3, left + 0.32, 0.62, 0x7A5A3C)
        for i in range(5):
            x = left + 0.07 * i
            pen.polygon([(x, 0.34), (x + 0.07, 0.34), (x + 0.07, 0.2), (x, 0.2)], colour if i % 2 else 0xFFFFFF)
        for _ in range(9):
            fruit = (left + rng.uniform(0.04, 0.3), rng.uniform(0.57, 0.63))
            pen.ellipse(fruit, 0.026, 0.026, rng.choice((0xE0412F, 0xF39A2B, 0xF2D24A, 0x6DB33F)))
        pen.box(left, 0.64, left + 0.34, 0.78, 0x9A6B3D)


def _desert(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.56)
    props.hills(pen, rng, time, 0.58, 0xD98F4E, 0.14)
    props.ground(pen, time, 0.57, 0xE0A458, 0xEBBB74)
    for x in (rng.uniform(0.04, 0.22), rng.uniform(0.78, 0.96)):
        y, colour = rng.uniform(0.68, 0.8), shade(0x4C8A4A, DIM[time])
        pen.stroke([(x, y), (x, y - 0.3)], 0.055, colour, outline=True)
        pen.stroke([(x, y - 0.12), (x + 0.08, y - 0.14), (x + 0.08, y - 0.24)], 0.036, colour, outline=True)


def _playground(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.55)
    props.ground(pen, time, 0.55, 0xD9B36C, 0x8CC26A)
    side = rng.choice((1, -1))

    def x(value: float) -> float:
        return value if side > 0 else 1 - value

    pen.stroke([(x(0.05), 0.8), (x(0.12), 0.3), (x(0.4), 0.3), (x(0.47), 0.8)], 0.028, 0xD93030)
    for rope in (0.2, 0.32):
        pen.stroke([(x(rope), 0.3), (x(rope), 0.66)], 0.01, 0x555555)
    pen.stroke([(x(0.18), 0.66), (x(0.34), 0.66)], 0.028, 0x2F6FDB)
    pen.polygon([(x(0.72), 0.34), (x(0.78), 0.34), (x(1.0), 0.82), (x(0.9), 0.82)], 0xF4D03F)
    pen.stroke([(x(0.72), 0.34), (x(0.68), 0.82)], 0.024, 0x2F6FDB)


def _train_station(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, 0.5)
    pen.box(-0.1, 0.0, 1.1, 0.12, 0x5E6670)
    colour = rng.choice((0xB53A3A, 0x2F5FA8, 0x3C8A5A))
    pen.box(-0.1, 0.28, 1.1, 0.66, colour)
    pen.box(-0.1, 0.55, 1.1, 0.6, 0xF5E6B8, outline=False)
    for i in range(5):
        pen.box(i * 0.22 + 0.02, 0.34, i * 0.22 + 0.17, 0.49, 0xCFE8F5, radius=0.015)
    props.ground(pen, "day", 0.68, 0x9DA0A5, 0xB8BBC0)
    pen.box(-0.1, 0.7, 1.1, 0.725, 0xF4D03F, outline=False)
    pen.ellipse((rng.choice((0.12, 0.88)), 0.2), 0.06, 0.06, 0xFDFDFD)


def _art_studio(pen: Pen, rng: Random, time: str) -> None:
    props.room(pen, 0xDDE3E6, 0xB79E80, 0.74)
    for x in (rng.uniform(0.06, 0.2), rng.uniform(0.8, 0.94)):
        pen.stroke([(x - 0.12, 0.86), (x, 0.2), (x + 0.12, 0.86)], 0.018, 0x8A5F33)
        pen.box(x - 0.13, 0.3, x + 0.13, 0.62, 0xFFFFFF)
        for _ in range(4):
            spot = (x + rng.uniform(-0.08, 0.08), rng.uniform(0.35, 0.57))
            pen.ellipse(spot, 0.04, 0.03, rng.choice(BRIGHT), outline=False)
    for _ in range(14):
        pen.ellipse((rng.random(), rng.uniform(0.78, 0.99)), 0.02, 0.01, rng.choice(BRIGHT), outline=False)


def _farm(pen: Pen, rng: Random, time: str) -> None:
    props.sky(pen, rng, time, HORIZON)
    props.ground(pen, time, HORIZON, 0xB8A04A, 0xD8C56A)
    x, dim = rng.choice((0.25, 0.75)), DIM[time]
    pen.box(x - 0.22, 0.34, x + 0.22, 0.68, shade(0xB03A2E, dim))
    pen.polygon([(x - 0.26, 0.35), (x - 0.12, 0.17), (x + 0.12, 0.17), (x + 0.26, 0.35)], shade(0x6E3B2C, dim))
    pen.box(x - 0.08, 0.48, x + 0.08, 0.68, 0xF2E8D5)
    for i in range(7):
        post = i / 6
        pen.box(post - 0.01, 0.68, post + 0.01, 0.8, 0xF0EDE5)
    pen.box(-0.1, 0.71, 1.1, 0.73, 0xF0EDE5)


SCENES: dict[str, Scene] = {
    "park": _park,
    "beach": _beach,
    "forest": _forest,
    "kitchen": _kitchen,
    "library": _library,
    "cafe": _cafe,
    "city street": _city_street,
    "mountains": _mountains,
    "garden": _garden,
    "bedroom": _bedroom,
    "living room": _living_room,
    "classroom": _classroom,
    "lake": _lake,
    "snowy field": _snowy_field,
    "market": _market,
    "desert": _desert,
    "playground": _playground,
    "train station": _train_station,
    "art studio": _art_studio,
    "farm": _farm,
}


def draw_scene(pen: Pen, rng: Random, scene: str, time: str) -> None:
    """Fills the unit square with a scene."""
    SCENES[scene](pen, rng, time)


def draw_foreground(pen: Pen, rng: Random, scene: str) -> None:
    """Clutter in front of the people: it hides a little of them, as real scenes do."""
    if scene in ("park", "garden", "forest", "lake"):
        for _ in range(rng.randint(3, 7)):
            x = rng.random()
            pen.stroke([(x, 1.02), (x + rng.uniform(-0.03, 0.03), rng.uniform(0.9, 0.96))], 0.014, 0x2E6F35)
    elif scene in ("market", "farm", "desert", "mountains") and rng.random() < 0.5:
        pen.ellipse((rng.choice((0.05, 0.95)), 1.0), 0.1, 0.06, rng.choice((0x9A6B3D, 0x85888C)))
