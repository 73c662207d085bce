"""What all runs of stories share."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from storyloom_server.metrics import Metrics
from storyloom_server.safety import Safety
from storyloom_server.store import Store
from storyloom_server.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all runs share. At least ``checkpoint_interval`` steps (0: no checkpoints) and ``checkpoint_seconds`` lie
    between two checkpoints of a story.
    """

    store: Store
    engine: Supervisor
    encoders: Executor
    metrics: Metrics
    safety: Safety
    checkpoint_interval: int
    checkpoint_seconds: float
