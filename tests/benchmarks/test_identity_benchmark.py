"""The identity benchmark: its cases, its figures, and that true pictures score as the same people."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.identity.cases import Saying, identity_case
from benchmarks.identity.generate import Maker, model_digest
from benchmarks.identity.report import COLUMNS, attributes, differences, summary, table, write
from benchmarks.identity.run import Eyes
from benchmarks.identity.scores import IdentityScore, score
from benchmarks.identity.settings import ADAPTERS, NO_REFERENCE, Setting, adapter_files, package_with
from benchmarks.quality.attributes import truth
from benchmarks.quality.judge import Judge
from benchmarks.quality.network import Reader
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_model.package import ModelPackage
from storyloom_training.identity.adapters.methods import METHODS
from storyloom_training.storydb.groups import Split, split_of
from storyloom_training.storydb.picture import render
from tests.model.tiny_identity import build_identity_package, tiny_features
from tests.weights.test_weights_mini import FOLDER


class NoSteps:
    """Says what the model is and makes nothing."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.manifest = denoiser.manifest


@pytest.fixture(scope="module")
def identity_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_identity_package(tmp_path_factory.mktemp("tiny"))


def unit(*values: float) -> np.ndarray:
    vector = np.zeros(512, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("people", [1, 2])
def test_a_case_follows_from_its_number(people: int) -> None:
    case, again = identity_case(3, people, 4), identity_case(3, people, 4)
    assert case.group == again.group
    assert case.generic == again.generic
    assert all(np.array_equal(a.image, b.image) for a, b in zip(case.references, again.references, strict=True))
    assert case.group != identity_case(4, people, 4).group
    assert len(case.generic) == len(case.described) == 4
    assert len(case.references) == len(case.names) == people


def test_nobody_of_a_case_was_seen_in_training() -> None:
    assert all(split_of(person) is Split.TEST for index in range(5) for person in identity_case(index, 2, 2).group.cast)


def test_generic_prompts_say_nothing_of_looks_and_prompts_of_a_frame_differ_in_that_alone() -> None:
    case = identity_case(0, 2, 3)
    for generic, described in zip(case.generic, case.described, strict=True):
        for name in case.names:
            ((begin, end),) = generic.spans[name]
            assert generic.text[begin:end] in {"a woman", "a man", "a girl", "a boy"}
            assert name in described.spans


def test_prompts_that_say_clothes_say_nothing_of_faces() -> None:
    for index in range(6):
        case, brief = identity_case(index, 2, 2, Saying.CLOTHES), identity_case(index, 2, 2)
        assert case.group == brief.group
        for prompt in case.generic:
            for person, name in zip(case.group.cast, case.names, strict=True):
                ((begin, end),) = prompt.spans[name]
                said = prompt.text[begin:end]
                assert " wearing " in said
                assert person.top.kind in said
                assert " with " not in said


def test_poses_and_attributes_are_parts_of_what_there_is_to_see() -> None:
    case = identity_case(0, 1, 4)
    pictures = np.zeros((4, 32, 32, 3), np.uint8)
    right = [truth(case.group, frame) for frame in range(4)]
    assert len({record.poses for record in case.group.frames}) > 1
    best = score(case, [unit(1)], [unit(0, 1)], [[]] * 4, right, pictures)
    assert best.poses == 1
    assert set(best.attributes.values()) == {1.0}
    stiff = [reading | {"pose": "standing", "skin": "blue"} for reading in right]
    worst = score(case, [unit(1)], [unit(0, 1)], [[]] * 4, stiff, pictures)
    assert (worst.poses, worst.attributes["skin"], worst.attributes["glasses"]) == (0, 0, 1)
    restless = [reading | {"pose": pose} for reading, pose in zip(right, "abcd", strict=True)]
    assert score(case, [unit(1)], [unit(0, 1)], [[]] * 4, restless, pictures).poses == 1


def some_score(cosine: float | None, skin: float = 1.0) -> IdentityScore:
    figures = dict.fromkeys(COLUMNS, 0.5) | {"to_reference": cosine}
    return IdentityScore(**figures, attributes={"skin": skin})  # type: ignore[arg-type]


def test_differences_are_of_the_same_stories(tmp_path: Path) -> None:
    better = [some_score(0.5 + place / 10, skin=place / 4) for place in range(5)]
    worse = [some_score(0.3 + place / 10) for place in range(4)] + [some_score(None)]
    found = differences(better, worse)
    assert found["to_reference"].mean == pytest.approx(0.2)
    assert found["to_reference"].low == pytest.approx(0.2)
    assert (found["to_reference"].stories, found["text"].mean) == (4, 0)
    assert attributes(better)["skin"].mean == pytest.approx(0.5)
    facts = {"command": "run", "saying": {1: "brief"}, "left_out": {1: 0}, "absent": ["ip-adapter"]}
    scores = {("storynizor", 1): better, ("storynizor-stacked", 1): worse}
    text = write(tmp_path, facts, scores)
    assert "| storynizor less storynizor-stacked, one character | 0.20 [0.20, 0.20] |" in text
    assert "Not there were: ip-adapter." in (tmp_path / "quality.md").read_text()


def test_adapters_come_from_the_package_and_from_a_folder(identity_package: Path, tmp_path: Path) -> None:
    assert set(ADAPTERS) == set(METHODS)
    package = ModelPackage.load(identity_package)
    for name in ("storymaker-no-background", "notes"):
        shutil.copy(identity_package / "identity" / "faces.safetensors", tmp_path / f"{name}.safetensors")
    files = adapter_files(package, tmp_path)
    assert list(files) == ["storymaker-no-background", "faces", "shared", "changed"]
    for _ in range(2):  # A second run begins with what the first left.
        made = package_with(package, files, tmp_path / "work" / "package")
    adapters = made.manifest.identity_adapters
    assert {name: one.method for name, one in adapters.items()} == dict.fromkeys(files, "tiny") | {
        "storymaker-no-background": "storymaker"
    }
    assert model_digest(package) == model_digest(ModelPackage.load(identity_package))


def test_finished_stories_are_found_again(identity_package: Path, tmp_path: Path) -> None:
    denoiser = Denoiser.load(identity_package)
    files = {"shared": identity_package / "identity" / "shared.safetensors"}
    maker = Maker(denoiser, "model", files, tmp_path, "float32", steps=1, seed=0)
    cases = [identity_case(index, 1, 2) for index in range(2)]
    known = [[tiny_features(index)] for index in range(2)]
    settings = (NO_REFERENCE, Setting("shared", "shared"))
    first = [list(maker.stories(setting, cases, known)) for setting in settings]
    stuck = replace(maker, denoiser=NoSteps(denoiser))  # type: ignore[arg-type]
    assert np.array_equal(first, [list(stuck.stories(setting, cases, known)) for setting in settings])
    with pytest.raises(AttributeError):
        list(replace(stuck, model="other").stories(NO_REFERENCE, cases, known))


def test_cosines_are_between_a_character_and_its_own_faces() -> None:
    case = identity_case(0, 2, 2)
    a, b, readings = unit(1), unit(0, 1), [truth(replace(case.group, cast=case.group.cast[:1]), i) for i in range(2)]
    pictures = np.zeros((2, 32, 32, 3), np.uint8)
    right = score(case, [a, b], [b, a], [[a, b], [a, b]], readings, pictures)
    assert (right.to_reference, right.to_other, right.among, right.found) == (1, 0, 1, 1)
    swapped = score(case, [a, b], [b, a], [[b, a], [a, b]], readings, pictures)
    assert (swapped.to_reference, swapped.to_other, swapped.among) == (0.5, 0.5, 0)
    lost = score(case, [a, b], [b, a], [[a], [a, b, b]], readings, pictures)
    assert (lost.to_reference, lost.among, lost.found) == (None, None, 0)


def test_true_pictures_are_found_to_show_their_person() -> None:
    eyes = Eyes(FaceEncoder.load(FOLDER / "faces"), Judge.load(), Reader.load())
    scores = []
    for index in range(3):
        case = identity_case(index, 1, 2)
        pictures = np.stack([render(case.group, frame, 128).image for frame in range(2)])
        stranger = eyes.reference(identity_case(index + 10, 1, 2).references[0].image)
        scores.append(eyes.measure(case, [stranger], pictures))
    figures = summary(scores)
    assert figures["to_reference"].mean > 0.7 > 0.3 > figures["to_other"].mean
    assert figures["face_attributes"].mean > 0.7
    assert "| renders | " in table({"renders": figures}, COLUMNS)
