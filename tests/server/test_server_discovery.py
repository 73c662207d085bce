"""Characters that are found from a description: through a real server, loop by loop, and as a package wants it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from storyloom.v1 import character_service_pb2 as characters_pb
from storyloom.v1 import character_service_pb2_grpc
from storyloom.v1 import story_pb2 as pb
from storyloom.v1 import story_service_pb2 as stories_pb
from storyloom_model.package import MANIFEST_FILE
from storyloom_server.catalog import ModelCatalog
from storyloom_server.discovery_wish import check_wish
from storyloom_server.tenants import Tenant
from tests.server.casts import cast_story, made, pixels
from tests.server.serving import ServerProcess, error_details, record, serving


@pytest.fixture(scope="module")
def server(identity_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("discovery"), identity_package) as running:
        yield running


def discover(channel: grpc.Channel, timeout: float = 90.0, **wish: Any) -> characters_pb.DiscoverCharacterResponse:
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    asked = characters_pb.DiscoverCharacterRequest(**({"name": "mia", "description": "a girl", "seed": 3} | wish))
    found: characters_pb.DiscoverCharacterResponse = stub.DiscoverCharacter(asked, timeout=timeout)
    return found


def test_a_discovered_character_is_one_like_any_other(channel: grpc.Channel) -> None:
    found = discover(channel, candidates=16)
    character, evidence = found.character, found.evidence
    assert (character.name, character.description, character.references) == ("mia", "a girl", 1)
    assert character.references_encoded
    assert list(evidence.compared) == list(range(16))
    assert [len(one.frames) for one in evidence.rounds] == [16]
    assert len(evidence.kept) == 9
    assert evidence.nearest in evidence.kept
    (note,) = character.reference_notes
    assert note.startswith(f"found in 16 candidates, story {evidence.story_id}: 16 show somebody")
    candidates = record(channel, evidence.story_id)
    assert (candidates.state, len(candidates.frames)) == (stories_pb.STORY_STATE_FINISHED, 16)
    assert candidates.story.title == "Candidates of mia"

    asked = cast_story()
    asked.characters[0].character_id = character.character_id
    plain, with_looks = made(channel, cast_story()), made(channel, asked)
    assert with_looks != plain
    assert made(channel, asked) == with_looks
    asked.settings.redenoising.enabled = True
    assert made(channel, asked) not in (plain, with_looks)
    again = discover(channel, candidates=16).character
    assert again.character_id != character.character_id
    asked.settings.ClearField("redenoising")
    asked.characters[0].character_id = again.character_id
    assert made(channel, asked) == with_looks, "the same seed finds another person"


def test_a_discovery_outlives_its_caller(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        discover(channel, request_id="once", candidates=16, timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]  # It has one.
    first = discover(channel, request_id="once", candidates=16).character
    again = discover(channel, request_id="once", candidates=16)
    assert again.character == first
    assert not again.HasField("evidence")
    with pytest.raises(grpc.RpcError) as refused:
        discover(channel, request_id="once", description="a boy")
    assert error_details(refused.value)["ErrorInfo"].reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"name": "4"}, "name"),
        ({"description": " "}, "description"),
        ({"description": "a girl " * 40}, "description"),
        ({"style": "x\0"}, "style"),
        ({"candidates": 3}, "candidates"),
        ({"candidates": 65}, "candidates"),
        ({"rounds": 9}, "rounds"),
        ({"model": "gone"}, "model"),
        ({"loops": 5}, "loops"),
        ({"negative_prompt": "blurred " * 90}, "negative_prompt"),
        ({"settings": pb.Settings(steps=1000)}, "settings.steps"),
        ({"settings": pb.Settings(seed=0)}, "settings.seed"),
        ({"settings": pb.Settings(model="identity")}, "settings.model"),
        ({"settings": pb.Settings(preview_interval=1)}, "settings.preview_interval"),
        ({"settings": pb.Settings(redenoising=pb.Redenoising())}, "settings.redenoising"),
        ({"settings": pb.Settings(consistency=pb.Consistency(enabled=True))}, "settings.consistency"),
        ({"settings": pb.Settings(identity_adapter="gone")}, "settings.identity_adapter"),
        ({"loops": 2, "settings": pb.Settings(identity_adapter="none")}, "settings.identity_adapter"),
    ],
)
def test_bad_discoveries_are_refused(channel: grpc.Channel, wish: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        discover(channel, **wish)
    found = error_details(caught.value)["BadRequest"].field_violations
    assert {violation.field for violation in found} == {field}


def seen(channel: grpc.Channel, story_id: str) -> list[bytes]:
    return [pixels(frame.image.png) for frame in record(channel, story_id, images=True).frames]


def test_later_loops_make_candidates_with_what_was_found(channel: grpc.Channel) -> None:
    """Those of the second are the pictures of a story about the character that one loop alone finds."""
    found = discover(channel, candidates=8, loops=2)
    (first,), second = found.earlier_loops, found.evidence
    alone = discover(channel, candidates=8)
    assert first.story_id != second.story_id
    assert seen(channel, first.story_id) == seen(channel, alone.evidence.story_id)
    assert list(first.kept) == list(alone.evidence.kept)
    assert list(second.compared) == list(range(8))
    again = record(channel, second.story_id).story
    assert again.settings.identity_adapter == "storynizor"
    assert [frame.seed for frame in again.frames] != [
        frame.seed for frame in record(channel, first.story_id).story.frames
    ]
    del again.characters[0].references[:]
    again.characters[0].character_id = alone.character.character_id
    assert made(channel, again) == seen(channel, second.story_id)
    again.settings.identity_adapter = "none"
    assert made(channel, again) != seen(channel, second.story_id)
    notes = found.character.reference_notes
    assert [note[: len("loop 1 of 2: found in 8")] for note in notes] == [f"loop {n} of 2: found in 8" for n in (1, 2)]
    asked = cast_story()
    asked.characters[0].character_id = found.character.character_id
    other = cast_story()
    other.characters[0].character_id = alone.character.character_id
    assert made(channel, asked) != made(channel, other)


def test_what_comes_after_the_candidates_is_done_again_where_it_was_lost(channel: grpc.Channel) -> None:
    """Every loop's story is found by its request id, which follows from the call's, and no candidate is made twice."""
    found = discover(channel, candidates=4, loops=3, request_id="thrice")
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    stub.DeleteCharacter(characters_pb.DeleteCharacterRequest(character_id=found.character.character_id), timeout=30)
    again = discover(channel, candidates=4, loops=3, request_id="thrice")
    assert len(found.earlier_loops) == 2
    assert (again.earlier_loops, again.evidence) == (found.earlier_loops, found.evidence)
    assert again.character.character_id == found.character.character_id


def test_candidates_are_made_as_asked(channel: grpc.Channel) -> None:
    wanted = pb.Settings(
        steps=3, solver=pb.SOLVER_EULER, guidance_scale=5.0, loras=[pb.LoraWeight(name="ink", weight=0.5)]
    )
    found = discover(channel, candidates=4, loops=2, negative_prompt="an illustration", settings=wanted)
    for loop in (*found.earlier_loops, found.evidence):
        story = record(channel, loop.story_id).story
        assert story.negative_prompt == "an illustration"
        assert (story.settings.steps, story.settings.solver, story.settings.guidance_scale) == (3, pb.SOLVER_EULER, 5.0)
        assert [(each.name, each.weight) for each in story.settings.loras] == [("ink", 0.5)]
        assert not story.settings.consistency.enabled


def test_a_package_says_how_its_candidates_are_made(identity_package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(identity_package, folder)
    file = folder / MANIFEST_FILE
    said = {"solver": "euler", "steps": 50, "guidance_scale": 5.0, "negative_prompt": "an illustration", "freeu": True}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"discovery": said}))
    catalog = ModelCatalog.load([folder])
    told = catalog.default.describe(is_default=True, max_request_bytes=1).discovery
    assert (told.settings.steps, told.negative_prompt) == (50, "an illustration")
    asked = characters_pb.DiscoverCharacterRequest(name="mia", description="a girl")
    plain = check_wish(catalog, Tenant("one"), asked).story(0)
    assert (plain.settings.steps, plain.settings.solver, plain.settings.guidance_scale) == (50, pb.SOLVER_EULER, 5.0)
    assert (plain.negative_prompt, plain.settings.freeu.enabled) == ("an illustration", True)
    asked.settings.steps = 9
    asked.settings.freeu.enabled = False
    asked.negative_prompt = ""
    own = check_wish(catalog, Tenant("one"), asked).story(0)
    assert (own.settings.steps, own.settings.solver, own.negative_prompt) == (9, pb.SOLVER_EULER, "")
    assert not own.settings.freeu.enabled
