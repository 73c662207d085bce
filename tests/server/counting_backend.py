"""The backend without a model, which also tells how many objects of jobs its engine process holds.

Each encoding writes the counts as they were before it to the file STORYLOOM_TEST_COUNTS. The word ``crawl`` makes
previews slow, which no estimate knows of: an accepted story misses its deadline.
"""

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.server.null_backend import NullBackend, NullState

COUNTS_FILE = "STORYLOOM_TEST_COUNTS"
ENGINE_TYPES = ("NullState", "_Job", "OpenStory")


def live(names: Sequence[str]) -> dict[str, int]:
    """How many objects of the types of these names there are in this process."""
    gc.collect()
    found = Counter(type(each).__name__ for each in gc.get_objects())
    return {name: found[name] for name in names}


class CountingBackend(NullBackend):
    """Counts before it encodes: the job that is encoded is one of those that are counted, its state is not."""

    def encode(self, job: Any) -> NullState:
        if "count" in job.frames[0].prompt.text:
            Path(os.environ[COUNTS_FILE]).write_text(json.dumps(live(ENGINE_TYPES)))
        return super().encode(job)

    def preview(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        if "crawl" in state.words:
            time.sleep(0.1)
        return super().preview(state, frames)
