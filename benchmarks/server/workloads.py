"""Simulated devices and traffic, with the source of every figure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.server.simulation import Device, StoryMaker
from storyloom_model.execution import ROW_BUCKETS
from storyloom_server.scheduler import StoryShape

_CURVE_512 = (1.0, 1.10, 1.12, 1.44, 2.55)
_CURVE_512_SOURCE = (
    "step time at batch 1, 2, 3, 4, 8 relative to batch 1 as measured for Qwen-Image 512 x 512 on an H200 "
    "(sgl-project/sglang #22183), in proportion beyond; 20 ms at one row and the other times are assumptions"
)

SATURATED = Device(
    name="1024, saturated",
    source="throughput x1.02 at batch 2 and x1.03 at batch 3 as measured for Qwen-Image 1024 x 1024 on an H200 "
    "(sgl-project/sglang #22183); 13.5 TFLOP for two rows of SDXL at 500 TFLOP/s; VAE decode 10.5 TFLOP; 5.6 % a "
    "further frame of the story (foreground of a quarter, counted operations times two); encoding is an assumption",
    pixels=1024 * 1024,
    rows=(1, 2, 3),
    times=(0.0137, 0.0137 * 2 / 1.02, 0.0137 * 3 / 1.03),
    cross_frame=0.056,
    encode=0.02,
    decode=0.021,
)

SUBLINEAR = Device(
    name="512, sub-linear",
    source=_CURVE_512_SOURCE,
    pixels=512 * 512,
    rows=(1, 2, 3, 4, 8),
    times=tuple(0.02 * factor for factor in _CURVE_512),
    cross_frame=0.03,
    encode=0.01,
    decode=0.006,
)

PADDED = Device(
    name="512, padded to buckets",
    source="as before, with rows padded to the model's buckets: " + ", ".join(map(str, ROW_BUCKETS)),
    pixels=SUBLINEAR.pixels,
    rows=SUBLINEAR.rows,
    times=SUBLINEAR.times,
    cross_frame=SUBLINEAR.cross_frame,
    encode=SUBLINEAR.encode,
    decode=SUBLINEAR.decode,
    buckets=ROW_BUCKETS,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A device and the stories that come to it."""

    name: str
    device: Device
    traffic: str
    story: StoryMaker


def _mixed(device: Device, keys: str) -> StoryMaker:
    def draw(random_: random.Random) -> tuple[StoryShape, str]:
        key = random_.choice(keys)
        if random_.random() < 0.75:
            return StoryShape(random_.randint(1, 2), 2, device.pixels, 20), key
        return StoryShape(random_.randint(6, 10), 2, device.pixels, 30), key

    return draw


def _alike(device: Device, frames: int) -> StoryMaker:
    def draw(_: random.Random) -> tuple[StoryShape, str]:
        return StoryShape(frames, 2, device.pixels, 25), "x"

    return draw


_MIXED = "3 of 4 stories short (1 or 2 frames, 20 steps), the others long (6 to 10 frames, 30 steps); all guided"

SCENARIOS = (
    Scenario("mixed, 1024 saturated", SATURATED, _MIXED, _mixed(SATURATED, "x")),
    Scenario("mixed, 512 sub-linear", SUBLINEAR, _MIXED, _mixed(SUBLINEAR, "x")),
    Scenario("mixed, 512 padded", PADDED, _MIXED, _mixed(PADDED, "x")),
    Scenario("mixed, two keys, 512", SUBLINEAR, f"{_MIXED}; two compatibility keys", _mixed(SUBLINEAR, "xy")),
    Scenario("all alike, 1024 saturated", SATURATED, "4 guided frames, 25 steps", _alike(SATURATED, 4)),
    Scenario("all alike, 512 sub-linear", SUBLINEAR, "1 guided frame, 25 steps", _alike(SUBLINEAR, 1)),
)
