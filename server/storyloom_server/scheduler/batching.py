"""Which stories share a batch step: fills it fairly, then leaves out who costs the others more than sharing saves."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from storyloom_server.scheduler.cost import CostCoefficients
from storyloom_server.scheduler.fairness import FairShare
from storyloom_server.scheduler.open_story import OpenStory
from storyloom_server.scheduler.stories import Load


def fill(
    opener: OpenStory,
    ranked: Mapping[str, Sequence[OpenStory]],
    fair: FairShare,
    coefficients: CostCoefficients,
    fits: Callable[[Load, Load], bool],
    overdue: Callable[[OpenStory], bool],
) -> list[OpenStory]:
    """The opener, then stories of its key that still fit, each from the tenant then furthest behind its share.

    Args:
        ranked: by tenant, its stories in order of rank.
        fits: whether a load can be added to another in one step.
        overdue: whether a story has waited too long. One that has and cannot ride keeps its tenant's others from
            riding: what they used would put off the tenant's own turn, and so that story's.
    """
    batch, load = [opener], opener.load
    if opener.spec.alone:
        return batch
    queues = {tenant: deque(story for story in stories if story is not opener) for tenant, stories in ranked.items()}
    heap = []
    for tenant in queues:
        charge = coefficients.marginal_seconds(opener.load) if tenant == opener.spec.tenant else 0.0
        heap.append((fair.after(tenant, charge), tenant))
    heapq.heapify(heap)
    while heap:
        used, tenant = heapq.heappop(heap)
        queue = queues[tenant]
        while queue:
            story = queue.popleft()
            if story.spec.key == opener.spec.key and not story.spec.alone and fits(load, story.load):
                batch.append(story)
                load += story.load
                charge = fair.after(tenant, coefficients.marginal_seconds(story.load)) - fair.used(tenant)
                heapq.heappush(heap, (used + charge, tenant))
                break
            if overdue(story):
                break
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
    saved, behind, load = 0.0, impatience, Load()
    for count, story in enumerate(batch, start=1):
        saved += story.step_seconds * behind
        behind -= story.impatience
        load += story.load
        gain = saved - coefficients.step_seconds(load) * impatience
        if count > 1 and gain >= best_gain:
            best, best_gain = count, gain
    return best
