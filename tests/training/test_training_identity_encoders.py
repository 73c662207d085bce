"""The encoders' training: what is rendered and labelled, what anchors are told, and that all stages run and resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch

from storyloom_training.identity.config import (
    DataRecipe,
    DetectorRecipe,
    IdentityRecipe,
    ImageEncoderRecipe,
    RecogniserRecipe,
    SegmenterRecipe,
)
from storyloom_training.identity.detection import iou, measure_detection
from storyloom_training.identity.detector import FaceDetector, PublishedForm
from storyloom_training.identity.detector_targets import assign, draw_batch
from storyloom_training.identity.labels import ATTRIBUTES, FACE, NOT_SHOWN, face_key, faces_of, labels, other_outfit
from storyloom_training.identity.pipeline import IdentityPipeline
from storyloom_training.identity.recogniser import margin_loss
from storyloom_training.identity.renders import face_crop
from storyloom_training.identity.scenes import SceneSet, draw_scene, scene_set
from storyloom_training.identity.verification import verify
from storyloom_training.storydb.groups import Split, split_of

TINY = IdentityRecipe(
    data=DataRecipe(people=4, pictures=2, groups=6, scenes=6, scene_size=96, held_out_people=4, held_out_pictures=2,
                    held_out_groups=4, held_out_scenes=3),
    recogniser=RecogniserRecipe(steps=2, batch=4),
    image=ImageEncoderRecipe(width=32, layers=2, heads=2, projection=16, steps=2, batch=4),
    detector=DetectorRecipe(steps=2, batch=2),
    segmenter=SegmenterRecipe(steps=2, batch=2, size=64),
)  # fmt: skip


def test_faces_are_of_their_split_and_no_two_alike() -> None:
    people = faces_of(Split.TEST, 40, 1)
    assert {split_of(person) for person in people} == {Split.TEST}
    assert len({face_key(person) for person in people}) == 40
    assert faces_of(Split.TEST, 40, 1) == people


def test_another_outfit_is_the_same_face() -> None:
    (person,) = faces_of(Split.TRAIN, 1, 0)
    dressed = [other_outfit(person, Random(seed)) for seed in range(8)]  # noqa: S311
    assert {face_key(each) for each in dressed} == {face_key(person)}
    assert len({each.top for each in dressed}) > 1


def test_labels_leave_out_what_a_crop_does_not_show() -> None:
    person = replace(faces_of(Split.TRAIN, 1, 0)[0], glasses="sunglasses")
    names = list(ATTRIBUTES)
    close = dict(zip(names, labels(person, "close-up", "smile"), strict=True))
    assert close["bottom"] == close["top"] == close["eye colour"] == NOT_SHOWN
    assert ATTRIBUTES["skin"][close["skin"]] == person.skin
    face = dict(zip(names, labels(person, "full body", "smile", face_only=True), strict=True))
    assert {name for name, value in face.items() if value != NOT_SHOWN} == set(FACE) - {"eye colour"}


def test_face_crops_have_eyes_where_recognisers_expect_them() -> None:
    (person,) = faces_of(Split.TRAIN, 1, 0)
    person = replace(person, glasses="sunglasses", skin="fair")
    crops = [face_crop(person, Random(seed), 112).pixels.astype(float).mean(2) for seed in range(6)]  # noqa: S311
    eyes = np.mean([crop[46:58, 32:44].mean() for crop in crops])
    cheeks = np.mean([crop[74:82, 34:42].mean() for crop in crops])
    assert eyes < cheeks - 60  # dark glasses over fair skin


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    return scene_set(tmp_path_factory.mktemp("scenes"), Split.TRAIN, 6, 96, 0, 1)


def test_scenes_know_their_faces() -> None:
    scene = draw_scene(Split.TRAIN, Random(2), 128)  # noqa: S311
    left, top, right, bottom = scene.faces[0, :4]
    landmarks = scene.faces[0, 4:].reshape(5, 2)
    assert (landmarks > (left, top)).all()
    assert (landmarks < (right, bottom)).all()
    assert scene.mask[round((top + bottom) / 2), round((left + right) / 2)]


def test_anchors_are_told_the_box_and_landmarks_they_stand_in() -> None:
    face = torch.tensor([40.0, 30, 80, 80, 50, 50, 70, 50, 60, 60, 52, 70, 68, 70])
    targets = assign(face.expand(1, 1, 14), torch.ones(1, 1, dtype=torch.bool), 128)
    found = targets.kind[0] == 1
    assert found.any()
    points_of, strides_of = [], []
    for stride in (8, 16, 32):
        cells = torch.arange(128 // stride) * stride
        grid = torch.cartesian_prod(cells, cells).flip(1)  # x, y; row by row
        points_of.append(grid.repeat_interleave(2, 0))  # two anchors a cell
        strides_of.append(torch.full((2 * len(grid),), float(stride)))
    places, strides = torch.cat(points_of), torch.cat(strides_of)
    points, scale = places[found], strides[found, None]
    distances = targets.distances[0, found] * scale
    torch.testing.assert_close(points - distances[:, :2], face[:2].expand(len(points), 2))
    torch.testing.assert_close(points + distances[:, 2:], face[2:4].expand(len(points), 2))
    offsets = targets.offsets[0, found] * scale
    torch.testing.assert_close(points.repeat(1, 5) + offsets, face[4:].expand(len(points), 10))


def test_covered_faces_do_not_count() -> None:
    face = torch.tensor([40.0, 30, 80, 80, *[50.0] * 10]).expand(1, 1, 14)
    targets = assign(face, torch.zeros(1, 1, dtype=torch.bool), 128)
    assert (targets.kind == -1).any()
    assert not (targets.kind == 1).any()


def test_batches_keep_landmarks_in_their_boxes_and_left_eyes_left(scenes: SceneSet) -> None:
    pixels, faces, clear = draw_batch(scenes, 16, torch.Generator().manual_seed(0))
    assert pixels.shape == (16, 96, 96, 3)
    for row, seen in zip(faces, clear, strict=True):
        for face in row[seen]:
            left, top, right, bottom = face[:4].tolist()
            points = face[4:].reshape(5, 2)
            assert (points[:, 0] > left).all()
            assert (points[:, 0] < right).all()
            assert points[0, 0] < points[1, 0]
            assert points[3, 0] < points[4, 0]
            assert 0 <= (top + bottom) / 2 < 96
            assert 0 <= (left + right) / 2 < 96
    assert clear.any()


def test_the_published_form_has_nine_outputs_in_order() -> None:
    network = PublishedForm(FaceDetector()).eval()
    with torch.inference_mode():
        outputs = network(torch.zeros(1, 3, 64, 96))
    cells = [2 * (64 // s) * (96 // s) for s in (8, 16, 32)]
    assert [tuple(out.shape) for out in outputs] == [(n, width) for width in (1, 4, 10) for n in cells]
    assert all((out >= 0).all() for out in outputs[:6])


def test_a_margin_asks_for_more() -> None:
    cosines = torch.tensor([[0.8, 0.1, -0.2], [0.0, 0.7, 0.3]])
    who = torch.tensor([0, 1])
    assert margin_loss(cosines, who, 20.0, 0.3) > margin_loss(cosines, who, 20.0, 0.0)


def test_a_perfect_detector_measures_perfect(scenes: SceneSet) -> None:
    truths = list(scenes.scenes())
    answers = iter([[(face[:4].tolist(), face[4:].reshape(5, 2)) for face in scene.faces] for scene in truths])
    perfect = measure_detection(lambda _: next(answers), truths)
    assert (perfect.recall, perfect.false_finds, perfect.landmark_error) == (1.0, 0.0, 0.0)
    blind = iter([[((0.0, 0.0, 2.0, 2.0), np.zeros((5, 2), np.float32))] for _ in truths])
    assert measure_detection(lambda _: next(blind), truths[:1] * 3).false_finds == 1.0
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_every_stage_runs_writes_a_package_and_resumes(tmp_path: Path) -> None:
    pipeline = IdentityPipeline(tmp_path / "run", TINY, workers=1)
    pipeline.write(tmp_path / "package")
    record = pipeline.measure(tmp_path / "package")
    assert set(record["image encoder"]) == {"faces", "characters"}
    assert record["detection"]["pictures"] == 3
    face = np.random.default_rng(0).standard_normal((2, 3, 112, 112)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(next((tmp_path / "package").rglob("rec_*.onnx"))))
    with torch.inference_mode():
        wanted = pipeline.recogniser(torch.from_numpy(face)).numpy()
    np.testing.assert_allclose(session.run(None, {"input": face})[0], wanted, atol=1e-4)
    again = IdentityPipeline(tmp_path / "run", TINY, workers=1)
    with torch.inference_mode():
        np.testing.assert_array_equal(again.recogniser(torch.from_numpy(face)).numpy(), wanted)
    scores = verify(lambda crops: crops.reshape(len(crops), -1).astype(np.float32), pipeline.faces(Split.TEST))
    assert scores["all"].pairs == 4
