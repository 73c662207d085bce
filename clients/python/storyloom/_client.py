"""The client for ordinary code."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from storyloom import _operations as operations
from storyloom._calls import Calls
from storyloom._channel import DEFAULT_SERVER, Options, TlsOptions
from storyloom._core import Metadata, health_after
from storyloom._errors import ServerError
from storyloom._events import Health, ModelInfo, StoryEvent
from storyloom._operations import Wish
from storyloom._records import CharacterRecord, OnDisconnect, Priority, StoryRecord, StoryState
from storyloom._references import ReferenceLike
from storyloom._result import StoryCollector, StoryResult
from storyloom._retry import RetryPolicy
from storyloom._story import Character, Frame, Settings, Story


class StoryClient(Calls):
    """Talks to a Storyloom server. One client serves many threads and many stories at once; close it after use.

    Every method takes `timeout`: seconds for all its tries together. Unless it says otherwise, the client's own holds
    for the making and watching of stories, and some seconds for what a server answers at once. Every method raises
    `ServerError` or one of its subclasses when its call fails.

    :param server: ``host:port``; several, as ``10.0.0.1:50051,10.0.0.2:50051``; or any gRPC target, such as
        ``dns:///storyloom.example:443``. Calls go round all servers that this stands for.
    :param tls: True for an encrypted connection; `TlsOptions` for certificates of one's own.
    :param credentials: from `grpc.ssl_channel_credentials`, in place of `tls`.
    :param token: sent with every call; None: the one in the environment variable STORYLOOM_TOKEN, if it is set.
    :param insecure_token: allow the token on a plain connection to another machine, where it can be read on the way.
    :param timeout: seconds that a story may take, waiting in the queue included; None for no limit.
    :param wait_for_ready: wait for a server that does not answer yet, rather than raise `ServerUnavailable`. Give a
        timeout too: a server that never comes is waited for until then.
    :param retry: when failed calls are tried again, and broken streams taken up; None for the default policy.
    :param metadata: sent with every call, such as ``[("x-team", "comics")]``; keys in lower case.
    :param options: gRPC channel options; they win over this package's own.
    :param channel: a channel to use instead of opening one; it stays open when the client is closed.
    :raises ValueError: when the arguments contradict each other.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        tls: bool | TlsOptions = False,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        insecure_token: bool = False,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        retry: RetryPolicy | None = None,
        metadata: Metadata = (),
        options: Options = (),
        channel: grpc.Channel | None = None,
    ) -> None:
        super().__init__(
            server,
            tls=tls,
            credentials=credentials,
            token=token,
            insecure_token=insecure_token,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
            retry=retry,
            metadata=metadata,
            options=options,
            own_channel=channel is None,
        )
        self._channel = channel or self._connection.open()

    def stream(
        self,
        story: Story,
        *,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_disconnect: OnDisconnect | None = None,
        timeout: float | None = None,
    ) -> Generator[StoryEvent, None, None]:
        """Generates a story and yields what happens to it. The call starts with the first event asked for.

        A stream that breaks is taken up behind the last event; no event is lost or given twice. Leaving the stream
        early (a ``break``, an error, a cancelled task, the timeout) cancels the story on the server, for which it is
        given two seconds at most. In a loop that may be left, close the generator: ``contextlib.closing``, or
        ``contextlib.aclosing`` for the asynchronous one. A client that is killed cannot cancel: its story goes on,
        unless `on_disconnect` is CANCEL.

        :param request_id: at most 36 of ``[A-Za-z0-9._-]``. A second call with the same id and story joins the first
            one's story; None: a new UUID.
        :param priority: among the stories of one tenant; None for normal.
        :param deadline: seconds from acceptance within which the story is of use. One that cannot be done by then is
            refused at once; one that turns out late is stopped.
        :param on_disconnect: FINISH: leaving the stream does not cancel the story. CANCEL: the server cancels it as
            soon as the call ends, for whatever reason; a broken stream then cannot be taken up. None: as above.
        :raises InvalidStory: when the server refuses the story; nothing was generated.
        :raises DeadlineRefused: when it cannot be done by the deadline; nothing was generated.
        :raises ServerBusy: when the server has no room for it.
        :raises ServerUnavailable: when no server answers, or it goes away and does not come back.
        :raises StoryTimeout: when the story is not done in time.
        :raises ServerError: for every other failure; see its subclasses.
        """
        return self._follow(self._session(story, Wish(request_id, priority, deadline), on_disconnect, timeout))

    def generate(
        self,
        story: Story,
        *,
        on_event: Callable[[StoryEvent], None] | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_disconnect: OnDisconnect | None = None,
        timeout: float | None = None,
    ) -> StoryResult:
        """Generates a story and returns its pictures. Takes what `stream` takes, and raises what it raises.

        :param on_event: called with each event as it comes; what it raises cancels the story.
        """
        collector = StoryCollector(story)
        session = self._session(story, Wish(request_id, priority, deadline), on_disconnect, timeout)
        events = self._follow(session)
        try:
            for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        finally:
            events.close()
        return collector.result()

    def create_story(
        self,
        story: Story,
        *,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        """Starts a story and returns at once; it goes on whoever listens. See `stream` for the parameters.

        Follow it with `watch`, or `wait` for its pictures.
        """
        return self._run(operations.create_story(story, Wish(request_id, priority, deadline)), timeout)

    def watch(
        self, story_id: str, after: int = 0, *, timeout: float | None = None
    ) -> Generator[StoryEvent, None, None]:
        """Yields the events of a story: those that have been, then those to come, until it is done.

        A stream that breaks is taken up, as that of `stream`. Leaving early leaves the story alone.

        :param after: sequence number; events up to it are left out.
        :raises NotFound: when there is no such story.
        :raises StoryFailed: when the story failed; other errors likewise say why it ended.
        :raises StoryCancelled: when it was cancelled.
        """
        return self._follow(self._watching(story_id, after, timeout))

    def wait(
        self,
        story_id: str,
        *,
        on_event: Callable[[StoryEvent], None] | None = None,
        timeout: float | None = None,
    ) -> StoryResult:
        """Waits until a story is done and returns its pictures. Raises what `watch` raises.

        :param on_event: called with each event, those that have been included.
        """
        collector = StoryCollector(self.get_story(story_id).story)
        events = self.watch(story_id, timeout=timeout)
        try:
            for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        finally:
            events.close()
        return collector.result()

    def get_story(self, story_id: str, *, images: bool = False, timeout: float | None = None) -> StoryRecord:
        """Returns what the server knows of a story.

        :param images: with the pictures that are done; a long story may be too much for one message, see `wait`.
        """
        return self._run(operations.get_story(story_id, images=images), timeout)

    def list_stories(self, *, state: StoryState | None = None, timeout: float | None = None) -> Iterator[StoryRecord]:
        """Yields the caller's stories, newest first, without frames. Pages are fetched as they are needed.

        :param state: only stories in this state.
        :param timeout: seconds for each page.
        """
        return self._pages(partial(operations.list_stories, state), timeout)

    def cancel_story(self, story_id: str, *, timeout: float | None = None) -> StoryRecord:
        """Cancels a story and returns its record. A story that has ended is left as it is, which is no error."""
        return self._run(operations.cancel_story(story_id), timeout)

    def extend_story(
        self,
        story_id: str,
        frames: Sequence[Frame | str],
        *,
        new_characters: Mapping[str, Character | str] | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        """Starts a new story: the frames of a finished one, which stays as it is, and more behind them.

        :param frames: the new ones; they may name the characters of the finished story.
        :param new_characters: by name; those that the new frames bring in.
        :raises FailedPrecondition: when the story is not finished.
        """
        wish = Wish(request_id, priority, deadline)
        return self._run(operations.extend_story(story_id, frames, new_characters or {}, wish), timeout)

    def redo_frame(
        self,
        story_id: str,
        index: int,
        *,
        frame: Frame | str | None = None,
        seed: int | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        """Starts a new story: that of a finished one, which stays as it is, with one frame made again.

        :param index: of the frame, from 0.
        :param frame: in its place, or its new prompt; None: the same frame, with another seed.
        :param seed: of the new picture, if `frame` brings none; None: chosen by the server.
        :raises FailedPrecondition: when the story is not finished.
        """
        wish = Wish(request_id, priority, deadline)
        return self._run(operations.redo_frame(story_id, index, frame, seed, wish), timeout)

    def create_character(
        self,
        name: str,
        description: str = "",
        references: Iterable[ReferenceLike] = (),
        *,
        timeout: float | None = None,
    ) -> CharacterRecord:
        """Makes a character that any number of stories can use, by its id.

        :param name: for people, and for listing; a story gives it a name of its own.
        :param description: how it looks. At least a description or a reference.
        :param references: pictures of it: paths, contents of PNG, JPEG or WebP files, Pillow images, or `Reference`
            with a mask or a role. They are encoded at once, where the server has a model that takes some.
        :raises pydantic.ValidationError: when one of them is no picture.
        :raises InvalidRequest: when the server refuses it, for a picture that shows no face, for example.
        """
        return self._run(operations.create_character(name, description, references), timeout)

    def discover_character(
        self,
        name: str,
        description: str,
        *,
        style: str = "",
        candidates: int | None = None,
        rounds: int | None = None,
        seed: int | None = None,
        model: str = "",
        request_id: str | None = None,
        loops: int | None = None,
        negative_prompt: str | None = None,
        settings: Settings | Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> CharacterRecord:
        """Finds how a character looks from its description alone, and keeps it as `create_character` does.

        The server makes candidate pictures, which takes as long as a story of so many frames, and keeps what most of
        them agree on. The record's notes say which. The server goes on when this is given up; the same `request_id`
        joins in, or finds what came of it.

        :param style: put in front of the description in each candidate's prompt, such as ``"a photo of"``.
        :param candidates: pictures, 4 to 64; None: the server's default.
        :param rounds: of the filter; None: the server's default.
        :param seed: of the candidates; None: chosen by the server.
        :param model: one with identity adapters; empty: the first.
        :param loops: in each but the first, candidates are made again with what was found; None: the server's default.
        :param negative_prompt: what candidates should not show; None: the model's default.
        :param settings: of candidates, such as ``{"solver": "euler", "steps": 50}``; the identity adapter is that of
            all loops but the first.
        :param timeout: None: as long as it takes.
        :raises InvalidRequest: when the server refuses it.
        """
        return self._run(
            operations.discover_character(
                name,
                description,
                style,
                candidates,
                rounds,
                seed,
                model,
                request_id,
                loops,
                negative_prompt,
                settings,
            ),
            timeout,
        )

    def get_character(self, character_id: str, *, timeout: float | None = None) -> CharacterRecord:
        """Returns a character that the server keeps."""
        return self._run(operations.get_character(character_id), timeout)

    def list_characters(self, *, timeout: float | None = None) -> Iterator[CharacterRecord]:
        """Yields the caller's characters, newest first. Pages are fetched as they are needed.

        :param timeout: seconds for each page.
        """
        return self._pages(operations.list_characters, timeout)

    def delete_character(self, character_id: str, *, timeout: float | None = None) -> None:
        """Deletes a character. Stories that were accepted with it keep it."""
        self._run(operations.delete_character(character_id), timeout)

    def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Returns the served models and what they accept."""
        return self._run(operations.list_models(), timeout)

    def get_model(self, name: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Returns what a model accepts.

        :param name: empty for the default model.
        """
        return self._run(operations.get_model(name), timeout)

    def load_model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Has the server load a model from one of its folders and warm it up. A loaded one is left as it is.

        :param timeout: seconds; None for no limit.
        :raises PermissionDenied: when the server does not allow model control, or not with this token.
        """
        return self._run(operations.load_model(name), timeout)

    def unload_model(self, name: str, *, timeout: float | None = None) -> None:
        """Has the server unload a model, once the stories that use it are done. The default model stays.

        :param timeout: seconds; None for no limit.
        """
        self._run(operations.unload_model(name), timeout)

    def warm_model(self, name: str = "", *, timeout: float | None = None) -> float:
        """Has the server take a small story through a model, and returns the seconds that took.

        :param name: empty for the default model.
        :param timeout: seconds; None for no limit.
        """
        return self._run(operations.warm_model(name), timeout)

    def health(self, *, timeout: float | None = None) -> Health:
        """Returns whether the server answers, and whether it takes stories now. Asks once.

        :raises ServerError: when the call fails for another reason than an absent or busy server.
        """
        alive, never = False, RetryPolicy.never()
        try:
            alive = self._run(operations.check_health(""), timeout, never)
            ready = self._run(operations.check_health(operations.STORIES), timeout, never)
        except ServerError as error:
            return health_after(error, alive=alive)
        return Health(alive=alive, ready=ready)

    def close(self) -> None:
        """Closes the connection. Stories still streamed are cancelled, as if their streams had been left.

        A channel given by the caller stays open.
        """
        self._leave_all()
        self._closed = True
        if self._owned:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
