"""Open-loop load: stories come when they come, whether or not earlier ones are done, and latency counts from then.

A client that waited for an answer before it sends the next story would stop asking just when the server is slow, and so
hide the delay that everybody else sees. Here each story has its moment in a schedule drawn beforehand.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from storyloom.v1 import story_pb2, story_service_pb2_grpc
from storyloom.v1 import story_service_pb2 as pb

_PROMPTS = ("walking in a park", "reading in a garden", "waving at a lake", "sitting in a cafe", "on a hill", "at home")
_DESCRIPTION = "a young woman with long red hair and round glasses, wearing a green sweater"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of story: what it costs depends on nothing else."""

    frames: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.frames} frames, {self.steps} steps"


def mix(frames: Sequence[int], steps: Sequence[int]) -> tuple[Kind, ...]:
    """Short and long stories of few and many frames, in all combinations."""
    return tuple(Kind(few, many) for few in frames for many in steps)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A story that somebody wants ``at`` so many seconds after the start."""

    at: float
    kind: Kind
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a story. Seconds from the moment at which it was wanted; None where that never came.

    ``sent`` is how late the client itself was. ``error`` is the name of a status code, empty for a finished story.
    """

    kind: Kind
    at: float
    sent: float
    first_event: float | None
    first_step: float | None
    latency: float | None
    error: str = ""


def poisson(kinds: Sequence[Kind], rate: float, seconds: float, seed: int) -> list[Arrival]:
    """A Poisson stream of stories of all kinds alike: ``rate`` a second on average, for so long.

    Its number of stories is the expected one, so that short streams of two rates differ as the rates do; given their
    number, the moments of a Poisson stream are independent and uniform.
    """
    draw = random.Random(seed)  # noqa: S311 - a benchmark
    moments = sorted(draw.uniform(0.0, seconds) for _ in range(max(1, round(rate * seconds))))
    return [Arrival(at, draw.choice(kinds), draw.getrandbits(32)) for at in moments]


def together(kinds: Sequence[Kind], count: int) -> list[Arrival]:
    """``count`` stories of all kinds in turn, all at once."""
    return [Arrival(0.0, kinds[index % len(kinds)], index) for index in range(count)]


def request(kind: Kind, seed: int) -> pb.GenerateStoryRequest:
    prompts = (f"{{mia}} {_PROMPTS[index]}" for index in range(kind.frames))
    return pb.GenerateStoryRequest(
        story=story_pb2.Story(
            characters=[story_pb2.Character(name="mia", description=_DESCRIPTION)],
            frames=[story_pb2.Frame(prompt=prompt) for prompt in prompts],
            settings=story_pb2.Settings(steps=kind.steps, seed=seed),
        )
    )


async def play(address: str, schedule: Sequence[Arrival]) -> list[Outcome]:
    """Sends every story of the schedule at its time and follows all of them to their ends."""
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub = story_service_pb2_grpc.StoryServiceStub(channel)
        start = time.monotonic()
        return await asyncio.gather(*(_follow(stub, arrival, start + arrival.at) for arrival in schedule))


async def _follow(stub: Any, arrival: Arrival, wanted: float) -> Outcome:
    await asyncio.sleep(max(0.0, wanted - time.monotonic()))
    sent = time.monotonic() - wanted
    first_event: float | None = None
    first_step: float | None = None
    try:
        async for event in stub.GenerateStory(request(arrival.kind, arrival.seed)):
            now = time.monotonic() - wanted
            first_event = now if first_event is None else first_event
            if first_step is None and event.progress.step >= 1:
                first_step = now
    except grpc.aio.AioRpcError as error:
        return Outcome(arrival.kind, arrival.at, sent, first_event, first_step, None, error.code().name)
    return Outcome(arrival.kind, arrival.at, sent, first_event, first_step, time.monotonic() - wanted)
