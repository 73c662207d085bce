"""Which stories share a batch step: fills it fairly, then leaves out who costs the others more than sharing saves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from storyloom_server.scheduler.cost import CostCoefficients
from storyloom_server.scheduler.fairness import FairShare
from storyloom_server.scheduler.memory import Room
from storyloom_server.scheduler.open_story import OpenStory


def fill(
    opener: OpenStory,
    ranked: Mapping[str, Sequence[OpenStory]],
    fair: FairShare,
    max_rows: int,
    room: Room,
    overdue: Callable[[OpenStory], bool],
) -> list[OpenStory]:
    """The opener, then stories of its key that still fit, each from the tenant then furthest behind its share.

    Args:
        ranked: by tenant, its stories in order of rank.
        max_rows: of a step that stories share.
        room: what such a step may take of the device's memory.
        overdue: whether a story has waited too long. One that has and cannot ride keeps its tenant's others from
            riding: what they used would put off the tenant's own turn, and so that story's.
    """
    batch = [opener]
    if opener.spec.alone:
        return batch
    key = opener.spec.key
    _, rows, row_megapixels, cross = opener.load
    queues = {tenant: iter(stories) for tenant, stories in ranked.items()}
    before = {tenant: fair.used(tenant) for tenant in queues}
    heap = []
    for tenant in queues:
        charge = opener.marginal_seconds if tenant == opener.spec.tenant else 0.0
        heap.append((fair.after(tenant, charge), tenant))
    heapq.heapify(heap)
    while heap and rows < max_rows:
        used, tenant = heap[0]
        for story in queues[tenant]:
            if story is opener:
                continue
            _, more_rows, more_megapixels, more_cross = story.load
            if (
                rows + more_rows <= max_rows
                and room.fits(row_megapixels + more_megapixels, cross + more_cross)
                and story.spec.key == key
                and not story.spec.alone
            ):
                batch.append(story)
                rows, row_megapixels, cross = rows + more_rows, row_megapixels + more_megapixels, cross + more_cross
                charge = fair.after(tenant, story.marginal_seconds) - before[tenant]
                heapq.heapreplace(heap, (used + charge, tenant))
                break
            if overdue(story):
                heapq.heappop(heap)
                break
        else:
            heapq.heappop(heap)
    return batch


def worthwhile(batch: Sequence[OpenStory], impatience: float, coefficients: CostCoefficients) -> int:
    """How many of the batch's stories, from the front, should take the step together; at least 1.

    A rider's step now saves the step that it would take alone later. That time is saved for the rider and those behind
    it; against it, everyone waits until the longer batch is through. Both are weighed by ``impatience`` (the sum over
    all who wait, those in the batch included). On a device that one story fills, a batch saves next to nothing, and the
    most entitled story is not held up by others; where rows are cheap, or many wait, the batch fills up. Padding
    counts: rows up to the next bucket are free, the first beyond it is dear.
    """
    best, best_gain = 1, 0.0
    saved, behind = 0.0, impatience
    rows, row_megapixels, cross = 0, 0.0, 0.0
    for count, story in enumerate(batch, start=1):
        saved += story.step_seconds * behind
        behind -= story.impatience
        _, more_rows, more_megapixels, more_cross = story.load
        rows, row_megapixels, cross = rows + more_rows, row_megapixels + more_megapixels, cross + more_cross
        gain = saved - coefficients.batch_seconds(rows, row_megapixels, cross) * impatience
        if count > 1 and gain >= best_gain:
            best, best_gain = count, gain
    return best
