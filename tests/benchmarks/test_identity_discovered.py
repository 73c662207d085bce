"""The figures of identity discovery, from embeddings whose truth is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.identity.cases import identity_case
from benchmarks.identity.discovered import (
    FOLDS,
    HeldOut,
    agreement,
    among_strangers,
    compare,
    cross_validated,
    interval,
    nearness,
    spread,
    terse,
)
from benchmarks.identity.discovery import JUDGE, RECOGNISER, Service, measure, sheet
from benchmarks.identity.discovery_report import write
from benchmarks.stories.similarity import Vectors
from storyloom import CharacterRecord, DiscoveryLoop, Redenoising, Settings, Story


def pictures(seed: int, count: int, strangers: int, noise: float = 0.15, width: int = 64) -> Vectors:
    """Faces of one person, then strangers; of length 1."""
    draw = np.random.default_rng(seed)
    person = draw.standard_normal(width)
    rows = np.concatenate(
        [person + noise * draw.standard_normal((count, width)), draw.standard_normal((strangers, width))]
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_people_are_said_by_age_gender_and_hair() -> None:
    said = [terse(identity_case(index, 1, 4).group.cast[0]) for index in range(5)]
    assert said[0] == "a middle-aged man with shoulder-length black hair"
    assert said[1] == "a girl with long, straight brown hair"
    assert said[4] == "a middle-aged man with a bald head"


def test_the_filtered_mean_is_nearer_where_strangers_are_among_the_candidates() -> None:
    seen, held_out = pictures(1, 40, 24)[20:], pictures(1, 20, 0)
    found = compare(seen, range(20), held_out)
    assert all(one.nearer > 0 for one in found)
    assert sum(one.typical for one in found) == 12
    (first,) = compare(seen, [3], held_out[:1])
    assert first.filtered == pytest.approx(1 - float(held_out[0] @ seen[3]), abs=1e-6)
    assert compare(seen, [3], held_out[:0]) == []


def test_every_candidate_is_held_out_once_by_a_filter_that_has_not_seen_it() -> None:
    rows = pictures(2, 40, 24, noise=0.03)
    found = cross_validated({"one": rows, "other": rows[:, ::-1].copy()}, "one")
    assert {name: len(own) for name, own in found.items()} == {"one": 64, "other": 64}
    assert [round(a.filtered, 5) for a in found["one"]] == [round(b.filtered, 5) for b in found["other"]]
    assert sum(one.nearer > 0 for one in found["one"]) >= 40
    assert sum(one.typical for one in found["one"]) == sum(int(0.6 * len(rows[fold::FOLDS])) for fold in range(FOLDS))


def test_strangers_among_the_candidates_are_filtered_out() -> None:
    people = [{"one": pictures(index, 30, 0)} for index in range(3)]
    none, some = (among_strangers(people, "one", "ours", share) for share in (0.0, 0.4))
    assert (none.share, none.kept) == (0.0, 0.0)
    assert some.kept < 0.05
    assert [len(own) for own in some.held_out["one"]] == [30, 30, 30]
    assert among_strangers(people, "one", "the paper's", 0.4).kept > some.kept
    found = nearness(some.held_out["one"])
    assert found["share_nearer"]["mean"] > 0.9
    assert found["nearer_by"]["mean"] > nearness(none.held_out["one"])["nearer_by"]["mean"]


def test_agreement_counts_first_faces_of_frames_that_have_one() -> None:
    rows = pictures(3, 3, 1)
    found = agreement([rows[:1], rows[1:0], rows[1:4]], rows[0] * 5)
    assert found.found == pytest.approx(2 / 3)
    assert found.among == pytest.approx(float(rows[0] @ rows[1]), abs=1e-6)
    assert found.to_identity == pytest.approx((1 + float(rows[0] @ rows[1])) / 2, abs=1e-6)
    assert agreement([rows[:0], rows[:1]], rows[0]).among is None
    assert spread(rows[:2]) == pytest.approx(float(rows[0] @ rows[1]), abs=1e-6)


def test_intervals_are_over_people() -> None:
    wide, narrow = interval([[0.0] * 50, [1.0] * 50]), interval([[0.0, 1.0]] * 50)
    assert wide is not None
    assert narrow is not None
    assert (wide.mean, wide.low, wide.high, wide.stories) == (0.5, 0.0, 1.0, 2)
    assert 0.35 < narrow.low < narrow.high < 0.65
    alone = interval([[0.0, 1.0] * 20])
    assert alone is not None
    assert alone.low < 0.5 < alone.high
    assert interval([[]]) is None
    own = [[HeldOut(0.1, 0.2, True), HeldOut(0.3, 0.2, False)]]
    assert nearness(own)["share_nearer"]["mean"] == 0.5
    assert nearness(own, typical=True)["nearer_by"]["mean"] == pytest.approx(0.1)
    assert nearness(own, typical=False)["candidates"] == 1


def test_a_page_tells_what_was_found(tmp_path: Path) -> None:
    def person(index: int) -> dict[str, Any]:
        rows = pictures(index, 30, 6)
        found = {
            name: [asdict(one) for one in compare(rows[8:], range(20), rows[:8])] for name in ("recogniser", "judge")
        }
        each = {name: asdict(agreement([rows[:1], rows[1:2]], rows[0])) for name in found}
        none = {name: asdict(agreement([rows[:1], rows[:0]], rows[0])) for name in found}
        stories = {"text alone": each, "identity": none if index else each}
        alike = {"recogniser": 0.5, "judge": 0.4}
        told = {"index": index, "description": "a girl", "compared": 28, "kept": (1, 2), "alike": alike}
        return {**told, "held_out": found, "folds": found, "stories": stories}

    facts = {"command": "python", "candidates": 28, "held_out": 8, "steps": 4, "solver": "ddim", "left_out": ["a boy"]}
    seen = [{name: pictures(index, 30, 0) for name in ("recogniser", "judge")} for index in (5, 6, 7)]
    mixed = [among_strangers(seen, "recogniser", "ours", share) for share in (0.0, 0.3)]
    page = write(tmp_path, facts, [person(0), person(1)], mixed, Image.new("RGB", (4, 4)))
    assert "| ours | 30% | 0.0% | judge | 90 | " in page
    assert "Left out, since fewer than four candidates show a face:\na boy." in page
    assert "| judge | held out | all | 16 | 1.00 [1.00, 1.00] |" in page
    told = json.loads((tmp_path / "discovery.json").read_text())
    assert told["summary"]["stories"]["judge"]["identity"]["among"]["less_text_alone"]["mean"] == 0
    assert told["summary"]["stories"]["judge"]["identity"]["found"]["less_text_alone"]["mean"] == -0.25
    assert {file.name for file in tmp_path.iterdir()} >= {"discovery.md", "discovery.png", "discovery-pictures.png"}


class Drawing:
    """Stands for a `StoryClient`: a frame's pixels tell its story's seed and its place."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.asked: list[Story] = []

    def discover_character(self, name: str, description: str, *, request_id: str, **wish: Any) -> CharacterRecord:
        loops = () if request_id in self.known else (DiscoveryLoop("s", (0, 2, 3, 4), (2, 4), 4),)
        self.known.add(request_id)
        return CharacterRecord(request_id, name, description, 1, discovery=loops)

    def delete_character(self, character_id: str) -> None:
        self.known.remove(character_id)

    def wait(self, story_id: str) -> Any:
        return SimpleNamespace(frames=[Image.new("RGB", (8, 8), (place, 9, 9)) for place in range(5)])

    def generate(self, story: Story, *, request_id: str) -> Any:
        assert len(request_id) <= 36
        self.asked.append(story)
        return SimpleNamespace(frames=[Image.new("RGB", (8, 8), (place, 0, 0)) for place in range(len(story.frames))])


class Colours:
    """Stands for `Eyes`: a picture's colours are its face."""

    def faces(self, pictures: Any) -> dict[str, list[Vectors]]:
        found = [np.array([[*one[0, 0], 1.0]], np.float32) for one in pictures]
        rows = [one / np.linalg.norm(one) for one in found]
        return {RECOGNISER: rows, JUDGE: rows}

    def prominent(self, pictures: Any) -> dict[str, Vectors]:
        return {name: np.concatenate(rows) for name, rows in self.faces(pictures).items()}


def test_a_person_is_measured_by_candidates_and_stories_from_the_same_noise() -> None:
    client: Any = Drawing()
    eyes: Any = Colours()
    service = Service(client, "model", Settings(steps=3))
    found = measure(service, eyes, 7, "a girl", 5, 6)
    assert (found.index, found.compared, found.kept) == (7, 4, (2, 4))
    kept, true = (np.array([place, 9, 9, 1.0]) for place in (2, 4))
    mean = kept / np.linalg.norm(kept) + true / np.linalg.norm(true)
    first = np.array([0.0, 0, 0, 1])
    assert found.held_out[JUDGE][0].filtered == pytest.approx(1 - first @ mean / np.linalg.norm(mean), abs=1e-5)
    assert len(found.folds[RECOGNISER]) == 4 + 6
    assert list(found.stories) == ["text alone", "identity", "identity, re-denoised"]
    held_out, text, identity, redenoised = client.asked
    assert (len(held_out.frames), held_out.settings.steps) == (6, 3)
    assert {one.settings.seed for one in (text, identity, redenoised)} == {3007}
    assert not any(one.settings.consistency.enabled for one in client.asked)
    assert [bool(one.characters["mia"].id) for one in (text, identity, redenoised)] == [False, True, True]
    assert redenoised.settings.redenoising == Redenoising(enabled=True)
    assert sheet([found]).size == (4 * (4 * 8 + 12), 8)
    assert "pictures" not in found.told()
    again = measure(service, eyes, 7, "a girl", 5, 6)
    assert again.kept == found.kept, "how it was found is not asked for again"
