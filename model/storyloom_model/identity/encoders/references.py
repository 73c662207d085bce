"""References of a character to features: the encoders of one model package together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from storyloom_model.identity.encoders.checks import choose_face, judge_face
from storyloom_model.identity.encoders.crops import Mask, Pixels, portrait, whitened_character
from storyloom_model.identity.encoders.faces import Face, FaceEncoder
from storyloom_model.identity.encoders.image import ImageEncoder, PictureFeatures
from storyloom_model.identity.encoders.pictures import DecodedPicture, ReferenceProblem, decode_mask, decode_picture
from storyloom_model.identity.encoders.segmentation import Parser, Segmenter, load_segmenter
from storyloom_model.identity.features import IdentityFeatures, PartFeatures, Reference, ReferenceFeatures
from storyloom_model.identity.parts import FACE, GARMENTS

LEAST_CHARACTER = 0.005
"""Of the picture; what a segmenter finds below is nobody."""
LEAST_PART = 0.002
"""Of the picture; what is found of a part below is not there."""
_SEPIA = np.array([1.12, 0.98, 0.8])


class PartFinder(Protocol):
    """Finds the parts of a character."""

    def find(self, picture: Pixels) -> dict[str, Mask]:
        """Masks bool [h, w] by the names of parts, of a picture uint8 [h, w, 3] RGB."""
        ...


@dataclass(frozen=True)
class ReferenceEncoder:
    """What says what is in pictures of a character. `fingerprint` tells these encoders from all others (of its two
    parts see `IdentityFeatures`).

    Without a segmenter only characters whose mask is given are cut out; of others the face alone is known. With
    `portraits` these are among the features; with `parts` it finds what is seen of each part.
    """

    faces: FaceEncoder
    image: ImageEncoder
    segmenter: Segmenter | None
    fingerprint: str
    portraits: bool = False
    parts: PartFinder | None = None

    @classmethod
    def load(
        cls,
        faces: Path,
        image: Path,
        segmenter: Path | None = None,
        device: str = "cpu",
        *,
        portraits: bool = False,
        parser: Path | None = None,
        parts: PartFinder | None = None,
    ) -> ReferenceEncoder:
        """Loads the parts that a manifest's `encoders` names.

        Args:
            faces, image, segmenter, parser: files or folders. The parser takes the place of `parts`.
            device: where they run.
            portraits, parts: see the class.

        Raises:
            EncodersError: one of them is not usable.
        """
        face_encoder = FaceEncoder.load(faces, device)
        networks = encoders_fingerprint([face_encoder.recogniser, image])
        finders = encoders_fingerprint([one for one in (faces, segmenter, parser) if one is not None])
        by_maps = parts is not None and parser is None
        return cls(
            face_encoder,
            ImageEncoder.load(image, device),
            None if segmenter is None else load_segmenter(segmenter, device),
            f"{networks}:{finders}" + (":portraits" if portraits else "") + (":parts" if by_maps else ""),
            portraits,
            parts if parser is None else Parser(parser, device),
        )

    def encode(self, references: Sequence[Reference]) -> tuple[IdentityFeatures, list[str]]:
        """The features of one character's references, and notes on them for people.

        Raises:
            ReferenceProblem: one of them is of no use.
        """
        features, notes = [], []
        for place, reference in enumerate(references):
            try:
                found, said = self.encode_one(reference)
            except ReferenceProblem as problem:
                raise ReferenceProblem(_of(place, len(references), str(problem))) from problem
            features.append(found)
            notes += [_of(place, len(references), note) for note in said]
        return IdentityFeatures(self.fingerprint, tuple(features)), notes

    def encode_one(self, reference: Reference) -> tuple[ReferenceFeatures, list[str]]:
        """The features of one reference, and notes on it.

        Raises:
            ReferenceProblem: it is of no use.
        """
        picture = decode_picture(reference.picture)
        mask = None if reference.mask is None else decode_mask(reference.mask, picture)
        if reference.role == "clothes":
            (seen,) = self.image.encode([self._clothes(picture.pixels, mask)])
            found = _features(reference, picture, None, None, seen)
            found = replace(found, parts=self._parts(picture.pixels, None, mask))
            garments = {part: one for part, one in found.parts.items() if part in GARMENTS}
            return replace(found, parts=garments), list(picture.notes)
        face, crops, mask, notes = self._character(picture, mask)
        seen_face, seen_character = _pair(self.image.encode(crops), has_face=face is not None)
        found = _features(reference, picture, face, seen_face, seen_character)
        if self.portraits and face is not None:
            found = replace(found, portrait=portrait(picture.pixels, face.box))
        found = replace(found, parts=self._parts(picture.pixels, face, mask))
        return found, [*picture.notes, *notes]

    def encode_picture(self, picture: Pixels) -> ReferenceFeatures:
        """What the image encoder says of a whole picture, whoever is in it.

        Args:
            picture: uint8 [h, w, 3] RGB; it is scaled to the encoder's square, and its proportions are not kept.

        Returns:
            Features of which ``character_states`` and ``character_embedding`` are there.
        """
        (seen,) = self.image.encode([self._clothes(picture, None)])
        return ReferenceFeatures(character_states=seen.states, character_embedding=seen.embedding)

    def _clothes(self, pixels: Pixels, mask: Mask | None) -> Pixels:
        """Garments are looked at as a whole picture, unless a mask says where they are."""
        if mask is not None:
            return whitened_character(pixels, mask, self.image.size)
        size = (self.image.size, self.image.size)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def _parts(self, picture: Pixels, face: Face | None, mask: Mask | None) -> dict[str, PartFeatures]:
        """What is seen of each part, within the character's mask where there is one.

        The face is where its detector found it, and no other part reaches into it.
        """
        if self.parts is None:
            return {}
        found = self.parts.find(picture)
        if face is not None:
            left, top, right, bottom = (max(0, round(value)) for value in face.box)
            inside = np.zeros(picture.shape[:2], np.bool_)
            inside[top:bottom, left:right] = True
            found = {part: inside if part == FACE else one & ~inside for part, one in found.items()}
        if mask is not None:
            found = {part: one & mask for part, one in found.items()}
        found = {part: one for part, one in found.items() if one.mean() >= LEAST_PART}
        seen = self.image.encode([whitened_character(picture, one, self.image.size) for one in found.values()])
        return {part: PartFeatures(one.states, one.embedding) for part, one in zip(found, seen, strict=True)}

    def _character(
        self, picture: DecodedPicture, mask: Mask | None
    ) -> tuple[Face | None, list[Pixels], Mask | None, list[str]]:
        """The chosen face, the crops to encode (of the face, of the character), where the character is, and notes."""
        pixels, faces, guessed = self._look_for_faces(picture.pixels)
        if not faces and mask is not None:
            notes = ["no face was found: only what the mask shows is taken over"]
            return None, [whitened_character(pixels, mask, self.image.size)], mask, notes
        face, notes = choose_face(faces, mask)
        notes += [*guessed, *judge_face(pixels, face)]
        crops = [face.crop(pixels, self.image.size)]
        if mask is None and self.segmenter is not None:
            mask = nearest_to(face, faces, self.segmenter.people(pixels))
            if mask.mean() < LEAST_CHARACTER:
                notes.append("the character could not be told from the background: only the face is taken over")
                mask = None
        if mask is not None:
            crops.append(whitened_character(pixels, mask, self.image.size))
        return face, crops, mask, notes

    def _look_for_faces(self, pixels: Pixels) -> tuple[Pixels, list[Face], list[str]]:
        """The picture to go on with, the faces in it, and notes.

        A grey one gets the tone of an old photograph where no face is found in it as it is: not every detector has seen
        faces without colours.
        """
        faces = self.faces.faces(pixels)
        if faces or (pixels[..., :1] != pixels[..., 1:]).any():
            return pixels, faces, []
        toned = (pixels * _SEPIA).clip(0, 255).astype(np.uint8)
        faces = self.faces.faces(toned)
        note = "the picture is grey: the colours of skin, hair and clothes are guessed"
        return (toned, faces, [note]) if faces else (pixels, [], [])


def nearest_to(face: Face, faces: Sequence[Face], people: Mask) -> Mask:
    """The part of a mask of people that is nearer to one face, sideways, than to any other."""
    columns = np.arange(people.shape[1])
    distances = np.stack([np.abs(columns - other.centre[0]) / max(other.size, 1.0) for other in faces])
    own = np.abs(columns - face.centre[0]) / max(face.size, 1.0) <= distances.min(0)
    return np.asarray(people & own)


def encoders_fingerprint(folders: Sequence[Path]) -> str:
    """Names the contents of the encoders' files, in full, and this way of using them."""
    digest = hashlib.blake2b(b"encoders 1", digest_size=16)
    for folder in folders:
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        for file in files:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


def _of(place: int, count: int, text: str) -> str:
    return text if count == 1 else f"reference {place + 1}: {text}"


def _pair(seen: list[PictureFeatures], *, has_face: bool) -> tuple[PictureFeatures | None, PictureFeatures | None]:
    """What is seen of the face and of the character."""
    face = seen[0] if has_face else None
    rest = seen[1:] if has_face else seen
    return face, rest[0] if rest else None


def _features(
    reference: Reference,
    picture: DecodedPicture,
    face: Face | None,
    seen_face: PictureFeatures | None,
    character: PictureFeatures | None,
) -> ReferenceFeatures:
    height, width = picture.pixels.shape[:2]
    return ReferenceFeatures(
        role=reference.role,
        face=None if face is None else face.embedding,
        face_states=None if seen_face is None else seen_face.states,
        face_embedding=None if seen_face is None else seen_face.embedding,
        character_states=None if character is None else character.states,
        character_embedding=None if character is None else character.embedding,
        landmarks=None if face is None else face.landmarks.astype(np.float32),
        size=None if face is None else np.array([width, height], np.float32),
    )
