"""Draws a head: hair, face, glasses, facial hair, hat. Units and origin as in `pose`; the head's centre is HEAD."""

from __future__ import annotations

from dataclasses import dataclass

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.pen import Pen, Point, shade
from storyloom_training.storydb.people import Person

HEAD: Point = (0.0, -0.55)
FACE_SIZE = {"round": (0.43, 0.45), "oval": (0.39, 0.49), "square": (0.42, 0.46), "long": (0.36, 0.52)}


@dataclass(frozen=True)
class FaceLayout:
    """Where the parts of a face are; five landmarks in the order of face recognisers (picture left first)."""

    rx: float
    ry: float
    eye_x: float = 0.165
    eye_y: float = HEAD[1] + 0.02

    def landmarks(self) -> tuple[Point, Point, Point, Point, Point]:
        mouth_y = HEAD[1] + 0.29
        return (
            (-self.eye_x, self.eye_y), (self.eye_x, self.eye_y), (0.0, HEAD[1] + 0.14),
            (-0.13, mouth_y), (0.13, mouth_y),
        )  # fmt: skip


def face_layout(person: Person) -> FaceLayout:
    return FaceLayout(*FACE_SIZE[person.face_shape])


def draw_hair_behind(pen: Pen, person: Person) -> None:
    """The hair that falls behind the face and the shoulders."""
    face = face_layout(person)
    colour = shade(words.HAIR_COLOUR[person.hair_colour], 0.88)
    x, y = HEAD
    rx = face.rx
    match person.hair_style:
        case "afro":
            pen.ellipse((x, y - 0.12), rx + 0.36, face.ry + 0.26, colour)
        case "short curly":
            for dx, dy in ((-0.34, -0.22), (0.34, -0.22), (-0.4, 0.0), (0.4, 0.0)):
                pen.ellipse((x + dx, y + dy), 0.17, 0.17, colour)
        case "shoulder straight":
            pen.box(x - rx - 0.14, y - 0.45, x + rx + 0.14, y + 0.62, colour, radius=0.25)
        case "shoulder curly":
            for i in range(5):
                for side in (-1, 1):
                    pen.ellipse((x + side * (rx + 0.06), y - 0.3 + 0.23 * i), 0.21, 0.18, colour)
        case "long straight":
            pen.box(x - rx - 0.15, y - 0.45, x + rx + 0.15, y + 1.25, colour, radius=0.28)
        case "long wavy":
            for i in range(7):
                for side in (-1, 1):
                    wave = 0.08 if i % 2 else -0.02
                    pen.ellipse((x + side * (rx + wave), y - 0.3 + 0.25 * i), 0.23, 0.2, colour)
        case "bun":
            pen.ellipse((x, y - face.ry - 0.17), 0.24, 0.21, colour)
        case "ponytail":
            pen.blob(
                [(x + rx - 0.1, y - 0.4), (x + rx + 0.42, y - 0.3), (x + rx + 0.4, y + 0.5), (x + rx + 0.12, y + 0.72),
                 (x + rx + 0.08, y + 0.1)],
                colour,
            )  # fmt: skip
        case "braids":
            for i in range(5):
                for side in (-1, 1):
                    pen.ellipse((x + side * (rx + 0.12), y + 0.12 + 0.2 * i), 0.13, 0.13, colour)


def _draw_hair_front(pen: Pen, person: Person, face: FaceLayout) -> None:
    colour = words.HAIR_COLOUR[person.hair_colour]
    x, y = HEAD
    rx, top = face.rx, y - face.ry
    match person.hair_style:
        case "bald":
            pen.ellipse((x - 0.12, top + 0.16), 0.09, 0.05, shade(words.SKIN[person.skin], 1.35), outline=False)
        case "spiky":
            points = [(x - rx - 0.05, y - 0.02)]
            for i in range(7):
                offset = -rx - 0.08 + (2 * rx + 0.16) * i / 6
                points += [(x + offset, top - 0.2 + 0.1 * abs(i - 3) / 3), (x + offset + 0.07, top + 0.14)]
            pen.polygon(
                [*points, (x + rx + 0.05, y - 0.02), (x + rx - 0.08, y - 0.2), (x - rx + 0.08, y - 0.2)], colour
            )
        case "short curly" | "shoulder curly" | "afro":
            for i in range(6):
                offset = -rx + 2 * rx * i / 5
                drop = 0.16 * (abs(i - 2.5) / 2.5) ** 2
                pen.ellipse((x + offset, top + 0.07 + drop), 0.16, 0.15, colour)
        case _:
            parting = -0.12 if person.brows == "arched" else 0.1
            pen.blob(
                [(x - rx - 0.12, y + 0.08), (x - rx - 0.1, top - 0.1), (x, top - 0.2), (x + rx + 0.1, top - 0.1),
                 (x + rx + 0.12, y + 0.08), (x + rx - 0.06, y - 0.16), (x + parting, top + 0.12),
                 (x - rx + 0.06, y - 0.16)],
                colour,
            )  # fmt: skip


def _draw_eyes(pen: Pen, person: Person, face: FaceLayout, expression: str) -> None:
    dark = 0x22181A
    for side in (-1, 1):
        centre = (side * face.eye_x, face.eye_y)
        if expression == "laugh":
            pen.arc((centre[0], centre[1] + 0.03), 0.075, 0.07, 200, 140, 0.045, dark)
        else:
            pen.ellipse(centre, 0.082, 0.075, 0xFFFFFF, outline=False)
            pen.ellipse(centre, 0.058, 0.066, words.EYE_COLOUR[person.eye_colour], outline=False)
            pen.ellipse(centre, 0.03, 0.036, dark, outline=False)
        brow = (
            0x6B6B70 if person.hair_colour in ("gray", "white") else shade(words.HAIR_COLOUR[person.hair_colour], 0.7)
        )
        width = 0.06 if person.brows == "thick" else 0.032
        rise = 0.05 if person.brows == "arched" else 0.0
        y = face.eye_y - 0.15
        pen.stroke([(centre[0] - 0.09, y + 0.02), (centre[0], y - rise), (centre[0] + 0.09, y + 0.02)], width, brow)


def _draw_mouth_and_nose(pen: Pen, person: Person, face: FaceLayout, expression: str) -> None:
    skin = words.SKIN[person.skin]
    x, y = HEAD
    size = {"small": (0.035, 0.05), "wide": (0.07, 0.05), "long": (0.04, 0.085)}[person.nose]
    pen.ellipse((x, y + 0.13), *size, shade(skin, 0.8), outline=False)
    half = {"thin": 0.1, "full": 0.11, "wide": 0.15}[person.mouth]
    lip = 0xB23A48 if person.gender == "female" else shade(skin, 0.55)
    width = 0.06 if person.mouth == "full" else 0.036
    mouth_y = y + 0.29
    if expression == "laugh":
        pen.ellipse((x, mouth_y), half, 0.075, 0x7A1F2B, outline=False)
        pen.box(x - half * 0.7, mouth_y - 0.06, x + half * 0.7, mouth_y - 0.02, 0xFFFFFF, outline=False)
    elif expression == "smile":
        pen.arc((x, mouth_y - 0.06), half, 0.085, 20, 140, width, lip)
    else:
        pen.stroke([(x - half * 0.8, mouth_y), (x + half * 0.8, mouth_y)], width, lip)


def _draw_facial_hair(pen: Pen, person: Person, face: FaceLayout) -> None:
    colour = words.HAIR_COLOUR[person.hair_colour]
    x, y = HEAD
    if person.facial_hair == "beard":
        pen.blob(
            [(x - face.rx - 0.02, y + 0.02), (x - face.rx + 0.02, y + face.ry + 0.02), (x, y + face.ry + 0.22),
             (x + face.rx - 0.02, y + face.ry + 0.02), (x + face.rx + 0.02, y + 0.02), (x + 0.17, y + 0.2),
             (x, y + 0.17), (x - 0.17, y + 0.2)],
            colour,
        )  # fmt: skip
    if person.facial_hair == "goatee":
        pen.ellipse((x, y + face.ry - 0.03), 0.12, 0.11, colour)
    if person.facial_hair == "mustache":
        pen.stroke([(x - 0.17, y + 0.24), (x, y + 0.2), (x + 0.17, y + 0.24)], 0.085, colour)


def _draw_glasses(pen: Pen, person: Person, face: FaceLayout) -> None:
    if person.glasses == "none":
        return
    frame = 0x1B1B22
    for side in (-1, 1):
        x, y = side * (face.eye_x + 0.01), face.eye_y + 0.01
        pen.stroke([(x + side * 0.13, y - 0.03), (side * face.rx, y - 0.06)], 0.045, frame)
        match person.glasses:
            case "round":
                pen.arc((x, y), 0.135, 0.135, 0, 360, 0.05, frame)
            case "square":
                pen.stroke(
                    [(x - 0.14, y - 0.1), (x + 0.14, y - 0.1), (x + 0.14, y + 0.1), (x - 0.14, y + 0.1),
                     (x - 0.14, y - 0.1)],
                    0.05, frame,
                )  # fmt: skip
            case "sunglasses":
                pen.box(x - 0.155, y - 0.1, x + 0.155, y + 0.12, frame, radius=0.07)
    pen.stroke([(-0.05, face.eye_y - 0.02), (0.05, face.eye_y - 0.02)], 0.045, frame)


def _draw_hat(pen: Pen, person: Person, face: FaceLayout) -> None:
    if person.hat is None:
        return
    colour = words.COLOUR[person.hat.colour]
    x, top, rx = HEAD[0], HEAD[1] - face.ry, face.rx + 0.1
    if person.hat.kind == "straw hat":
        pen.ellipse((x, top + 0.12), rx + 0.34, 0.13, 0xE3C16F)
        pen.box(x - rx + 0.06, top - 0.26, x + rx - 0.06, top + 0.12, 0xE9CB7F, radius=0.16)
        pen.box(x - rx + 0.06, top - 0.02, x + rx - 0.06, top + 0.09, 0x9B4A2B, outline=False)
        return
    crown = [(x - rx, top + 0.2), (x - rx, top - 0.2), (x, top - 0.34), (x + rx, top - 0.2), (x + rx, top + 0.2)]
    pen.blob([*crown, (x, top + 0.14)], colour)
    if person.hat.kind == "cap":
        pen.ellipse((x + 0.16, top + 0.15), rx - 0.02, 0.075, shade(colour, 0.8))
    else:
        pen.box(x - rx + 0.02, top + 0.02, x + rx - 0.02, top + 0.19, shade(colour, 0.82), radius=0.07)
        pen.ellipse((x, top - 0.26), 0.11, 0.11, shade(colour, 1.3))


def draw_head(pen: Pen, person: Person, expression: str) -> None:
    """Face and everything in front of it; `draw_hair_behind` goes first, under the body."""
    face = face_layout(person)
    skin = words.SKIN[person.skin]
    for side in (-1, 1):
        pen.ellipse((side * face.rx, HEAD[1] + 0.04), 0.075, 0.1, shade(skin, 0.93))
    if person.face_shape == "square":
        pen.box(-face.rx, HEAD[1] - face.ry, face.rx, HEAD[1] + face.ry, skin, radius=0.27)
    else:
        pen.ellipse(HEAD, face.rx, face.ry, skin)
    if person.age == "elderly":
        for side in (-1, 1):
            pen.arc((side * 0.13, HEAD[1] + 0.16), 0.1, 0.12, 300 if side > 0 else 150, 80, 0.022, shade(skin, 0.72))
        pen.stroke([(-0.14, HEAD[1] - 0.27), (0.14, HEAD[1] - 0.27)], 0.022, shade(skin, 0.75))
    elif person.age == "child":
        for side in (-1, 1):
            pen.ellipse((side * 0.23, HEAD[1] + 0.17), 0.075, 0.05, 0xF08A80, outline=False, alpha=0.55)
    _draw_mouth_and_nose(pen, person, face, expression)
    _draw_facial_hair(pen, person, face)
    _draw_eyes(pen, person, face, expression)
    _draw_hair_front(pen, person, face)
    _draw_glasses(pen, person, face)
    _draw_hat(pen, person, face)
