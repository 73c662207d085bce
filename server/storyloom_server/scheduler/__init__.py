"""Which stories are accepted, and what the engine does next: numbers and lists, no tensors, no wire, no clock.

``stories`` says what a story is to it; ``scheduler`` orders the work of one engine, with ``open_story`` (rank),
``fairness`` (between tenants), ``batching`` (who shares a step), ``cost`` and ``memory`` (learned from measurements, by
``regression``); ``admission`` decides in the service process, before a story is accepted.
"""

from storyloom_server.scheduler.admission import Accepted, Admission, Progress, Reason, Refused
from storyloom_server.scheduler.cost import CostCoefficients, CostModel, padded_rows
from storyloom_server.scheduler.limits import Limits
from storyloom_server.scheduler.memory import MemoryModel
from storyloom_server.scheduler.scheduler import Scheduler
from storyloom_server.scheduler.stories import FINAL, Load, Phase, Priority, Status, StoryShape, StorySpec
from storyloom_server.scheduler.work import Decode, Encode, Preview, Step, Work

__all__ = [
    "FINAL",
    "Accepted",
    "Admission",
    "CostCoefficients",
    "CostModel",
    "Decode",
    "Encode",
    "Limits",
    "Load",
    "MemoryModel",
    "Phase",
    "Preview",
    "Priority",
    "Progress",
    "Reason",
    "Refused",
    "Scheduler",
    "Status",
    "Step",
    "StoryShape",
    "StorySpec",
    "Work",
    "padded_rows",
]
