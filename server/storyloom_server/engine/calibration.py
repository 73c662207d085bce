"""Takes small stories through a model before it serves: nothing is slow the first time, and steps have a known cost."""

import time

from storyloom_model.jobs import StoryJob
from storyloom_server.engine.backend import Backend, State
from storyloom_server.engine.shapes import story_shape
from storyloom_server.scheduler import CostModel, Load

# Stories in a batch. Each step but the first of a size is measured: three sizes of three steps calibrate the model.
_BATCHES = (1, 2, 4)


def warm_up(backend: Backend, job: StoryJob, cost: CostModel, max_rows: int) -> None:
    """Encodes, steps, previews and decodes ``job``, alone and beside copies of itself.

    Args:
        backend: just loaded.
        job: a small story.
        cost: learns what steps cost.
        max_rows: of a batch step; larger batches are left out, but for one story alone.

    Raises:
        RuntimeError: a story went non-finite.
    """
    for stories in _BATCHES:
        if stories > 1 and stories * job.rows > max_rows:
            break
        states: list[State] = [backend.encode(job) for _ in range(stories)]
        load = sum((story_shape(job).load for _ in states), Load())
        while not states[0].done:
            began = time.perf_counter()
            backend.step(states)
            if states[0].step_index > 1:
                cost.observe_step(load, time.perf_counter() - began)
            if states[0].error is not None:
                raise RuntimeError(f"the model failed its warm-up story: {states[0].error}")
        backend.preview(states[0], [0])
        backend.decode(states[0], [0])
