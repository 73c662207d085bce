"""Region prompts of characters: what they become, and what of them is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from storyloom.v1 import story_pb2 as pb
from storyloom_server.catalog import ModelCatalog
from storyloom_server.options import ServerOptions
from storyloom_server.orders import OrderTaker
from storyloom_server.safety_checks import load_safety
from storyloom_server.story_error import StoryError
from tests.server.test_server_redenoising import planned, two_passes, violations


@pytest.fixture(scope="module")
def catalog(identity_package: Path) -> ModelCatalog:
    return ModelCatalog.load([identity_package])


def test_a_character_may_have_a_region_prompt_of_its_own(catalog: ModelCatalog) -> None:
    """With the description where its name stands, or in front; a story that is taken up again has it, too."""
    asked = two_passes()
    asked.style = "a painting of"
    for text, expected in (
        ("{mia}, smiling", "a painting of a girl, smiling"),
        ("smiling at {mia}", "a painting of smiling at a girl"),
        ("smiling", "a painting of a girl, smiling"),
    ):
        asked.characters[0].identity.region_prompt = text
        plan = planned(asked, catalog)
        assert plan.job.redenoising is not None
        (region,) = plan.job.redenoising.regions
        start, end = region.prompt.spans["mia"][0]
        assert (region.prompt.text, region.prompt.text[start:end]) == (expected, "a girl")
        assert planned(plan.story, catalog).job == plan.job
    asked.settings.ClearField("redenoising")
    assert planned(asked, catalog).job.redenoising is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{mia} and {bo}", "names {bo}, .*; a region prompt shows mia alone"),
        ("{mia", "never closed"),
        ("x\0", "control characters"),
        ("smiling " * 90, "is too long, style and descriptions included"),
        ("x" * 2001, "2001 characters; 2000 are allowed"),
    ],
)
def test_bad_region_prompts_are_told(catalog: ModelCatalog, text: str, words: str) -> None:
    asked = two_passes()
    asked.characters.add(name="bo", description="an old man")
    asked.characters[0].identity.region_prompt = text
    found = violations(asked, catalog)
    assert found.keys() == {"story.characters[0].identity.region_prompt"}
    assert re.search(words, found["story.characters[0].identity.region_prompt"])


def test_region_prompts_are_for_characters_with_references(catalog: ModelCatalog) -> None:
    asked = two_passes()
    asked.characters.add(name="bo", description="an old man", identity=pb.IdentityOptions(region_prompt="smiling"))
    assert "for characters with references" in violations(asked, catalog)["story.characters[1].identity"]


def test_the_safety_checks_see_region_prompts(catalog: ModelCatalog, tmp_path: Path) -> None:
    """Refused by their own place, or flagged in the frames that show the character."""
    words = tmp_path / "words"
    words.write_text("dragon\n")
    asked = two_passes()
    asked.frames[1].prompt = "a lake"
    asked.characters[0].identity.region_prompt = "riding a dragon"
    plan, nobody = planned(asked, catalog), cast(Any, None)

    def flags(mode: Literal["block", "flag"]) -> Mapping[int, str]:
        safety = load_safety(ServerOptions(safety=mode, blocked_words=words))
        return OrderTaker(catalog, nobody, nobody, nobody, safety)._prompt_flags(plan)

    assert flags("flag") == {0: "blocked-words:word"}
    with pytest.raises(StoryError) as caught:
        flags("block")
    assert [each.path for each in caught.value.violations] == ["story.characters[0].identity.region_prompt"]
