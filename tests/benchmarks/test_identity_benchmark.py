"""The identity benchmark: its cases, its figures, and that true pictures score as the same people."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.identity.cases import identity_case
from benchmarks.identity.report import summary, table
from benchmarks.identity.run import Eyes
from benchmarks.identity.scores import score
from benchmarks.quality.attributes import truth
from benchmarks.quality.judge import Judge
from benchmarks.quality.network import Reader
from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_training.storydb.groups import Split, split_of
from storyloom_training.storydb.picture import render
from tests.weights.test_weights_mini import FOLDER


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
    assert "| renders | " in table({"renders": figures})
