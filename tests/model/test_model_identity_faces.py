"""Faces: alignment as insightface does it, which face is the prominent one, and what packs may look like."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from storyloom_model.identity.encoders.crops import aligned_face, whitened_character
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.faces import Face, FaceEncoder, find_pack, prominence, providers_for

PACK = Path(__file__).resolve().parents[2] / "weights/storyloom-mini/faces"
LANDMARKS = np.array([[60, 70], [95, 66], [80, 92], [66, 110], [94, 107]], np.float32)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)


def face(left: float, top: float, right: float, bottom: float) -> Face:
    return Face((left, top, right, bottom), LANDMARKS, 0.9, np.zeros(512, np.float32))


@pytest.mark.parametrize("size", [112, 224])
def test_alignment_is_that_of_insightface(picture: NDArray[np.uint8], size: int) -> None:
    from insightface.utils.face_align import norm_crop

    np.testing.assert_array_equal(aligned_face(picture, LANDMARKS, size), norm_crop(picture, LANDMARKS, size))


def test_alignment_works_at_any_size() -> None:
    y, x = np.mgrid[:160, :200]
    smooth = np.stack((x, y, x // 2 + y // 2), 2).astype(np.uint8)
    small, large = aligned_face(smooth, LANDMARKS, 50), aligned_face(smooth, LANDMARKS, 150)
    assert small.shape == (50, 50, 3)
    inner = large[15:135:3, 15:135:3].astype(int)
    assert np.abs(small[5:45, 5:45].astype(int) - inner).max() <= 3


def test_the_most_prominent_face_is_large_and_near_the_middle() -> None:
    middle, corner, small = face(80, 60, 120, 100), face(0, 0, 42, 42), face(90, 70, 110, 90)
    order = sorted((small, corner, middle), key=lambda each: prominence(each, 200, 160), reverse=True)
    assert order == [middle, corner, small]


def test_a_character_is_cut_out_on_white(picture: NDArray[np.uint8]) -> None:
    dark = picture // 4
    mask = np.zeros((160, 200), np.bool_)
    mask[20:120, 50:90] = True
    mask[20:60, 50:60] = False
    crop = whitened_character(dark, mask, 64)
    assert crop.shape == (64, 64, 3)
    assert (crop[:20, :10] == 255).all()
    assert crop[40:].max() < 150
    with pytest.raises(ValueError, match="empty"):
        whitened_character(dark, np.zeros_like(mask), 64)


def test_a_folder_without_a_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncodersError, match="no face pack"):
        find_pack(tmp_path)
    (tmp_path / "models/buffalo_l").mkdir(parents=True)
    with pytest.raises(EncodersError, match=r"no \.onnx files"):
        find_pack(tmp_path)


def test_of_several_packs_none_is_guessed(tmp_path: Path) -> None:
    for name in ("buffalo_l", "antelopev2"):
        (tmp_path / "models" / name).mkdir(parents=True)
    with pytest.raises(EncodersError, match="antelopev2, buffalo_l"):
        find_pack(tmp_path)


def test_a_nested_pack_is_named_with_what_to_do(tmp_path: Path) -> None:
    nested = tmp_path / "models/antelopev2/antelopev2"
    nested.mkdir(parents=True)
    (nested / "glintr100.onnx").touch()
    with pytest.raises(EncodersError, match=r"one folder too deep; move .*antelopev2/antelopev2/\*\.onnx"):
        find_pack(tmp_path)


def test_a_pack_without_a_recogniser_is_refused(tmp_path: Path) -> None:
    pack = tmp_path / "models/half"
    pack.mkdir(parents=True)
    shutil.copy(next(PACK.glob("models/*/det_*.onnx")), pack)
    with pytest.raises(EncodersError, match="no recognition model"):
        FaceEncoder.load(tmp_path)


def test_without_insightface_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "insightface"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(EncodersError, match=r"pip install 'storyloom\[identity\]'"):
        FaceEncoder.load(PACK)


def test_providers_follow_the_device() -> None:
    assert providers_for("cpu") == ["CPUExecutionProvider"]
    assert providers_for("cuda:0")[-1] == "CPUExecutionProvider"
