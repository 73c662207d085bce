"""Following one story over calls that break: what to call, what to leave out, when to give up. It does no I/O."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from storyloom._errors import ServerError, StoryTimeout
from storyloom._events import Done, StoryEvent
from storyloom._operations import STORIES
from storyloom._retry import RetryPolicy, Tries
from storyloom._status import read_failure, server_error
from storyloom._wire import EventMessage, story_event
from storyloom.v1 import story_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class StreamCall:
    """A call that streams events.

    :ivar timeout: seconds; None for no limit.
    """

    method: str
    request: Message
    response: type[Message]
    timeout: float | None


class StorySession:
    """The events of one story, each exactly once and in order, over as many calls as that takes.

    Until the first event the first call is repeated, with the same request id. After it, each call watches the story
    from the last event on.

    :param request: what starts the story, or asks to watch one that there is.
    :param cancels: leaving the story early cancels it.
    :ivar story_id: empty until the first event of a story that this session starts.
    :ivar sequence: of the last event.
    """

    def __init__(
        self,
        request: pb.GenerateStoryRequest | pb.WatchStoryRequest,
        tries: Tries,
        *,
        cancels: bool,
    ) -> None:
        self.story_id = ""
        self.sequence = 0
        self._request = request
        self._tries = tries
        self._cancels = cancels
        self._in_flight = False
        self._done = False
        if isinstance(request, pb.WatchStoryRequest):
            self.story_id, self.sequence = request.story_id, request.after_sequence
        self._resuming = False

    @property
    def request(self) -> Message:
        """What starts the story, or asks to watch it."""
        return self._request

    def next_call(self) -> StreamCall:
        """Returns the call to make now."""
        self._in_flight = True
        timeout = self._tries.remaining()
        if self._resuming or isinstance(self._request, pb.WatchStoryRequest):
            request = pb.WatchStoryRequest(story_id=self.story_id, after_sequence=self.sequence)
            return StreamCall(f"/{STORIES}/WatchStory", request, pb.WatchStoryResponse, timeout)
        return StreamCall(f"/{STORIES}/GenerateStory", self._request, pb.GenerateStoryResponse, timeout)

    def read(self, response: EventMessage) -> StoryEvent | None:
        """Returns the event; None for one that was given before, or of a kind that this version does not know."""
        self._resuming = True
        self.story_id = response.story_id or self.story_id
        if response.sequence <= self.sequence:
            return None
        self._tries.progressed()
        self.sequence = response.sequence
        event = story_event(response)
        self._done = self._done or isinstance(event, Done)
        return event

    def ended(self) -> None:
        """The call ended without an error.

        :raises ServerError: when the story was not done.
        """
        self._in_flight = False
        if not self._done:
            raise ServerError("the server ended the stream before the story was done; generate it again")

    def pause_after(self, error: grpc.RpcError) -> float:
        """Returns the seconds to wait before the next call.

        :raises ServerError: when there is to be none.
        """
        failure = read_failure(error)
        # Where the time ran out here, the server may well be at it.
        self._in_flight = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and not failure.spoken
        if failure.may_resume() if self._resuming else failure.may_repeat(repeatable=True):
            pause = self._tries.pause(failure, resuming=self._resuming)
            if pause is not None:
                return pause
        # The caller cannot know that a broken call left the story running.
        raised = server_error(error, about_story=True)
        raised.story_id, raised.sequence = self.story_id, self.sequence
        raise raised from error

    def cancels_after(self, error: BaseException | None) -> bool:
        """Tells whether the server has to be told that nobody wants the story any more.

        :param error: what ended the reading; None where the reader itself is closed.
        """
        # Any other error of the server's ended the story, or left it running with nobody there to tell.
        unwanted = not isinstance(error, ServerError) or isinstance(error, StoryTimeout)
        return self._cancels and unwanted and not self._done and bool(self.story_id or self._in_flight)

    def question(self, seconds: float) -> StreamCall:
        """Returns the call whose first event tells the id of a story that was sent off and not heard of: the same one
        again, which joins the story that the first one made.
        """
        return StreamCall(f"/{STORIES}/GenerateStory", self._request, pb.GenerateStoryResponse, seconds)


def watching(story_id: str, after: int, policy: RetryPolicy, timeout: float | None) -> StorySession:
    """Returns the session that reads a story that there is, and leaves it alone."""
    request = pb.WatchStoryRequest(story_id=story_id, after_sequence=after)
    return StorySession(request, Tries(policy, timeout), cancels=False)
