"""Processor time of a server that this process has started, of which other work on the machine changes little."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")


def processor_seconds() -> float | None:
    """User and system time so far of all processes that descend from this one and are there; None where it is not told.

    Processes that have ended are not in it, so that a difference of two answers is of use while all go on.
    """
    if not _PROC.is_dir():
        return None
    found = _processes()
    ticks = sum(time for pid, (_, time) in found.items() if _descends(pid, found))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and ticks of every process."""
    found = {}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended meanwhile.
            found[int(folder.name)] = int(after_name[1]), int(after_name[11]) + int(after_name[12])
    return found


def _descends(pid: int, found: Mapping[int, tuple[int, int]]) -> bool:
    own = os.getpid()
    while pid in found and pid != own:
        pid = found[pid][0]
        if pid == own:
            return True
    return False
