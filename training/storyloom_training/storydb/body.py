"""Draws a clothed body in a pose, and what its hands hold. Units and origin as in `pose`."""

from __future__ import annotations

import math

import skia

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.head import draw_hair_behind, draw_head
from storyloom_training.storydb.pen import Pen, Point, shade
from storyloom_training.storydb.people import Garment, Person
from storyloom_training.storydb.pose import BUILDS, POSES, Build, Pose, skeleton

LONG_SLEEVES = ("sweater", "shirt", "hoodie", "jacket", "coat")


def _pattern(pen: Pen, area: skia.Path, garment: Garment, build: Build) -> None:
    """Draws stripes, checks or dots inside `area`."""
    colour = words.COLOUR[garment.colour]
    light = sum((colour >> shift) & 0xFF for shift in (16, 8, 0)) > 420
    mark = shade(colour, 0.6) if light else shade(colour, 1.65)
    pen.canvas.save()
    pen.canvas.clipPath(area, skia.ClipOp.kIntersect, True)
    width = build.shoulder + 0.5
    lines = [i * 0.26 for i in range(12)]
    if garment.pattern in ("striped", "checked"):
        for y in lines:
            pen.stroke([(-width, y), (width, y)], 0.1, mark)
    if garment.pattern == "checked":
        for i in range(-5, 6):
            pen.stroke([(i * 0.26, -0.5), (i * 0.26, 3.2)], 0.08, mark)
    if garment.pattern == "dotted":
        for row, y in enumerate(lines):
            for i in range(-5, 6):
                pen.ellipse((i * 0.28 + (0.14 if row % 2 else 0), y + 0.06), 0.065, 0.065, mark, outline=False)
    pen.canvas.restore()


def _torso(build: Build, bottom: float, flare: float) -> skia.Path:
    path = skia.Path()
    path.moveTo(-0.16, 0.0)
    path.lineTo(-build.shoulder, 0.09)
    path.quadTo(-build.shoulder - 0.06, 0.2, -build.shoulder + 0.02, 0.5)
    path.lineTo(-build.hip - flare, bottom)
    path.lineTo(build.hip + flare, bottom)
    path.lineTo(build.shoulder - 0.02, 0.5)
    path.quadTo(build.shoulder + 0.06, 0.2, build.shoulder, 0.09)
    path.lineTo(0.16, 0.0)
    path.close()
    return path


def _draw_legs(pen: Pen, person: Person, build: Build, joints: dict[str, Point]) -> None:
    skin = words.SKIN[person.skin]
    garment = person.bottom
    for side in ("left", "right"):
        hip, knee, foot = (joints[f"{side} {part}"] for part in ("hip", "knee", "foot"))
        pen.stroke([hip, knee, foot], build.limb * 0.85, skin, outline=True)
        if garment and garment.kind in ("jeans", "trousers"):
            pen.stroke([hip, knee, foot], build.limb * 1.1, words.COLOUR[garment.colour], outline=True)
        elif garment and garment.kind == "shorts":
            middle = ((hip[0] + 2 * knee[0]) / 3, (hip[1] + 2 * knee[1]) / 3)
            pen.stroke([hip, middle], build.limb * 1.25, words.COLOUR[garment.colour], outline=True)
        toe = 0.1 if side == "right" else -0.1
        pen.ellipse((foot[0] + toe, foot[1] + 0.06), 0.2, 0.11, words.COLOUR[person.shoe_colour])


def _draw_skirt(pen: Pen, build: Build, colour: int, top: float, length: float) -> None:
    flare = build.hip + 0.32
    pen.polygon(
        [(-build.hip - 0.03, top), (build.hip + 0.03, top), (flare, top + length), (-flare, top + length)], colour
    )


def _draw_top(pen: Pen, person: Person, build: Build) -> None:
    garment = person.top
    colour = words.COLOUR[garment.colour]
    bottom = {"coat": build.torso + 0.55 * build.leg, "dress": build.torso + 0.9 * build.leg}.get(
        garment.kind, build.torso + 0.1
    )
    flare = {"coat": 0.14, "dress": 0.36}.get(garment.kind, 0.05)
    area = _torso(build, bottom, flare)
    pen.path(area, colour)
    if garment.pattern != "plain":
        _pattern(pen, area, garment, build)
    dark = shade(colour, 0.6)
    match garment.kind:
        case "shirt":
            pen.stroke([(0, 0.1), (0, bottom - 0.05)], 0.035, dark)
            pen.polygon([(-0.24, -0.03), (0, 0.2), (0.24, -0.03)], 0xFFFFFF if garment.colour != "white" else 0xDDDDDD)
        case "jacket" | "coat":
            inner = 0xF2F2EE if garment.colour != "white" else 0x8E949B
            pen.polygon([(-0.17, 0.0), (0.17, 0.0), (0.08, bottom), (-0.08, bottom)], inner)
            for side in (-1, 1):
                pen.polygon([(side * 0.17, -0.02), (side * 0.36, 0.05), (side * 0.12, 0.55)], shade(colour, 0.8))
        case "hoodie":
            pen.arc((0, 0.0), 0.34, 0.22, 0, 180, 0.13, shade(colour, 0.8))
            pen.box(-0.3, build.torso - 0.5, 0.3, build.torso - 0.12, shade(colour, 0.85), radius=0.1)
        case "sweater":
            pen.arc((0, -0.02), 0.22, 0.14, 0, 180, 0.1, dark)
            pen.stroke([(-build.hip - 0.02, bottom - 0.06), (build.hip + 0.02, bottom - 0.06)], 0.11, dark)
        case "dress":
            pen.stroke([(-build.hip, build.torso - 0.28), (build.hip, build.torso - 0.28)], 0.09, dark)
        case _:
            pen.arc((0, -0.02), 0.2, 0.13, 0, 180, 0.05, dark)


def _draw_arms(pen: Pen, person: Person, build: Build, joints: dict[str, Point]) -> None:
    skin, colour = words.SKIN[person.skin], words.COLOUR[person.top.colour]
    for side in ("left", "right"):
        shoulder, elbow, hand = (joints[f"{side} {part}"] for part in ("shoulder", "elbow", "hand"))
        pen.stroke([shoulder, elbow, hand], build.limb * 0.72, skin, outline=True)
        if person.top.kind in LONG_SLEEVES:
            cuff = (elbow[0] + 0.82 * (hand[0] - elbow[0]), elbow[1] + 0.82 * (hand[1] - elbow[1]))
            pen.stroke([shoulder, elbow, cuff], build.limb, colour, outline=True)
        else:
            cuff = (shoulder[0] + 0.6 * (elbow[0] - shoulder[0]), shoulder[1] + 0.6 * (elbow[1] - shoulder[1]))
            pen.stroke([shoulder, cuff], build.limb * 1.05, colour, outline=True)
        pen.ellipse(hand, 0.12, 0.12, skin)


def _draw_held(pen: Pen, held: str, joints: dict[str, Point]) -> None:
    left, right = joints["left hand"], joints["right hand"]
    middle = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    x, y = middle
    match held:
        case "book":
            pen.polygon([(x - 0.4, y - 0.3), (x, y - 0.2), (x, y + 0.18), (x - 0.4, y + 0.08)], 0xF7F3E3)
            pen.polygon([(x + 0.4, y - 0.3), (x, y - 0.2), (x, y + 0.18), (x + 0.4, y + 0.08)], 0xEDE6CC)
            pen.stroke([(x - 0.42, y + 0.12), (x, y + 0.22), (x + 0.42, y + 0.12)], 0.07, 0x9B2F2F)
        case "cup":
            x, y = right
            pen.box(x - 0.14, y - 0.2, x + 0.14, y + 0.08, 0xFDFDFD, radius=0.04)
            pen.arc((x + 0.16, y - 0.06), 0.09, 0.09, 270, 180, 0.045, 0xDDDDDD)
        case "flowers":
            for i, colour in enumerate((0xE8436A, 0xF5B83D, 0xB56BD6, 0xF27FA8)):
                tip = (x - 0.27 + 0.18 * i, y - 0.42 - 0.08 * (i % 2))
                pen.stroke([(x, y + 0.15), tip], 0.045, 0x3C8A3F)
                pen.ellipse(tip, 0.12, 0.12, colour)
                pen.ellipse(tip, 0.045, 0.045, 0xFBE27A, outline=False)
        case "brush":
            x, y = right
            pen.stroke([(x - 0.1, y + 0.12), (x + 0.22, y - 0.3)], 0.055, 0x8A5A2B)
            pen.ellipse((x + 0.25, y - 0.34), 0.075, 0.075, 0xE8436A)
        case "pan":
            x, y = right
            pen.stroke([(x, y), (x + 0.3, y - 0.06)], 0.075, 0x33333A)
            pen.ellipse((x + 0.55, y - 0.1), 0.3, 0.1, 0x44444C)
            pen.ellipse((x + 0.55, y - 0.14), 0.18, 0.06, 0xF5C542, outline=False)
        case "guitar":
            pen.stroke([(x + 0.15, y), (right[0] + 0.22, right[1] - 0.2)], 0.1, 0x5B3A1E)
            pen.ellipse((x - 0.18, y + 0.06), 0.3, 0.26, 0xC9803A)
            pen.ellipse((x + 0.12, y), 0.2, 0.18, 0xC9803A)
            pen.ellipse((x - 0.06, y + 0.03), 0.1, 0.1, 0x3B2412)


def draw_person(canvas: skia.Canvas, person: Person, pose_name: str, expression: str) -> dict[str, Point]:
    """Draws a person with the neck at the canvas origin, one unit per head height; returns the joints drawn."""
    pose: Pose = POSES[pose_name]
    build = BUILDS[person.age, person.gender]
    joints = skeleton(build, pose)
    canvas.save()
    canvas.rotate(pose.lean)
    pen = Pen(canvas, line=0.035)
    draw_hair_behind(pen, person)
    if pose.seated:
        pen.box(-0.75, build.torso - 0.05, 0.75, build.torso + 0.3, 0x8A5A33, radius=0.06)
    _draw_legs(pen, person, build, joints)
    if person.bottom and person.bottom.kind == "skirt":
        _draw_skirt(pen, build, words.COLOUR[person.bottom.colour], build.torso, build.leg * 0.85)
    elif person.bottom:
        pen.box(-build.hip, build.torso - 0.1, build.hip, build.torso + 0.2, words.COLOUR[person.bottom.colour],
                radius=0.08, outline=False)  # fmt: skip
    pen.stroke([(0, -0.2), (0, 0.1)], 0.26, shade(words.SKIN[person.skin], 0.88))
    _draw_top(pen, person, build)
    _draw_head_and_arms(pen, person, build, joints, pose, expression)
    canvas.restore()
    angle = math.radians(pose.lean)
    return {
        name: (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        for name, (x, y) in joints.items()
    }


def _draw_head_and_arms(
    pen: Pen, person: Person, build: Build, joints: dict[str, Point], pose: Pose, expression: str
) -> None:
    if person.hair_style == "braids":
        draw_hair_behind(pen, person)
    draw_head(pen, person, expression)
    _draw_arms(pen, person, build, joints)
    _draw_held(pen, pose.held, joints)
