"""Learned memory: batches that do not fit are not tried twice, one story alone always may be tried."""

from __future__ import annotations

from storyloom_server.scheduler import Load, MemoryModel, StoryShape

GIB = 2**30
STORY = StoryShape(4, 2, 1024 * 1024, 20).load
"""Eight row-megapixels."""


def times(count: int) -> Load:
    return Load.total([STORY] * count)


def fits(memory: MemoryModel, batch: int, active: int) -> bool:
    """Whether a batch of so many stories fits beside so many active ones."""
    load = times(batch)
    return memory.room(times(active)).fits(load.row_megapixels, load.cross)


def peak(batch: Load, active: Load) -> int:
    return int((4 + 0.05 * active.row_megapixels + 0.8 * batch.row_megapixels) * GIB)


def test_everything_fits_before_anything_is_known() -> None:
    assert fits(MemoryModel(80 * GIB), 50, 50)
    assert fits(MemoryModel(), 50, 50)
    assert MemoryModel(80 * GIB).largest_story() is None


def test_measured_peaks_tell_what_will_not_fit() -> None:
    memory = MemoryModel(40 * GIB)
    for _ in range(5):
        for batch, active in ((1, 1), (2, 2), (3, 4), (1, 6), (4, 5)):
            memory.observe_peak(times(batch), times(active), peak(times(batch), times(active)))
    assert fits(memory, 4, 4)
    assert not fits(memory, 6, 6), "six would need over 42 GiB"
    assert not memory.has_room(times(1), times(80)), "the states alone would fill the device"
    assert memory.has_room(times(1), times(10))
    largest = memory.largest_story()
    assert largest is not None
    assert 0.8 * 38 < largest < 1.2 * 38, "92 % of 40 GiB, less 4 for the weights, at 0.85 a row-megapixel"


def test_running_out_of_memory_lowers_the_cap_below_the_failed_load() -> None:
    memory = MemoryModel()
    assert memory.out_of_memory(times(5))
    assert not fits(memory, 5, 5)
    assert fits(memory, 4, 5)
    assert memory.out_of_memory(times(2))
    assert not fits(memory, 2, 5)
    assert memory.has_room(times(1), times(5)), "the cap holds for batches, not for how many are active"
    assert not memory.out_of_memory(times(1)), "what fails alone cannot be tried in a smaller batch"


def test_the_cap_rises_again_but_slowly() -> None:
    memory = MemoryModel()
    memory.out_of_memory(times(10))
    low = memory.cap
    for _ in range(1999):
        memory.observe_peak(times(1), times(1), None)
    assert memory.cap == low
    memory.observe_peak(times(1), times(1), None)
    assert low < memory.cap < times(10).row_megapixels
