"""What is kept of a finished frame beside its picture, so that later frames can take after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from storyloom_model.consistency import Look


@dataclass(frozen=True, slots=True)
class FinishedFrame:
    """Size in pixels, final latents as ``AnchorFrame`` takes them, and the look of each character (float32 bytes).

    ``seed`` made it; None where nobody noted it: the one that was asked for. ``seen`` is what the image encoder says of
    the picture (``IdentityFeatures.to_bytes()``), where the story is made in rounds.
    """

    width: int
    height: int
    latents: bytes
    looks: Mapping[str, bytes]
    seed: int | None = None
    seen: bytes = b""

    @property
    def looks_by_name(self) -> dict[str, Look]:
        """The looks as ``storyloom_model.consistency`` takes them."""
        return {name: np.frombuffer(data, dtype="<f4") for name, data in self.looks.items()}

    def to_bytes(self) -> bytes:
        """A header line of JSON, the latents, the looks in the header's order, then what was seen."""
        header = {
            "width": self.width,
            "height": self.height,
            "latents": len(self.latents),
            "looks": {name: len(data) for name, data in self.looks.items()},
            "seed": self.seed,
        }
        return b"".join((json.dumps(header).encode(), b"\n", self.latents, *self.looks.values(), self.seen))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of ``to_bytes``. The store has checked the digest."""
        line, _, rest = data.partition(b"\n")
        header = json.loads(line)
        latents, place = rest[: header["latents"]], header["latents"]
        looks = {}
        for name, size in header["looks"].items():
            looks[name] = rest[place : place + size]
            place += size
        return cls(header["width"], header["height"], latents, looks, header.get("seed"), rest[place:])
