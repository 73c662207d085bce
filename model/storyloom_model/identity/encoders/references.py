"""References of a character to features: the encoders of one model package together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from storyloom_model.identity.encoders.checks import choose_face, judge_face
from storyloom_model.identity.encoders.crops import Mask, Pixels, whitened_character
from storyloom_model.identity.encoders.faces import Face, FaceEncoder
from storyloom_model.identity.encoders.image import ImageEncoder, PictureFeatures
from storyloom_model.identity.encoders.pictures import DecodedPicture, ReferenceProblem, decode_mask, decode_picture
from storyloom_model.identity.encoders.segmentation import Segmenter, load_segmenter
from storyloom_model.identity.features import IdentityFeatures, Reference, ReferenceFeatures

LEAST_CHARACTER = 0.005
"""Of the picture; what a segmenter finds below is nobody."""
_SEPIA = np.array([1.12, 0.98, 0.8])


@dataclass(frozen=True)
class ReferenceEncoder:
    """What says what is in pictures of a character. `fingerprint` tells these encoders from all others (of its two
    parts see `IdentityFeatures`).

    Without a segmenter only characters whose mask is given are cut out; of others the face alone is known.
    """

    faces: FaceEncoder
    image: ImageEncoder
    segmenter: Segmenter | None
    fingerprint: str

    @classmethod
    def load(cls, faces: Path, image: Path, segmenter: Path | None = None, device: str = "cpu") -> ReferenceEncoder:
        """Loads the parts that a manifest's `encoders` names.

        Raises:
            EncodersError: one of them is not usable.
        """
        face_encoder = FaceEncoder.load(faces, device)
        networks = encoders_fingerprint([face_encoder.recogniser, image])
        finders = encoders_fingerprint([faces, *([] if segmenter is None else [segmenter])])
        return cls(
            face_encoder,
            ImageEncoder.load(image, device),
            None if segmenter is None else load_segmenter(segmenter, device),
            f"{networks}:{finders}",
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
            return _features(reference, None, None, seen), list(picture.notes)
        face, crops, notes = self._character(picture, mask)
        seen_face, seen_character = _pair(self.image.encode(crops), has_face=face is not None)
        return _features(reference, face, seen_face, seen_character), [*picture.notes, *notes]

    def _clothes(self, pixels: Pixels, mask: Mask | None) -> Pixels:
        """Garments are looked at as a whole picture, unless a mask says where they are."""
        if mask is not None:
            return whitened_character(pixels, mask, self.image.size)
        size = (self.image.size, self.image.size)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def _character(self, picture: DecodedPicture, mask: Mask | None) -> tuple[Face | None, list[Pixels], list[str]]:
        """The chosen face, the crops to encode (of the face, of the character), and notes."""
        pixels, faces, guessed = self._look_for_faces(picture.pixels)
        if not faces and mask is not None:
            notes = ["no face was found: only what the mask shows is taken over"]
            return None, [whitened_character(pixels, mask, self.image.size)], notes
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
        return face, crops, notes

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
    reference: Reference, face: Face | None, seen_face: PictureFeatures | None, character: PictureFeatures | None
) -> ReferenceFeatures:
    return ReferenceFeatures(
        role=reference.role,
        face=None if face is None else face.embedding,
        face_states=None if seen_face is None else seen_face.states,
        face_embedding=None if seen_face is None else seen_face.embedding,
        character_states=None if character is None else character.states,
        character_embedding=None if character is None else character.embedding,
    )
