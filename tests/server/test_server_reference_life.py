"""What outlives the pictures: characters and stories keep what was encoded of them, through faults and restarts."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import character_service_pb2 as characters_pb
from storyloom.v1 import character_service_pb2_grpc, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.identity.features import IdentityFeatures, Reference
from storyloom_server import messages
from tests.server.casts import GREEN, PINK, cast_story, encoded, free_port, keep, made, picture, pixels, refusal
from tests.server.engines import ENDLESS, Heard, engine_options, job, spec, submit, supervised
from tests.server.null_encoder import BLUE, DEADLY, WHITE
from tests.server.serving import (
    START_SECONDS,
    ServerProcess,
    create,
    ended,
    error_details,
    generate,
    serving,
    stories,
    until_step,
    wait_until,
    watch,
)


@contextmanager
def measured(
    folder: Path, model: Path, *arguments: str, **environment: str
) -> Iterator[tuple[ServerProcess, grpc.Channel, int]]:
    """A server, a channel to it, and the port of its metrics."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    with (
        serving(folder, model, "--metrics-port", str(port), *arguments, environment=environment) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel, port


def uses(kept: characters_pb.CharacterRecord) -> story_pb2.Story:
    """A story with a kept character."""
    asked = cast_story()
    asked.characters[0].character_id = kept.character_id
    return asked


def test_a_kept_character_is_encoded_once(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package) as (_, channel, port):
        masked = story_pb2.Reference(picture=picture(), mask=picture(WHITE))
        kept = keep(channel, picture(BLUE), reference_pictures=[masked])
        assert (kept.references, kept.references_encoded) == (2, True)
        assert list(kept.reference_notes) == ["reference 1: 3 faces; the largest was taken"]
        assert encoded(port) == {"encoded": 2}
        same = cast_story(picture(BLUE), picture())
        same.characters[0].references[1].mask = picture(WHITE)
        assert made(channel, uses(kept)) == made(channel, uses(kept)) == made(channel, same)
        assert encoded(port) == {"encoded": 2, "cached": 6}, "the same pictures in a story are the same too"
        same.characters[0].references[1].role = story_pb2.REFERENCE_ROLE_CLOTHES
        made(channel, same)
        assert encoded(port)["encoded"] == 4


def test_what_follows_from_a_story_needs_no_pictures(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package) as (_, channel, port):
        kept = keep(channel, picture())
        whole = cast_story(frames=3)
        whole.characters[0].character_id = kept.character_id
        *_, last = generate(channel, whole)
        delete(channel, kept.character_id)
        assert refusal(channel, uses(kept))[0] is grpc.StatusCode.NOT_FOUND
        parent = ended(channel, last.story_id)
        redo = pb.RedoFrameRequest(story_id=last.story_id, frame_index=2, frame=whole.frames[2])
        redo.frame.seed = parent.frames[2].seed
        redone = ended(channel, stories(channel).RedoFrame(redo, timeout=30).story.story_id)
        assert redone.state == pb.STORY_STATE_FINISHED
        # Without her looks it would be another picture.
        plain = pb.RedoFrameRequest(story_id=last.story_id, frame_index=2, frame=redo.frame)
        again = ended(channel, stories(channel).RedoFrame(plain, timeout=30).story.story_id)
        assert pixels(again.frames[2].image.png) == pixels(redone.frames[2].image.png)
        extend = pb.ExtendStoryRequest(
            story_id=last.story_id,
            frames=[story_pb2.Frame(prompt="{mia} and {bo} sit")],
            new_characters=[
                story_pb2.Character(
                    name="bo", description="a man", references=[story_pb2.Reference(picture=picture(PINK))]
                )
            ],
        )
        longer = ended(channel, stories(channel).ExtendStory(extend, timeout=30).story.story_id)
        assert [len(character.references) for character in longer.story.characters] == [1, 1]
        assert longer.state == pb.STORY_STATE_FINISHED
        assert encoded(port) == {"encoded": 2, "cached": 1}


def test_encoders_that_changed_encode_a_kept_character_again(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package) as (server, channel, _):
        kept = keep(channel, picture())
        *_, last = generate(channel, uses(kept))
        assert server.terminate() == 0
    with measured(tmp_path, identity_package, STORYLOOM_TEST_ENCODERS="null-2") as (_, channel, port):
        assert not character(channel, kept.character_id).references_encoded
        made(channel, uses(kept))
        made(channel, uses(kept))
        assert encoded(port) == {"encoded": 1, "cached": 1}
        assert character(channel, kept.character_id).references_encoded
        redo = pb.RedoFrameRequest(story_id=last.story_id, frame_index=0)
        with pytest.raises(grpc.RpcError) as caught:
            stories(channel).RedoFrame(redo, timeout=30)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error_details(caught.value)["ErrorInfo"].reason == "REFERENCES_OUTDATED"


def test_a_restart_after_kill_makes_the_same_pictures(identity_package: Path, tmp_path: Path) -> None:
    asked = cast_story(picture(PINK), steps=60, frames=12)
    asked.settings.loras.add(name="ink", weight=0.7)
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.03"}
    with measured(tmp_path / "calm", identity_package) as (_, channel, _):
        calm = made(channel, asked)
    state = ("--state-folder", str(tmp_path / "state"))
    with measured(tmp_path / "struck", identity_package, *state, **slow) as (server, channel, _):
        story_id = create(channel, asked)
        until_step(watch(channel, story_id), 12)
        os.kill(server.engine_pid, signal.SIGKILL)
        server.process.kill()
        server.process.wait()
    with measured(tmp_path / "later", identity_package, *state, **slow) as (_, channel, port):
        found = ended(channel, story_id)
        assert [pixels(frame.image.png) for frame in found.frames] == calm
        assert encoded(port) == {}


def test_windows_know_those_whom_they_show(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package) as (_, channel, _):
        long = cast_story(picture(PINK), frames=9)
        long.characters.add(name="bo", description="a man", references=[story_pb2.Reference(picture=picture(GREEN))])
        long.frames.extend([story_pb2.Frame(prompt="{bo} sits")] * 9)
        nobody = story_pb2.Story()
        nobody.CopyFrom(long)
        for character in nobody.characters:
            character.ClearField("references")
        seen, unseen = made(channel, long), made(channel, nobody)
        assert len(seen) == 18
        assert all(one != other for one, other in zip(seen, unseen, strict=True)), "in every window"


def test_an_engine_killed_while_it_encodes_is_asked_again(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package, STORYLOOM_TEST_ENCODE_SECONDS="2") as (server, channel, port):
        call = generate(channel, cast_story(picture(WHITE)))
        wait_until(lambda: "references are being encoded" in server.log, 60)
        os.kill(server.engine_pid, signal.SIGKILL)
        assert [event.WhichOneof("event") for event in call][-1] == "done"
        assert encoded(port) == {"encoded": 1}


def test_pictures_that_kill_engines_are_given_up(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package) as (server, channel, _):
        for starts in (1, 3):
            wait_until(lambda starts=starts: server.log.count("engine ready") == starts, START_SECONDS)
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(channel, cast_story(picture(DEADLY))))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            details = error_details(caught.value)
            assert details["ErrorInfo"].reason == "ENCODER_CRASHED"
            assert "RetryInfo" not in details
        assert server.log.count("the engine process is gone") == 2, "the second call asks no engine"
        assert made(channel, cast_story(picture()))


def test_callers_who_leave_are_not_encoded_for(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package, STORYLOOM_TEST_ENCODE_SECONDS="1") as (server, channel, port):
        call = generate(channel, cast_story(*[picture(WHITE)] * 8))
        wait_until(lambda: "references are being encoded" in server.log, 60)
        call.cancel()
        wait_until(lambda: "references dropped" in server.log, 60)
        assert made(channel, cast_story(picture()))
        assert encoded(port) == {"encoded": 1}


def test_stories_take_a_step_between_two_pictures(identity_package: Path) -> None:
    batches: list[messages.BatchStepped] = []

    async def count() -> int:
        options = engine_options(spec("identity", str(identity_package)))
        async with supervised(options, on_batch=batches.append) as engine:
            assert engine.encoders == {"identity": "null-1"}
            heard = Heard()
            engine.submit(submit("endless", job(steps=ENDLESS), model="identity"), heard)
            await heard.until(messages.Stepped)
            before = len(batches)
            ask = messages.EncodeReferences("references", "identity", tuple([Reference(picture(WHITE))] * 20))
            answer = await engine.encode_references(ask)
            assert len(IdentityFeatures.from_bytes(answer.features).references) == 20
            return len(batches) - before

    assert asyncio.run(count()) >= 19


def test_nothing_of_a_picture_is_left_when_nobody_needs_it(identity_package: Path, tmp_path: Path) -> None:
    with measured(tmp_path, identity_package, "--log-level", "debug") as (server, channel, _):
        kept = keep(channel, picture())
        made(channel, uses(kept))
        made(channel, cast_story(picture(PINK)))
        assert rows(tmp_path) == [(True, False), (False, True), (False, True)]
        delete(channel, kept.character_id)
        assert rows(tmp_path) == [(False, True), (False, True)], "the stories keep their own"
        assert "PNG" not in server.log


def character(channel: grpc.Channel, character_id: str) -> characters_pb.CharacterRecord:
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    found: characters_pb.CharacterRecord = stub.GetCharacter(
        characters_pb.GetCharacterRequest(character_id=character_id), timeout=30
    ).character
    return found


def delete(channel: grpc.Channel, character_id: str) -> None:
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    stub.DeleteCharacter(characters_pb.DeleteCharacterRequest(character_id=character_id), timeout=30)


def rows(folder: Path) -> list[tuple[bool, bool]]:
    """Of each kept row of features, whether it is a character's and whether it is a story's."""
    with sqlite3.connect(folder / "state" / "stories.db") as database:
        found = database.execute("SELECT character_id IS NOT NULL, story_id IS NOT NULL FROM features ORDER BY rowid")
        return [(bool(of_character), bool(of_story)) for of_character, of_story in found]
