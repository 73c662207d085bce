"""Client of Storyloom: stories whose characters stay themselves from picture to picture.

from storyloom import Story, StoryClient

with StoryClient("localhost:50051") as client:
    result = client.generate(Story.load("day-in-the-park.yaml"))
    result.save("out/day-in-the-park")
"""

from storyloom._async_client import AsyncStoryClient
from storyloom._channel import TlsOptions
from storyloom._client import StoryClient
from storyloom._errors import (
    DeadlineRefused,
    ErrorDetails,
    FailedPrecondition,
    InvalidRequest,
    InvalidStory,
    NotFound,
    PermissionDenied,
    Problem,
    RequestIdReused,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    StoryCancelled,
    StoryFailed,
    StoryFileError,
    StoryloomError,
    StoryTimeout,
    Unauthenticated,
    Violation,
)
from storyloom._events import (
    Accepted,
    Done,
    FrameDone,
    Health,
    Limits,
    ModelInfo,
    Picture,
    Preview,
    Progress,
    Stage,
    StoryEvent,
    Timings,
)
from storyloom._poses import ControlKind, Pose
from storyloom._records import (
    CharacterRecord,
    DiscoveryLoop,
    FailureRecord,
    OnDisconnect,
    Priority,
    StoryRecord,
    StoryState,
)
from storyloom._references import Blend, Keep, Reference, Role
from storyloom._result import StoryResult
from storyloom._retry import RetryPolicy
from storyloom._story import Character, Consistency, Frame, FreeU, Redenoising, Rounds, Settings, Solver, Story
from storyloom._version import __version__

__all__ = [
    "Accepted",
    "AsyncStoryClient",
    "Blend",
    "Character",
    "CharacterRecord",
    "Consistency",
    "ControlKind",
    "DeadlineRefused",
    "DiscoveryLoop",
    "Done",
    "ErrorDetails",
    "FailedPrecondition",
    "FailureRecord",
    "Frame",
    "FrameDone",
    "FreeU",
    "Health",
    "InvalidRequest",
    "InvalidStory",
    "Keep",
    "Limits",
    "ModelInfo",
    "NotFound",
    "OnDisconnect",
    "PermissionDenied",
    "Picture",
    "Pose",
    "Preview",
    "Priority",
    "Problem",
    "Progress",
    "Redenoising",
    "Reference",
    "RequestIdReused",
    "RetryPolicy",
    "Role",
    "Rounds",
    "ServerBusy",
    "ServerError",
    "ServerUnavailable",
    "Settings",
    "Solver",
    "Stage",
    "Story",
    "StoryCancelled",
    "StoryClient",
    "StoryEvent",
    "StoryFailed",
    "StoryFileError",
    "StoryRecord",
    "StoryResult",
    "StoryState",
    "StoryTimeout",
    "StoryloomError",
    "Timings",
    "TlsOptions",
    "Unauthenticated",
    "Violation",
    "__version__",
]
