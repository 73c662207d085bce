"""Stories without references by a method that wants them: characters are found first, through a real server."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.server.scrape import Scrape, free_port
from benchmarks.stories.cost import Cost, DiscoveryCost
from benchmarks.stories.discovery import Discoverer
from benchmarks.stories.generate import Maker, Outcome, Shelf
from benchmarks.stories.known import known_by_name
from benchmarks.stories.methods import METHODS
from benchmarks.stories.report import Report, markdown
from benchmarks.stories.scores import COSTS, Scored, cost_columns
from benchmarks.stories.stories import BenchmarkStory
from storyloom import Character, Frame, Story, StoryClient, StoryResult
from tests.model.tiny import build_tiny_package
from tests.server.casts import picture
from tests.server.packages import with_references
from tests.server.serving import serving

METHOD = METHODS["identitystory"]
KNOWN_BY = known_by_name("tiny")
CANDIDATES, STEPS = 4, 4  # the tiny package's own steps
ASKED = BenchmarkStory(
    "two",
    Story(
        style="a photo of",
        characters={"mia": Character(description="a girl"), "bo": Character(description="an old man")},
        frames=(Frame(prompt="{mia} walks"), Frame(prompt="{mia} and {bo} sit")),
    ),
    (("mia",), ("mia", "bo")),
)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    folder = tmp_path_factory.mktemp("server")
    package = with_references(build_tiny_package(folder / "tiny"), folder / "identity")
    port = free_port()
    with (
        serving(folder, package, "--metrics-port", str(port)) as server,
        StoryClient(server.address) as client,
    ):
        metrics, out = Scrape(port), folder / "out"
        discoverer = Discoverer(client, out / "discovered", KNOWN_BY, 1.0, CANDIDATES, metrics)
        yield Maker(client, Shelf(out, KNOWN_BY), {"steps": 5}, metrics=metrics, discoverer=discoverer)


@pytest.fixture(scope="module")
def made(maker: Maker) -> Outcome:
    return maker.make("identitystory", METHOD, ASKED, lambda: None)


def cast(outcome: Outcome) -> dict[str, Character]:
    assert outcome.folder is not None, outcome.refused
    return StoryResult.load(outcome.folder).story.characters


def test_characters_are_found_first_and_what_that_cost_stands_apart(made: Outcome) -> None:
    found = cast(made)
    assert all(found[name].id for name in ("mia", "bo"))
    assert found["mia"].id != found["bo"].id
    assert made.cost is not None
    assert made.cost.discovery is not None
    # With guidance, two rows a step and picture.
    assert made.cost.discovery.evaluations == 2 * CANDIDATES * STEPS * 2
    assert made.cost.discovery.seconds > 0
    # Five steps of two frames; then four of three regions.
    assert made.cost.evaluations == (5 * 2 * 2 + 4 * 3 * 2) / 2


def test_a_second_run_makes_nothing(maker: Maker, made: Outcome) -> None:
    again = maker.make("identitystory", METHOD, ASKED, lambda: pytest.fail("made again"))
    assert again == made


def test_a_story_that_is_made_again_has_the_same_characters(maker: Maker, made: Outcome, tmp_path: Path) -> None:
    """What finding them cost is what it cost at first, though the server has them at once now."""
    shutil.copytree(maker.shelf.folder / "discovered", tmp_path / "discovered")
    assert maker.discoverer is not None
    anew = replace(
        maker,
        shelf=Shelf(tmp_path, KNOWN_BY),
        discoverer=replace(maker.discoverer, folder=tmp_path / "discovered"),
    )
    again = anew.make("identitystory", METHOD, ASKED, lambda: None)
    assert cast(again) == cast(made)
    assert again.cost is not None
    assert made.cost is not None
    assert again.cost.discovery == made.cost.discovery


def test_other_candidates_find_others(maker: Maker, made: Outcome, tmp_path: Path) -> None:
    assert maker.discoverer is not None
    more = replace(maker, shelf=Shelf(tmp_path, KNOWN_BY), discoverer=replace(maker.discoverer, candidates=5))
    assert cast(more.make("identitystory", METHOD, ASKED, lambda: None))["mia"].id != cast(made)["mia"].id


def test_who_has_a_reference_is_not_looked_for(maker: Maker) -> None:
    shown = replace(ASKED, name="shown").with_references({"mia": picture(), "bo": picture()})
    outcome = maker.make("identitystory", METHOD, shown, lambda: None)
    assert outcome.cost is not None
    assert outcome.cost.discovery is None


def test_other_methods_look_for_nobody(maker: Maker) -> None:
    outcome = maker.make("none", METHODS["none"], ASKED, lambda: None)
    assert outcome.cost is not None
    assert outcome.cost.discovery is None


def test_a_description_that_is_too_long_is_refused_with_its_story(maker: Maker) -> None:
    wordy = {"mia": Character(description="a girl " * 40)}
    story = Story(characters=wordy, frames=("a {mia}",))
    outcome = maker.make("identitystory", METHOD, BenchmarkStory("wordy", story, (("mia",),)), lambda: None)
    assert outcome.folder is None
    assert "description" in outcome.refused


def test_the_table_has_the_cost_in_columns_of_its_own() -> None:
    rows = {
        "none": [Scored(Outcome(ASKED, Path(), Cost(50.0, "server", 2.0)))],
        "identitystory": [Scored(Outcome(ASKED, Path(), Cost(90.0, "server", 3.0, DiscoveryCost(1600.0, 61.5))))],
    }
    facts = {"benchmark": "b", "model": "m", "command": "c", "date": "d"}
    assert cost_columns({"none": rows["none"]}) == COSTS
    page = markdown(Report(cost_columns(rows), {name: METHODS[name] for name in rows}, rows, [], facts))
    assert "| none | 50.0 | 2.00 | - | - |" in page
    assert "| identitystory | 90.0 | 3.00 | 1600 | 61.5 |" in page
