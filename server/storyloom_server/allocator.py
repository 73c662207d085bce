"""How this process takes memory from the system."""

import ctypes
import sys

# Of <malloc.h>.
_M_ARENA_MAX = -8
_ARENAS = 2


def share_arenas() -> None:
    """Lets all threads of this process share two of glibc's arenas; elsewhere it does nothing. Call it first of all.

    By default each new thread gets an arena of its own, up to eight for each core, and what a burst leaves free in one
    serves no other thread. The service has some twenty threads that wait for disks and locks most of the time, so that
    nobody stands in line for an arena.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none.
        mallopt(_M_ARENA_MAX, _ARENAS)
