"""Characters found by their words: the choice of boxes, whose they are, and tiny models in published form."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from storyloom_model.adding.__main__ import app
from storyloom_model.denoiser import Denoiser
from storyloom_model.fingerprints import package_fingerprint
from storyloom_model.identity.class_words import word_for
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.grounding import BoxSegmenter, FoundBoxes, WordDetector
from storyloom_model.package import ModelPackage, PackageError
from storyloom_model.redenoising.masks import to_owners
from storyloom_model.redenoising.word_finder import SAME, WordFinder, choose, overlap
from tests.model.published_finder import save_grounding_dino, save_sam
from tests.model.published_models import write_folder
from tests.model.test_model_redenoising import STEPS, two_pass_job
from tests.model.tiny import finish


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Grounding DINO and a tiny Segment Anything."""
    folder = tmp_path_factory.mktemp("published")
    save_grounding_dino(folder / "dino")
    save_sam(folder / "sam")
    return folder


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


class Boxes:
    """A detector that always finds the same."""

    def __init__(self, *found: tuple[Sequence[float], Sequence[float]]) -> None:
        boxes, phrases = (np.array(part, np.float32) for part in zip(*found, strict=True))
        self.found = FoundBoxes(boxes, phrases.max(axis=1), phrases)
        self.asked: list[str] = []

    def find(self, picture: NDArray[np.uint8], phrases: Sequence[str]) -> FoundBoxes:
        self.asked.extend(phrases)
        return self.found


class Filled:
    """A segmenter that takes all of a box for the thing in it."""

    def inside(self, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        masks = np.zeros((len(boxes), *picture.shape[:2]), np.bool_)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            mask[top:bottom, left:right] = True
        return masks


def found_boxes(*found: tuple[Sequence[float], Sequence[float]]) -> FoundBoxes:
    return Boxes(*found).found


LEFT, MIDDLE, RIGHT = (0, 0, 20, 60), (30, 0, 50, 60), (60, 0, 80, 60)


def test_words_are_those_of_descriptions() -> None:
    said = ["a girl with red hair", "Mia, an old woman", "a man img in a coat", "a robot v. 2", "..."]
    assert [word_for(each) for each in said] == ["girl", "Mia", "man", "v", ""]


def test_each_character_gets_a_box_of_its_word(picture: NDArray[np.uint8]) -> None:
    detector = Boxes((LEFT, (0.2, 0.9)), (MIDDLE, (0.8, 0.3)), (RIGHT, (0.6, 0.1)))
    masks = WordFinder(detector, Filled())(picture, ["a girl in red", "an old man", "a girl in blue"])
    assert detector.asked == ["girl", "man"]
    for mask, (left, _, right, _) in zip(masks, (MIDDLE, LEFT, RIGHT), strict=True):
        assert mask[:, left:right].all()
        assert mask.sum() == 20 * 60


@pytest.mark.parametrize(
    ("scores", "box", "text", "found"),
    [
        ((0.31, 0.0), 0.3, 0.25, True),
        ((0.29, 0.0), 0.3, 0.25, False),
        ((0.26, 0.31), 0.3, 0.25, True),  # Another token is enough for the box, and this one for the word.
        ((0.24, 0.31), 0.3, 0.25, False),
        ((0.01, 0.0), 0.0, 0.0, True),
    ],
)
def test_scores_below_the_thresholds_find_nobody(
    scores: tuple[float, float], box: float, text: float, found: bool
) -> None:
    assert choose(found_boxes((LEFT, scores)), [1, 0], box, text) == [[0] if found else [], []]


def test_two_boxes_of_one_person_count_once(picture: NDArray[np.uint8]) -> None:
    """Also under two words; the second girl is then who is left, or nobody."""
    near = (1, 0, 20, 60)
    assert choose(found_boxes((LEFT, (0.9,)), (near, (0.8,)), (RIGHT, (0.4,))), [2], 0.3, 0.25) == [[0, 2]]
    assert choose(found_boxes((LEFT, (0.9, 0.5)), (near, (0.5, 0.8))), [1, 1], 0.3, 0.25) == [[0], []]
    masks = WordFinder(Boxes((LEFT, (0.9,)), (near, (0.8,))), Filled())(picture, ["a girl", "a girl"])
    assert masks.any(axis=(1, 2)).tolist() == [True, False]


@st.composite
def detections(draw: st.DrawFn) -> tuple[FoundBoxes, list[int]]:
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    count, words = draw(st.integers(0, 8)), draw(st.integers(1, 3))
    corners = random.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 40, (count, 2))], axis=1).astype(np.float32)
    phrases = random.uniform(0, 1, (count, words)).astype(np.float32)
    scores = np.maximum(phrases.max(axis=1), random.uniform(0, 1, count)).astype(np.float32)
    return FoundBoxes(boxes, scores, phrases), [draw(st.integers(0, 3)) for _ in range(words)]


@settings(max_examples=100, deadline=None)
@given(detections())
def test_choices_keep_to_the_rules(given_: tuple[FoundBoxes, list[int]]) -> None:
    """Few enough, above both thresholds, apart from each other, best first; who is left out has a reason."""
    found, wanted = given_
    chosen = choose(found, wanted, 0.3, 0.25)
    taken = [box for boxes in chosen for box in boxes]
    for phrase, boxes in enumerate(chosen):
        assert len(boxes) <= wanted[phrase]
        assert boxes == sorted(boxes, key=lambda box: -found.phrases[box, phrase])
        assert all(found.scores[box] > 0.3 and found.phrases[box, phrase] > 0.25 for box in boxes)
        for box in set(range(len(found.boxes))) - set(taken):
            good = found.scores[box] > 0.3 and found.phrases[box, phrase] > 0.25
            apart = all(overlap(found.boxes[box], found.boxes[other]) <= SAME for other in taken)
            assert not (good and apart and len(boxes) < wanted[phrase])
    for place, one in enumerate(taken):
        assert all(overlap(found.boxes[one], found.boxes[other]) <= SAME for other in taken[:place])


def test_maps_say_whose_a_mask_is() -> None:
    """Two girls were found in the wrong order; a third was not found, and the man's stays his."""
    masks = torch.zeros(4, 2, 6, dtype=torch.bool)
    masks[0, :, 4:], masks[1, :, :2], masks[3, :, 2:4] = True, True, True
    maps = torch.full((4, 2, 6), 0.1)
    maps[0, :, :2], maps[2, :, 4:] = 0.9, 0.5
    owned = to_owners(masks, maps, ["girl", "girl", "girl", "man"])
    assert torch.equal(owned, masks[[1, 2, 0, 3]])
    assert torch.equal(to_owners(masks, torch.zeros_like(maps), ["a", "b", "c", "d"]), masks)


def test_boxes_are_those_that_transformers_finds(published: Path, picture: NDArray[np.uint8]) -> None:
    """Against its own post-processing of one phrase, and each phrase by the tokens that are its own."""
    detector = WordDetector(published / "dino")
    inputs = detector._processor(images=Image.fromarray(picture), text="a girl.", return_tensors="pt")
    with torch.inference_mode():
        output = detector._network(**inputs)
    (expected,) = detector._processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=0.0, target_sizes=[(60, 80)]
    )
    found = detector.find(picture, ["a girl"])
    np.testing.assert_allclose(found.boxes, expected["boxes"].numpy(), atol=1e-4)
    np.testing.assert_allclose(found.scores, expected["scores"].numpy(), atol=1e-5)
    two = detector.find(picture, ["A girl", "man"])
    inputs = detector._processor(images=Image.fromarray(picture), text="a girl. man.", return_tensors="pt")
    with torch.inference_mode():
        tokens = detector._network(**inputs).logits[0].sigmoid()
    np.testing.assert_allclose(two.phrases[:, 0], tokens[:, 1:3].amax(1).numpy(), atol=1e-5)  # [CLS] a girl . man .
    np.testing.assert_allclose(two.phrases[:, 1], tokens[:, 4].numpy(), atol=1e-5)


def test_a_segmenter_sees_each_box_by_itself(published: Path, picture: NDArray[np.uint8]) -> None:
    segmenter = BoxSegmenter(published / "sam")
    boxes = np.array([LEFT, (10, 10, 70, 50)], np.float32)
    both = segmenter.inside(picture, boxes)
    assert both.shape == (2, 60, 80)
    assert both.dtype == np.bool_
    for box, mask in zip(boxes, both, strict=True):
        np.testing.assert_array_equal(segmenter.inside(picture, box[None])[0], mask)
    assert segmenter.inside(picture, boxes[:0]).shape == (0, 60, 80)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def package(published: Path, identity_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny package with the finder that the command adds; its thresholds let a random detector find somebody."""
    folder = copied(identity_package, tmp_path_factory.mktemp("packages") / "tiny")
    without = package_fingerprint(ModelPackage.load(folder))
    code, output = run("add-finder", folder, published / "dino", published / "sam")
    assert code == 0, output
    assert (folder / "character_finder" / "masks" / "model.safetensors").samefile(published / "sam/model.safetensors")
    text = (folder / "storyloom.yaml").read_text()
    assert "box_threshold: 0.3\n  text_threshold: 0.25" in text
    (folder / "storyloom.yaml").write_text(text.replace(": 0.3\n", ": 0.0\n").replace(": 0.25\n", ": 0.0\n"))
    assert package_fingerprint(ModelPackage.load(folder)) != without
    return folder


def test_a_package_may_name_a_finder(package: Path, identity_denoiser: Denoiser) -> None:
    """From detector to mask in a story, which goes on from a checkpoint; without it the masks are those of the maps."""
    denoiser = Denoiser.load(package)
    assert isinstance(denoiser.character_finder, WordFinder)
    job = two_pass_job(2)
    state = denoiser.encode(job)
    for _ in range(STEPS):
        denoiser.step([state])
    kept = denoiser.save(state)
    by_words, by_maps = finish(denoiser, job), finish(identity_denoiser, job)
    assert not torch.equal(by_words.latents, by_maps.latents)
    again = denoiser.restore(job, kept)
    while not again.done:
        denoiser.step([again])
    assert torch.equal(again.latents, by_words.latents)


def test_everybody_in_a_frame_is_looked_for(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bo, who has no references, too: his box is not hers. A frame without anybody to give a face is not looked at."""
    asked: list[list[str]] = []

    def finder(picture: NDArray[np.uint8], descriptions: Sequence[str]) -> NDArray[np.bool_]:
        asked.append(list(descriptions))
        return np.zeros((len(descriptions), *picture.shape[:2]), np.bool_)

    monkeypatch.setattr(identity_denoiser, "character_finder", finder)
    finish(identity_denoiser, two_pass_job(3, "mia"))
    assert asked == [["a girl with red hair"], ["a girl with red hair", "an old man"]]


def test_two_of_one_word_keep_their_places(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of two boxes scores higher, the same character gets the same one."""
    job = two_pass_job(2, cross_frame=False)
    prompt = job.frames[1].prompt
    assert prompt.text.startswith("a girl with red hair and an old man")
    # A word as long as the one it stands for leaves every place where it was.
    alike = dataclasses.replace(prompt, text=prompt.text.replace("an old man", "a sad girl"))
    job = dataclasses.replace(job, frames=(job.frames[0], dataclasses.replace(job.frames[1], prompt=alike)))
    made = []
    for scores in ((0.9, 0.8), (0.8, 0.9)):
        finder = WordFinder(Boxes(((0, 0, 24, 64), scores[:1]), ((40, 0, 64, 64), scores[1:])), Filled())
        monkeypatch.setattr(identity_denoiser, "character_finder", finder)
        made.append(finish(identity_denoiser, job).latents)
    assert torch.equal(made[0][1], made[1][1])
    assert not torch.equal(made[0][0], made[1][0])  # Mia alone is where the best box is.


def test_unfit_folders_say_what_they_lack(published: Path, tmp_path: Path) -> None:
    with pytest.raises(EncodersError, match="holds a model of type sam; it has to be Grounding DINO"):
        WordDetector(published / "sam")
    with pytest.raises(EncodersError, match=r"is no folder of Segment Anything: its config\.json cannot be read"):
        BoxSegmenter(tmp_path)
    cut = copied(published / "sam", tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:500])
    with pytest.raises(EncodersError, match="can't be loaded as SamModel"):
        BoxSegmenter(cut)
    no_words = copied(published / "dino", tmp_path / "no-words")
    for file in no_words.glob("*token*"):
        file.unlink()
    with pytest.raises(EncodersError, match="has no tokenizer that knows a full stop"):
        WordDetector(no_words)


def test_weights_that_are_not_there_are_not_made_up(published: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(published / "sam", tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    weights.pop("mask_decoder.iou_token.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncodersError, match=r"lacks 1 weights of SamModel, such as mask_decoder\.iou_token\.weight"):
        BoxSegmenter(folder)


def test_a_package_is_held_to_its_finder(package: Path, published: Path, tmp_path: Path) -> None:
    folder = copied(package, tmp_path / "package")
    config = folder / "character_finder" / "masks" / "config.json"
    content = config.read_text()
    config.unlink()
    with pytest.raises(PackageError, match=r"lacks character_finder/masks/config\.json"):
        ModelPackage.load(folder)
    config.write_text(json.dumps(json.loads(content) | {"model_type": "bert"}))
    with pytest.raises(PackageError, match=r"character_finder: .*holds a model of type bert"):
        Denoiser.load(folder)
    config.write_text(content)
    again = run("add-finder", folder, published / "dino", published / "sam")
    assert again[0] == 1
    assert "has a character_finder already" in again[1]


def test_nothing_is_left_of_a_finder_that_does_not_fit(published: Path, identity_package: Path, tmp_path: Path) -> None:
    folder = copied(identity_package, tmp_path / "tiny")
    code, output = run("add-finder", folder, published / "dino", published / "dino")
    assert code == 1
    assert "has to be Segment Anything" in output
    assert not (folder / "character_finder").exists()
    assert ModelPackage.load(folder).manifest.character_finder is None


def test_a_package_may_be_made_with_a_finder(published: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "base")
    add = ("add", tmp_path / "base", "--to", tmp_path / "package", "--detector", published / "dino")
    code, output = run(*add)
    assert code == 1
    assert "give --detector and --masks, or neither" in output
    code, output = run(*add, "--masks", published / "sam")
    assert code == 0, output
    finder = ModelPackage.load(tmp_path / "package").manifest.character_finder
    assert finder is not None
    assert (finder.detector, finder.box_threshold, finder.text_threshold) == ("character_finder/detector", 0.3, 0.25)
