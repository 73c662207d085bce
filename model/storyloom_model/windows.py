"""Which frames of a long story are made together, and which finished ones they see. Plain numbers: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """One job of a long story: the frames that it makes and the finished ones that are its anchors, both ascending."""

    frames: tuple[int, ...]
    anchors: tuple[int, ...] = ()


def plan_windows(
    casts: Sequence[Sequence[str]], window: int, anchors: int, finished: Collection[int] = ()
) -> list[Window]:
    """Cuts a story into windows of at most ``window`` frames and anchors together, in the order to make them.

    The first window makes ``window`` frames, each later one ``window - anchors``, so that a frame costs the same
    however many came before. Anchors are chosen as `choose_anchors` says. A story that fits one window is one.

    Args:
        casts: for each frame, the names of its characters.
        window: the most frames and anchors of a window.
        anchors: the most anchors of a window.
        finished: frames that exist already, of a story that goes on from another; every window may have anchors then.

    Raises:
        ValueError: a later window would have no room for frames.
    """
    if not 0 <= anchors < window:
        raise ValueError(f"a window of {window} leaves no room for frames beside {anchors} anchors; take fewer anchors")
    windows: list[Window] = []
    known = set(finished)
    missing = [frame for frame in range(len(casts)) if frame not in known]
    while missing:
        room = window - anchors if known else window
        frames, missing = missing[:room], missing[room:]
        windows.append(Window(tuple(frames), choose_anchors(casts, frames, known, anchors)))
        known.update(frames)
    return windows


def choose_anchors(
    casts: Sequence[Sequence[str]], frames: Sequence[int], finished: Collection[int], count: int
) -> tuple[int, ...]:
    """The finished frames that new ones should see, ascending.

    First, for each character of the new frames that no choice so far shows, the first frame that it is in: there its
    looks were decided, and returning to it keeps them from drifting. Characters of more new frames come first. Then,
    for continuity, the frames nearest to the new ones that show any of their characters; of two as near, the earlier.

    Args:
        casts: for each frame of the story, the names of its characters.
        frames: the new frames.
        finished: frames that exist; later ones than the new frames may be among them.
        count: the most anchors.
    """
    wanted = Counter(name for frame in frames for name in dict.fromkeys(casts[frame]))
    useful = sorted(frame for frame in set(finished) - set(frames) if wanted.keys() & set(casts[frame]))
    chosen: list[int] = []
    for name, _ in wanted.most_common():
        if not any(name in casts[frame] for frame in chosen):
            chosen += [frame for frame in useful if name in casts[frame]][:1]
    chosen += sorted(set(useful) - set(chosen), key=lambda frame: (min(abs(frame - new) for new in frames), frame))
    return tuple(sorted(chosen[:count]))
