"""What the pictures of a story's rounds show, as far as the next round needs it, and where it is kept.

Of each round but the last, what is kept of a picture is what the image encoder says of it. It is stored as soon as the
picture is there, so that after a crash a story goes on in the round that it was in. Two rounds are kept at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.jobs import GlobalReferences
from storyloom_model.methods.rounds import Rounds, WholePictures, shown
from storyloom_server.shelf import Shelf
from storyloom_server.store import ArtifactKind
from storyloom_server.validate import StoryPlan

_HEADER = 4
"""Bytes of the round's number, in front of the features."""


class RoundPictures:
    """Of one story.

    Args:
        rounds: of the story.
        pictures: what is read of them, and how many at once.
        frames: of the story.
        shelf: keeps what rounds show.
    """

    def __init__(self, rounds: Rounds, pictures: WholePictures, frames: int, shelf: Shelf) -> None:
        self._scales = rounds.scales
        self._most = pictures.most
        self._frames = frames
        self._shelf = shelf
        self._lent: dict[int, bytes] = {}
        self._by_round: dict[int, dict[int, bytes]] = {}
        self._references: tuple[int, GlobalReferences] | None = None

    @property
    def last(self) -> int:
        """The number of the last round; the first is 0."""
        return len(self._scales) - 1

    async def take_up(self, lent: Mapping[int, bytes], networks: str) -> None:
        """Goes on where an earlier server left the story.

        Args:
            lent: what finished frames show that are not made again, by index; they are seen in every round.
            networks: the fingerprint of the engine's encoders, see ``IdentityFeatures``; what others said of pictures
                is left aside, and the pictures are made again.
        """
        self._lent = dict(lent)
        for position, data in (await self._shelf.load_all(ArtifactKind.REFERENCE)).items():
            number, features = int.from_bytes(data[:_HEADER], "little"), data[_HEADER:]
            if networks_of(features) == networks:
                self._by_round.setdefault(number, {})[position % self._frames] = features

    def first_open(self, made: Collection[int]) -> int:
        """The round to go on with: the one after the last of which all is known, or 0.

        Args:
            made: the frames that rounds make.
        """
        whole = [number for number, seen in self._by_round.items() if set(made) <= seen.keys()]
        return max(whole, default=-1) + 1

    def has(self, number: int, frame: int) -> bool:
        """Whether it is known what a frame of a round shows."""
        return frame in self._by_round.get(number, ())

    async def keep(self, number: int, frame: int, features: bytes) -> None:
        """Stores what a frame of a round shows, in place of what it did two rounds ago."""
        position = number % 2 * self._frames + frame
        await self._shelf.keep(ArtifactKind.REFERENCE, position, number.to_bytes(_HEADER, "little") + features)
        self._by_round.pop(number - 2, None)
        self._by_round.setdefault(number, {})[frame] = features

    def references(self, number: int) -> GlobalReferences | None:
        """What the frames of a round see; None in the first."""
        if number == 0:
            return None
        if self._references is None or self._references[0] != number:
            seen = self._lent | self._by_round[number - 1]
            chosen = [IdentityFeatures.from_bytes(seen[frame]) for frame in shown(sorted(seen), self._most)]
            together = IdentityFeatures(chosen[0].encoders, tuple(one for each in chosen for one in each.references))
            self._references = number, GlobalReferences(together.to_bytes(), self._scales[number])
        return self._references[1]


def round_pictures_of(plan: StoryPlan, shelf: Shelf) -> RoundPictures | None:
    """Those of a story; None where it is made once."""
    if plan.rounds is None:
        return None
    return RoundPictures(plan.rounds.rounds, plan.rounds.pictures, len(plan.job.frames), shelf)


def networks_of(features: bytes) -> str:
    """The fingerprint of the networks that said this of a picture; "" where it is of no use."""
    try:
        return IdentityFeatures.from_bytes(features).networks
    except FeaturesError:
        return ""
