"""What was taken from where, to be shown at the end. Loads without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storyloom_model.package import PackageError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """One file of a package. ``checksum`` is that of the file it was taken from."""

    part: str
    source: str
    bytes: int
    checksum: str
    note: str = ""


@dataclass(slots=True)
class Record:
    """The files taken so far. ``expected`` are checksums by file name, against which each file is held."""

    expected: Mapping[str, str] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)

    def add(self, part: str, file: Path, note: str = "") -> None:
        """Notes a file.

        Raises:
            PackageError: its checksum is not the expected one.
        """
        found, expected = sha256(file), self.expected.get(file.name)
        if expected is not None and found != expected.lower():
            raise PackageError(f"{file} has the SHA-256 {found}, expected was {expected}; download it again")
        self.taken.append(Taken(part, file.name, file.stat().st_size, found, note))

    def check_all_seen(self) -> None:
        """Refuses checksums of files that were not there, which would else check nothing.

        Raises:
            PackageError: there are such.
        """
        unseen = sorted(set(self.expected) - {one.source for one in self.taken})
        if unseen:
            raise PackageError(f"--sha256 is given for {', '.join(unseen)}, and no such file was taken")


def sha256(file: Path) -> str:
    """The checksum that hubs show beside a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
