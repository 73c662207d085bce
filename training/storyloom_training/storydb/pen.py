"""Thin drawing helpers over skia: filled shapes with a darker outline, in the caller's units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import skia

Point = tuple[float, float]


def shade(colour: int, factor: float) -> int:
    """Scales an 0xRRGGBB colour: below 1 darker, above 1 lighter (towards white)."""
    channels = [(colour >> shift) & 0xFF for shift in (16, 8, 0)]
    if factor <= 1:
        scaled = [int(c * factor) for c in channels]
    else:
        scaled = [int(c + (255 - c) * min(factor - 1, 1)) for c in channels]
    return (scaled[0] << 16) | (scaled[1] << 8) | scaled[2]


class Pen:
    """Draws on a skia canvas. Lengths are in canvas units; `line` is the outline width, 0 for none."""

    def __init__(self, canvas: skia.Canvas, line: float = 0.0) -> None:
        self.canvas = canvas
        self.line = line

    def _paint(self, colour: int, alpha: float = 1.0) -> skia.Paint:
        return skia.Paint(Color=skia.Color4f.FromColor(0xFF000000 | colour), AntiAlias=True, Alphaf=alpha)

    def path(self, path: skia.Path, colour: int, *, outline: bool = True, alpha: float = 1.0) -> None:
        self.canvas.drawPath(path, self._paint(colour, alpha))
        if outline and self.line > 0:
            stroke = self._paint(shade(colour, 0.62))
            stroke.setStyle(skia.Paint.kStroke_Style)
            stroke.setStrokeWidth(self.line)
            stroke.setStrokeJoin(skia.Paint.kRound_Join)
            self.canvas.drawPath(path, stroke)

    def ellipse(
        self, centre: Point, rx: float, ry: float, colour: int, *, outline: bool = True, alpha: float = 1.0
    ) -> None:
        path = skia.Path()
        path.addOval(skia.Rect.MakeLTRB(centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry))
        self.path(path, colour, outline=outline, alpha=alpha)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        colour: int,
        *,
        radius: float = 0.0,
        outline: bool = True,
    ) -> None:
        path = skia.Path()
        path.addRRect(skia.RRect.MakeRectXY(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius))
        self.path(path, colour, outline=outline)

    def polygon(self, points: Sequence[Point], colour: int, *, outline: bool = True) -> None:
        path = skia.Path()
        path.addPoly([skia.Point(*p) for p in points], True)
        self.path(path, colour, outline=outline)

    def blob(self, points: Sequence[Point], colour: int, *, outline: bool = True) -> None:
        """A closed smooth curve through the midpoints of a polygon's sides."""
        middles = [
            ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(points, (*points[1:], points[0]), strict=True)
        ]
        path = skia.Path()
        path.moveTo(*middles[-1])
        for point, middle in zip(points, middles, strict=True):
            path.quadTo(*point, *middle)
        path.close()
        self.path(path, colour, outline=outline)

    def stroke(self, points: Sequence[Point], width: float, colour: int, *, outline: bool = False) -> None:
        """A line with round ends and joints; with `outline`, edged in a darker shade."""
        path = skia.Path()
        path.moveTo(*points[0])
        for point in points[1:]:
            path.lineTo(*point)
        layers = [(width + 2 * self.line, shade(colour, 0.62))] if outline and self.line > 0 else []
        for layer_width, layer_colour in (*layers, (width, colour)):
            paint = self._paint(layer_colour)
            paint.setStyle(skia.Paint.kStroke_Style)
            paint.setStrokeWidth(layer_width)
            paint.setStrokeCap(skia.Paint.kRound_Cap)
            paint.setStrokeJoin(skia.Paint.kRound_Join)
            self.canvas.drawPath(path, paint)

    def arc(self, centre: Point, rx: float, ry: float, start: float, sweep: float, width: float, colour: int) -> None:
        """An arc of an ellipse; angles in degrees, clockwise from three o'clock."""
        steps = 12
        points = []
        for i in range(steps + 1):
            angle = math.radians(start + sweep * i / steps)
            points.append((centre[0] + rx * math.cos(angle), centre[1] + ry * math.sin(angle)))
        self.stroke(points, width, colour)

    def gradient(self, box: tuple[float, float, float, float], top: int, bottom: int) -> None:
        """Fills a box (left, top, right, bottom) with a vertical gradient."""
        shader = skia.GradientShader.MakeLinear(
            points=[skia.Point(0, box[1]), skia.Point(0, box[3])], colors=[0xFF000000 | top, 0xFF000000 | bottom]
        )
        self.canvas.drawRect(skia.Rect.MakeLTRB(*box), skia.Paint(Shader=shader, AntiAlias=True))
