"""The built-in encoders as insightface and transformers see them: published forms, and of use on people never seen."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.app import FaceAnalysis
from numpy.typing import NDArray
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from storyloom_model.identity.encoders.references import ReferenceEncoder
from storyloom_model.identity.encoders.segmentation import load_segmenter
from storyloom_training.storydb.groups import FrameRecord, Group, Split, sample_group
from storyloom_training.storydb.picture import Picture, render

PACKAGE = Path(__file__).resolve().parents[2] / "weights/storyloom-mini"
PACK = PACKAGE / "faces/models/storyloom-faces"
SCENES = ("beach", "library", "city street")


@pytest.fixture(scope="module")
def analysis() -> FaceAnalysis:
    """As anybody would load any pack."""
    app = FaceAnalysis(name="storyloom-faces", root=str(PACKAGE / "faces"), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(256, 256))
    return app


def pictures(index: int, people: int = 1) -> list[Picture]:
    """Three portraits of one cast of the test split, in other scenes, poses and moods."""
    group = sample_group(Split.TEST, index, people=people, frames=1)
    moods = ("smile", "neutral", "laugh")
    records = tuple(
        FrameRecord(scene, "day", "portrait", ("standing",) * people, (mood,) * people, 11 + place)
        for place, (scene, mood) in enumerate(zip(SCENES, moods, strict=True))
    )
    return [render(Group(Split.TEST, index, group.cast, records), place, 128) for place in range(3)]


def bgr(picture: Picture) -> NDArray[np.uint8]:
    return np.ascontiguousarray(picture.image[..., ::-1])


def test_the_pack_has_the_published_form(analysis: FaceAnalysis) -> None:
    assert set(analysis.models) == {"detection", "recognition"}
    detector, recogniser = analysis.models["detection"], analysis.models["recognition"]
    assert (detector.use_kps, detector.fmc, detector._num_anchors) == (True, 3, 2)
    assert detector._feat_stride_fpn == [8, 16, 32]
    assert (recogniser.input_mean, recogniser.input_std) == (127.5, 127.5)
    assert recogniser.input_size == (112, 112)
    assert recogniser.output_shape[1] == 512
    outputs = [output.name for output in onnx.load(next(PACK.glob("det_*.onnx"))).graph.output]
    assert outputs == [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]


def test_plain_insightface_finds_and_verifies_held_out_people(analysis: FaceAnalysis) -> None:
    people: list[list[NDArray[np.float32]]] = []
    counts, errors = [], []
    for index in range(12):
        people.append([])
        for picture in pictures(index):
            found = analysis.get(bgr(picture))
            counts.append(len(found))
            if len(found) != 1:
                continue
            left, _, right, _ = picture.people[0].face_box
            apart = np.linalg.norm(found[0].kps - np.array(picture.people[0].landmarks), axis=1)
            errors.append(apart.mean() / (right - left))
            people[-1].append(found[0].normed_embedding)
    assert np.mean(np.array(counts) == 1) > 0.9
    assert np.median(errors) < 0.08
    same = [float(a @ b) for one in people for a, b in combinations(one, 2)]
    other = [float(a @ b) for one, two in combinations(people, 2) for a in one for b in two]
    right_ones = np.mean([value > 0.55 for value in same]), np.mean([value <= 0.55 for value in other])
    assert np.mean(right_ones) > 0.95, right_ones


def test_two_people_are_two_faces(analysis: FaceAnalysis) -> None:
    found = [len(analysis.get(bgr(picture))) for index in range(20, 24) for picture in pictures(index, people=2)]
    assert np.mean(np.array(found) == 2) > 0.8


def test_the_image_encoder_is_a_transformers_folder() -> None:
    folder = PACKAGE / "image_encoder"
    network, loading = CLIPVisionModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    processor = CLIPImageProcessor.from_pretrained(folder)
    values = processor(np.zeros((200, 150, 3), np.uint8), return_tensors="pt").pixel_values
    assert values.shape == (1, 3, network.config.image_size, network.config.image_size)
    assert float(values.max()) == pytest.approx(-1)


def test_the_segmenter_finds_held_out_people() -> None:
    segmenter = load_segmenter(PACKAGE / "segmenter")
    values = []
    for index in range(6):
        for picture in pictures(index):
            found, people = segmenter.people(picture.image), picture.people[0].mask
            values.append((found & people).sum() / (found | people).sum())
    assert np.mean(values) > 0.75


def test_the_encoders_are_small() -> None:
    sizes = {
        part: sum(file.stat().st_size for file in (PACKAGE / part).rglob("*") if file.is_file())
        for part in ("faces", "image_encoder", "segmenter")
    }
    assert sizes["faces"] < 4e6
    assert sizes["image_encoder"] < 6e6
    assert sizes["segmenter"] < 1e6


def test_all_encoders_load_together() -> None:
    encoder = ReferenceEncoder.load(PACKAGE / "faces", PACKAGE / "image_encoder", PACKAGE / "segmenter")
    assert [len(part) for part in encoder.fingerprint.split(":")] == [32, 32]
