"""Casts with reference pictures, for servers with the null encoder, and what the tests read of them."""

import io
import socket
import urllib.request
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from storyloom.v1 import character_service_pb2 as characters_pb
from storyloom.v1 import character_service_pb2_grpc, story_pb2
from tests.server.serving import error_details, generate

GREEN, PINK = (0, 128, 0), (255, 128, 128)


def picture(colour: Any = GREEN, size: tuple[int, int] = (64, 48), form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form, **options)
    return buffer.getvalue()


def cast_story(*pictures: bytes, steps: int = 4, frames: int = 2, **fields: Any) -> story_pb2.Story:
    """Mia with these references."""
    references = [story_pb2.Reference(picture=each) for each in pictures]
    return story_pb2.Story(
        characters=[story_pb2.Character(name="mia", description="a girl", references=references, **fields)],
        frames=[story_pb2.Frame(prompt="{mia} walks")] * frames,
        settings=story_pb2.Settings(steps=steps, seed=7),
    )


def keep(channel: grpc.Channel, *pictures: bytes, **fields: Any) -> characters_pb.CharacterRecord:
    asked = characters_pb.CreateCharacterRequest(name="mia", description="a girl", references=pictures, **fields)
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    kept: characters_pb.CharacterRecord = stub.CreateCharacter(asked, timeout=60).character
    return kept


def pictures_of(events: Sequence[Any]) -> list[bytes]:
    """What was made, frame by frame."""
    frames = [event.frame for event in events if event.WhichOneof("event") == "frame"]
    return [pixels(frame.image.png) for frame in sorted(frames, key=lambda frame: frame.frame_index)]


def pixels(png: bytes) -> bytes:
    """What a picture shows, without the file's metadata."""
    return np.asarray(Image.open(io.BytesIO(png))).tobytes()


def made(channel: grpc.Channel, asked: story_pb2.Story, **fields: Any) -> list[bytes]:
    return pictures_of(list(generate(channel, asked, **fields)))


def refusal(channel: grpc.Channel, asked: story_pb2.Story) -> tuple[grpc.StatusCode, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, asked))
    details = error_details(caught.value)
    found = details["BadRequest"].field_violations if "BadRequest" in details else ()
    return caught.value.code(), {violation.field: violation.description for violation in found}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def encoded(port: int) -> dict[str, int]:
    """Reference pictures by what came of them, from a server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    prefix = 'storyloom_references_total{outcome="'
    found = [line.removeprefix(prefix).partition('"} ') for line in lines if line.startswith(prefix)]
    return {outcome: int(float(value)) for outcome, _, value in found}
