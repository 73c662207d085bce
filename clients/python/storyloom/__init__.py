"""Client of Storyloom: stories whose characters stay themselves from picture to picture.

from storyloom import Story, StoryClient

with StoryClient("localhost:50051") as client:
    result = client.generate(Story.load("day-in-the-park.yaml"))
    result.save("out/day-in-the-park")
"""

from storyloom._async_client import AsyncStoryClient
from storyloom._client import StoryClient
from storyloom._errors import (
    ErrorDetails,
    InvalidStory,
    NotFound,
    Problem,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    StoryCancelled,
    StoryFailed,
    StoryFileError,
    StoryloomError,
    StoryTimeout,
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
from storyloom._result import StoryResult
from storyloom._story import Character, Consistency, Frame, Settings, Solver, Story
from storyloom._version import __version__

__all__ = [
    "Accepted",
    "AsyncStoryClient",
    "Character",
    "Consistency",
    "Done",
    "ErrorDetails",
    "Frame",
    "FrameDone",
    "Health",
    "InvalidStory",
    "Limits",
    "ModelInfo",
    "NotFound",
    "Picture",
    "Preview",
    "Problem",
    "Progress",
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
    "StoryResult",
    "StoryTimeout",
    "StoryloomError",
    "Timings",
    "Violation",
    "__version__",
]
