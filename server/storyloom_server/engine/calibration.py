"""Takes small stories through a model before it serves: nothing is slow the first time, and steps have a known cost."""

import logging
import time

from storyloom_model.jobs import StoryJob
from storyloom_server.engine.backend import Backend, State
from storyloom_server.engine.shapes import story_shape
from storyloom_server.logs import fields
from storyloom_server.scheduler import CostModel, Load

log = logging.getLogger("storyloom.engine")

# Stories in a batch. Each step but the first of a size is measured: three sizes of three steps calibrate the model.
_BATCHES = (1, 2, 4)


def warm_up(backend: Backend, job: StoryJob, cost: CostModel, max_rows: int) -> None:
    """Encodes, steps, previews and decodes ``job``, alone and beside copies of itself.

    Args:
        backend: just loaded.
        job: a small story.
        cost: learns what steps cost.
        max_rows: of a batch step; larger batches are left out, but for one story alone. So are those that do not fit
            the device.

    Raises:
        RuntimeError: a story went non-finite.
    """
    for stories in _BATCHES:
        if stories > 1 and stories * job.rows > max_rows:
            break
        try:
            _take_through(backend, job, stories, cost)
        except Exception as error:
            if stories == 1 or not backend.is_out_of_memory(error):
                raise
            log.warning("warm-up stories did not fit the device together", extra=fields(stories=stories))
            break


def _take_through(backend: Backend, job: StoryJob, stories: int, cost: CostModel) -> None:
    """All stages of some stories at once; every step but the first is measured."""
    states: list[State] = [backend.encode(job) for _ in range(stories)]
    load = Load.total([story_shape(job).load] * stories)
    while not states[0].done:
        began = time.perf_counter()
        backend.step(states)
        if states[0].step_index > 1:
            cost.observe_step(load, time.perf_counter() - began)
        if states[0].error is not None:
            raise RuntimeError(f"the model failed its warm-up story: {states[0].error}")
    backend.preview(states[0], [0])
    backend.decode(states[0], [0])
