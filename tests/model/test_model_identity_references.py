"""References through the built-in package's encoders: what is taken of them, and what is said of them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from storyloom_model.identity.encoders.checks import choose_face, judge_face, turn
from storyloom_model.identity.encoders.crops import portrait
from storyloom_model.identity.encoders.faces import Face
from storyloom_model.identity.encoders.pictures import ReferenceProblem
from storyloom_model.identity.encoders.references import ReferenceEncoder, nearest_to
from storyloom_model.identity.features import Reference
from storyloom_training.storydb.groups import FrameRecord, Group, Split, sample_group
from storyloom_training.storydb.picture import Picture, render

PACKAGE = Path(__file__).resolve().parents[2] / "weights/storyloom-mini"
FRONT = np.array([[40, 50], [70, 50], [55, 65], [44, 80], [66, 80]], np.float32)


@pytest.fixture(scope="module")
def encoder() -> ReferenceEncoder:
    return ReferenceEncoder.load(PACKAGE / "faces", PACKAGE / "image_encoder", PACKAGE / "segmenter")


def rendered(people: int = 1, size: int = 192, framing: str = "portrait", index: int = 3) -> Picture:
    group = sample_group(Split.TEST, index, people=people, frames=1)
    frame = FrameRecord("beach", "day", framing, ("standing",) * people, ("smile",) * people, 5)
    return render(Group(Split.TEST, index, group.cast, (frame,)), 0, size)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_portraits_are_kept_where_they_are_wanted(encoder: ReferenceEncoder) -> None:
    picture = rendered()
    plain, _ = encoder.encode_one(Reference(png(picture.image)))
    wanting = replace(encoder, portraits=True)
    found, _ = wanting.encode_one(Reference(png(picture.image)))
    assert plain.portrait is None
    assert found.portrait is not None
    assert found.portrait.shape == (224, 224, 3)
    assert np.array_equal(np.asarray(found.face), np.asarray(plain.face))


class Halves:
    """Finds the hair in the upper half of a picture, a coat in the lower one, and a face in a corner."""

    def find(self, picture: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
        masks = {part: np.zeros(picture.shape[:2], np.bool_) for part in ("face", "hair", "hat", "upper")}
        masks["face"][:8, :8] = masks["hair"][: len(picture) // 2] = masks["upper"][len(picture) // 2 :] = True
        return masks


def test_parts_are_looked_at_one_by_one(encoder: ReferenceEncoder) -> None:
    """The face where the detector found it, garments alone in pictures of clothes, nothing of what is not there."""
    picture = rendered()
    finding = replace(encoder, parts=Halves())
    found, _ = finding.encode_one(Reference(png(picture.image)))
    assert set(found.parts) == {"face", "hair", "upper"}
    assert found.parts["hair"].states.shape == (encoder.image.tokens, encoder.image.width)
    assert not np.array_equal(found.parts["hair"].embedding, found.parts["upper"].embedding)
    clothes, _ = finding.encode_one(Reference(png(picture.image), role="clothes"))
    assert set(clothes.parts) == {"upper"}
    plain, _ = encoder.encode_one(Reference(png(picture.image)))
    assert plain.parts == {}


@pytest.mark.parametrize("box", [(40.0, 30.0, 60.0, 50.0), (0.0, 0.0, 20.0, 18.0), (5.0, 5.0, 95.0, 75.0)])
def test_a_portrait_is_the_square_around_a_face(box: tuple[float, float, float, float]) -> None:
    """Three faces wide where the picture reaches as far; with the face at its own place and size in it."""
    picture = np.zeros((80, 100, 3), np.uint8)
    left, top, right, bottom = (int(value) for value in box)
    picture[top:bottom, left:right] = 255
    side = min(3 * max(right - left, bottom - top), 80)
    found = portrait(picture, box, side)
    assert found.shape == (side, side, 3)
    inside = (min(right, left + side) - left) * (min(bottom, top + side) - top)
    assert (found > 127).all(axis=2).sum() == pytest.approx(inside, rel=0.15)


def test_a_portrait_gives_all_features(encoder: ReferenceEncoder) -> None:
    features, notes = encoder.encode([Reference(png(rendered().image))])
    (found,) = features.references
    assert notes == []
    assert found.face is not None
    assert found.face.shape == (512,)
    assert np.linalg.norm(found.face) == pytest.approx(1, abs=1e-5)
    image = encoder.image
    for states, embedding in (
        (found.face_states, found.face_embedding), (found.character_states, found.character_embedding)
    ):  # fmt: skip
        assert states is not None
        assert embedding is not None
        assert states.shape == (image.tokens, image.width)
        assert embedding.shape == (image.projection,)
    assert features.encoders == encoder.fingerprint


def test_features_survive_the_journal(encoder: ReferenceEncoder) -> None:
    features, _ = encoder.encode([Reference(png(rendered().image))])
    again = type(features).from_bytes(features.to_bytes())
    np.testing.assert_array_equal(again.references[0].face_states, features.references[0].face_states)


def test_a_picture_without_a_face_is_a_problem_that_names_the_reference(encoder: ReferenceEncoder) -> None:
    empty = np.full((128, 128, 3), 200, np.uint8)
    with pytest.raises(ReferenceProblem, match=r"^reference 2: no face was found; use a picture"):
        encoder.encode([Reference(png(rendered().image)), Reference(png(empty))])


def test_the_face_of_a_grey_picture_of_sixteen_bits_is_found(encoder: ReferenceEncoder) -> None:
    picture = rendered(index=6).image
    grey = np.asarray(Image.fromarray(picture).convert("L")).astype(np.uint16) * 257
    features, notes = encoder.encode([Reference(png(grey))])
    assert "the picture is grey: the colours of skin, hair and clothes are guessed" in notes
    (reference,) = features.references
    coloured, _ = encoder.encode([Reference(png(picture))])
    (true,) = coloured.references
    assert reference.face is not None
    assert true.face is not None
    assert reference.face @ true.face > 0.3


def test_with_a_mask_a_character_without_a_face_is_taken(encoder: ReferenceEncoder) -> None:
    empty = np.full((128, 128, 3), 200, np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[30:100, 40:90] = 255
    features, notes = encoder.encode([Reference(png(empty), png(mask))])
    assert notes == ["no face was found: only what the mask shows is taken over"]
    assert features.references[0].face is None
    assert features.references[0].character_states is not None


def test_of_two_people_one_is_taken_and_told_and_a_mask_chooses(encoder: ReferenceEncoder) -> None:
    picture = rendered(people=2)
    features, notes = encoder.encode([Reference(png(picture.image))])
    assert len(notes) == 1
    assert notes[0].startswith("2 faces were found: the largest near the middle was taken, at (")
    chosen = []
    for person in picture.people:
        found, said = encoder.encode([Reference(png(picture.image), png(person.mask.astype(np.uint8) * 255))])
        assert "the one in the mask" in said[0]
        chosen.append(found.references[0].face)
    assert chosen[0] is not None
    assert chosen[1] is not None
    assert float(chosen[0] @ chosen[1]) < 0.7
    assert max(float(features.references[0].face @ face) for face in chosen) > 0.99  # type: ignore[operator]


def test_clothes_are_seen_without_a_face(encoder: ReferenceEncoder) -> None:
    features, _ = encoder.encode([Reference(png(rendered().image), role="clothes")])
    (found,) = features.references
    assert found.role == "clothes"
    assert found.face is None
    assert found.face_states is None
    assert found.character_states is not None


def test_a_blurred_face_is_noted_and_a_sharp_one_is_not(encoder: ReferenceEncoder) -> None:
    sharp = rendered(framing="close-up")
    soft = Image.fromarray(sharp.image).filter(ImageFilter.GaussianBlur(5))
    _, notes = encoder.encode([Reference(png(np.asarray(soft)))])
    assert any("blurred" in note for note in notes)
    assert encoder.encode([Reference(png(sharp.image))])[1] == []


def face_of(landmarks: NDArray[np.float32], size: float = 60) -> Face:
    return Face((30, 30, 30 + size, 30 + size), landmarks, 0.9, np.zeros(512, np.float32))


def test_a_face_from_the_side_is_noted_however_the_head_is_tilted() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    side = FRONT.copy()
    side[2, 0] += 14
    angle = np.radians(25)
    tilt = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    assert turn(face_of(FRONT @ tilt)) == pytest.approx(0, abs=1e-5)
    assert turn(face_of(side @ tilt)) == pytest.approx(turn(face_of(side)), abs=1e-5)
    assert judge_face(picture, face_of(FRONT)) == []
    assert any("from the side" in note for note in judge_face(picture, face_of(side)))


def test_tiny_faces_are_a_problem_and_small_ones_a_note() -> None:
    with pytest.raises(ReferenceProblem, match="only 9 pixels wide"):
        choose_face([face_of(FRONT, 9)], None)
    _, notes = choose_face([face_of(FRONT, 20)], None)
    assert notes == ["the face is only 20 pixels wide: a larger one is recognised better"]


def test_people_are_told_apart_by_whose_face_is_nearer() -> None:
    left, right = (replace(face_of(FRONT, 20), box=(x, 10, x + 20, 30)) for x in (10.0, 70.0))
    people = np.ones((40, 100), np.bool_)
    own = nearest_to(left, [left, right], people)
    assert own[:, :49].all()
    assert not own[:, 52:].any()
    assert nearest_to(left, [left], people).all()


def test_without_a_segmenter_the_character_needs_a_mask(encoder: ReferenceEncoder) -> None:
    picture = rendered()
    alone = replace(encoder, segmenter=None)
    features, _ = alone.encode([Reference(png(picture.image))])
    assert features.references[0].face is not None
    assert features.references[0].character_states is None
    mask = png(picture.people[0].mask.astype(np.uint8) * 255)
    features, _ = alone.encode([Reference(png(picture.image), mask)])
    assert features.references[0].character_states is not None


def test_the_fingerprint_follows_the_files(tmp_path: Path, encoder: ReferenceEncoder) -> None:
    from storyloom_model.identity.encoders.references import encoders_fingerprint

    networks, finders = encoder.fingerprint.split(":")
    recogniser = next((PACKAGE / "faces").rglob("rec_*.onnx"))
    assert networks == encoders_fingerprint([recogniser, PACKAGE / "image_encoder"])
    assert finders == encoders_fingerprint([PACKAGE / "faces", PACKAGE / "segmenter"])
    (tmp_path / "other.onnx").write_bytes(b"other")
    assert encoders_fingerprint([tmp_path, PACKAGE / "image_encoder"]) != networks
