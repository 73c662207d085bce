"""What the command shows while stories are made: live bars on a terminal, lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from storyloom._events import Accepted, Done, FrameDone, Preview, Stage, StoryEvent
from storyloom._events import Progress as StoryProgress

_WAITING, _PREVIEWED, _DONE = "·", "▒", "█"


class Display(Protocol):
    """Shows several stories at once, each under its name."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, name: str, frames: int) -> None:
        """A story with so many frames is about to be sent."""

    def event(self, name: str, event: StoryEvent) -> None:
        """Something happened to a story."""

    def fail(self, name: str) -> None:
        """A story will not be finished."""


class QuietDisplay:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, name: str, frames: int) -> None:
        """Nothing to show."""

    def event(self, name: str, event: StoryEvent) -> None:
        """Nothing to show."""

    def fail(self, name: str) -> None:
        """Nothing to show."""


class LineDisplay(QuietDisplay):
    """One line for each thing worth telling, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._frames: dict[str, int] = {}
        self._last: dict[str, str] = {}

    def start(self, name: str, frames: int) -> None:
        """Remembers how many frames to count to."""
        self._frames[name] = frames

    def event(self, name: str, event: StoryEvent) -> None:
        """Prints the event, unless it says what the line before said."""
        text = self._text(name, event)
        if text and text != self._last.get(name):
            self._last[name] = text
            self._console.print(f"{name}: {text}", markup=False, highlight=False, soft_wrap=True)

    def _text(self, name: str, event: StoryEvent) -> str:
        match event:
            case Accepted():
                return f"accepted, {event.queue_position} in front" if event.queue_position else "accepted"
            case StoryProgress():
                # A quarter of the way at a time: enough to see that it moves.
                quarter = max(1, event.steps // 4)
                return _stage_text(event) if event.step % quarter == 0 or event.step == event.steps else ""
            case FrameDone():
                return f"frame {event.frame_index + 1} of {self._frames[name]} done"
            case _:
                return ""


class LiveDisplay(QuietDisplay):
    """A bar for each story: name, a cell for each frame, steps, stage and time."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[cells]}", style="cyan"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._cells: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, name: str, frames: int) -> None:
        """Adds the story's bar."""
        self._cells[name] = [_WAITING] * frames
        self._tasks[name] = self._progress.add_task(escape(name), total=None, stage="sending", cells=_WAITING * frames)

    def event(self, name: str, event: StoryEvent) -> None:
        """Moves the story's bar."""
        cells = self._cells[name]
        task = self._tasks[name]
        match event:
            case Accepted() if event.queue_position:
                self._progress.update(task, stage=f"{event.queue_position} in front")
            case StoryProgress():
                total = event.steps or None
                self._progress.update(task, completed=event.step, total=total, stage=_stage_text(event))
            case Preview() if cells[event.frame_index] == _WAITING:
                cells[event.frame_index] = _PREVIEWED
            case FrameDone():
                cells[event.frame_index] = _DONE
            case Done():
                self._progress.update(task, stage=f"done in {event.timings.total:.1f} s")
                self._progress.stop_task(task)
        self._progress.update(task, cells="".join(cells))

    def fail(self, name: str) -> None:
        """Stops the story's bar."""
        self._progress.update(self._tasks[name], stage="failed", total=1)
        self._progress.stop_task(self._tasks[name])


def choose_display(console: Console, *, quiet: bool) -> Display:
    """Returns the display that fits where `console` writes to."""
    if quiet:
        return QuietDisplay()
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


def _stage_text(event: StoryProgress) -> str:
    if event.stage is Stage.QUEUED:
        return f"queued, {event.queue_position} in front"
    if event.stage is Stage.DENOISING:
        return f"step {event.step} of {event.steps}"
    return event.stage.value if event.stage else "working"
