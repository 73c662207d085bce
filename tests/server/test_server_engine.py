"""The engine's loop, in a thread and with a backend that has no model: what it says, and what it survives."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from storyloom_model.execution import ExecutionOptions
from storyloom_server import messages
from storyloom_server.engine.backend import Backend
from storyloom_server.engine.loop import Engine, ServiceGoneError
from storyloom_server.scheduler import CostModel, Limits, MemoryModel, Scheduler
from tests.server.engines import ENDLESS, job, kinds, submit
from tests.server.null_backend import NullBackend

_ENDS = (messages.JobFinished, messages.JobFailed)


class Loop:
    """The other end of an engine's pipe, and the thread that the engine runs in."""

    def __init__(self, backend: Backend, load: Callable[..., Backend], limits: Limits) -> None:
        self.connection, engine_end = Pipe(duplex=True)
        cost, memory = CostModel(), MemoryModel()
        scheduler = Scheduler(limits, cost, memory, time.monotonic)
        self._engine = Engine({"null": backend}, load, engine_end, scheduler, cost, memory)
        self._ready = messages.Ready(0.0, cost.coefficients)
        self.heard: list[Any] = []
        self.left: BaseException | str = "still there"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._engine.run(self._ready)
            self.left = "told to"
        except ServiceGoneError as error:
            self.left = error

    def send(self, *sent: messages.ToEngine) -> None:
        for message in sent:
            self.connection.send(message)

    def until(self, wanted: Callable[[Any], bool]) -> Any:
        """Hears on to the first message for which ``wanted`` holds, and returns it."""
        while True:
            assert self.connection.poll(60), "the engine is silent"
            news = [one for message in self.connection.recv() for one in (message, *_by_job(message))]
            self.heard += news
            found = next(filter(wanted, news), None)
            if found is not None:
                return found

    def end(self, *job_ids: str) -> Any:
        """Hears on until all these jobs have ended, and returns how the last one of them did."""
        for job_id in job_ids:
            if not any(isinstance(message, _ENDS) for message in self.of(job_id)):
                self.until(lambda message, job_id=job_id: isinstance(message, _ENDS) and message.job_id == job_id)
        return self.of(job_ids[-1])[-1]

    def of(self, job_id: str) -> list[Any]:
        """What was heard of one job."""
        return [message for message in self.heard if getattr(message, "job_id", None) == job_id]

    def steps(self, job_id: str) -> list[int]:
        return [message.step for message in self.of(job_id) if isinstance(message, messages.Stepped)]

    def frames(self, job_id: str) -> list[tuple[int, messages.Pixels, bytes]]:
        done = [message for message in self.of(job_id) if isinstance(message, messages.FrameDone)]
        return [(message.frame_index, message.pixels, message.latents) for message in done]

    def leave(self) -> None:
        """Waits for the thread's end."""
        self._thread.join(60)
        assert not self._thread.is_alive()


def _by_job(message: Any) -> Iterator[messages.Stepped]:
    return message.by_job() if isinstance(message, messages.BatchStepped) else iter(())


def null_backend(step_seconds: float = 0.0) -> NullBackend:
    return NullBackend(step_seconds)


def no_load(message: messages.LoadModel, loaded: Backend | None) -> Backend:
    raise OSError(f"there is no model in {message.folder}")


@contextmanager
def engine(
    backend: Backend | None = None,
    load: Callable[..., Backend] = no_load,
    max_rows: int = 16,
    max_active_stories: int = 8,
) -> Iterator[Loop]:
    loop = Loop(backend or null_backend(), load, Limits(max_rows=max_rows, max_active_stories=max_active_stories))
    try:
        assert isinstance(loop.until(lambda message: True), messages.Ready)
        yield loop
    finally:
        if not loop.connection.closed:
            loop.send(messages.Shutdown())
        loop.leave()
        loop.connection.close()


@pytest.fixture(scope="module")
def alone() -> list[tuple[int, messages.Pixels, bytes]]:
    """The frames of a job of seven steps that nothing disturbs."""
    with engine() as loop:
        loop.send(submit("a", job(steps=7)))
        assert isinstance(loop.end("a"), messages.JobFinished)
        return loop.frames("a")


def test_a_job_is_told_of_in_order() -> None:
    with engine() as loop:
        loop.send(submit("a", job(steps=5), preview_interval=2, checkpoint_interval=2))
        finished = loop.end("a")
    assert kinds(loop.of("a")) == [
        "EncodingStarted",
        *["Stepped"] * 3,
        *["Checkpoint", "Preview"],
        *["Stepped"] * 2,
        *["Checkpoint", "Preview"],
        "Stepped",
        "DecodingStarted",
        *["FrameDone"] * 2,
        "JobFinished",
    ]
    assert loop.steps("a") == [0, 1, 2, 3, 4, 5]
    for kind in (messages.Checkpoint, messages.Preview):
        assert [message.step for message in loop.of("a") if isinstance(message, kind)] == [2, 4]
    preview = next(message for message in loop.of("a") if isinstance(message, messages.Preview))
    assert [(picture.width, picture.height) for picture in preview.frames] == [(8, 8)] * 2
    assert [frame for frame, _, _ in loop.frames("a")] == [0, 1]
    assert all((pixels.width, len(pixels.rgb)) == (16, 16 * 16 * 3) for _, pixels, _ in loop.frames("a"))
    assert min(finished.encode_seconds, finished.denoise_seconds, finished.decode_seconds) >= 0
    batches = [message for message in loop.heard if isinstance(message, messages.BatchStepped)]
    assert [(batch.rows, batch.jobs, batch.width, batch.height) for batch in batches] == [(4, 1, 16, 16)] * 5


@pytest.mark.parametrize("interval", [0, 1, 3])
def test_checkpoints_come_every_so_many_steps(interval: int) -> None:
    with engine() as loop:
        loop.send(submit("a", job(steps=7), checkpoint_interval=interval))
        loop.end("a")
    taken = [message.step for message in loop.of("a") if isinstance(message, messages.Checkpoint)]
    # After the last step the frames follow, so that there is nothing to go on with.
    assert taken == ([step for step in range(1, 7) if step % interval == 0] if interval else [])


def test_checkpoints_are_not_made_too_soon() -> None:
    with engine() as loop:
        loop.send(submit("a", job(steps=7), checkpoint_interval=1, checkpoint_seconds=3600.0))
        loop.end("a")
    assert "Checkpoint" not in kinds(loop.of("a"))


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("raise-encode", "ENGINE_ERROR"),
        ("raise-step", "ENGINE_ERROR"),
        ("raise-decode", "ENGINE_ERROR"),
        ("raise-preview", "ENGINE_ERROR"),
        ("diverge", "STORY_DIVERGED"),
    ],
)
def test_a_bad_job_fails_alone(alone: list[Any], word: str, reason: str) -> None:
    with engine() as loop:
        jobs = {"good": "a cat", "bad": f"a {word} dog", "late": "a bird"}
        loop.send(*(submit(name, job(text, steps=7), preview_interval=1) for name, text in jobs.items()))
        loop.end(*jobs)
        failed = loop.end("bad")
        assert (type(failed), failed.reason) == (messages.JobFailed, reason)
        for fine in ("good", "late"):
            assert loop.frames(fine) == alone
            assert loop.steps(fine) == list(range(8))
        # Nothing of it is left to disturb a later job of the same name.
        loop.heard.clear()
        loop.send(submit("bad", job(steps=7)))
        loop.end("bad")
        assert loop.frames("bad") == alone


def test_a_checkpoint_that_cannot_be_made_fails_its_job_alone(alone: list[Any]) -> None:
    class Forgetful(NullBackend):
        def save(self, state: Any) -> bytes:
            if "forget" in state.words:
                raise RuntimeError("it cannot be saved")
            return super().save(state)

    with engine(Forgetful(0)) as loop:
        loop.send(
            submit("good", job(steps=7), checkpoint_interval=2),
            submit("bad", job("forget", steps=7), checkpoint_interval=2),
        )
        assert loop.end("good", "bad").reason == "ENGINE_ERROR"
        assert loop.frames("good") == alone


@pytest.mark.parametrize("done_steps", [1, 4, 6])
def test_a_job_goes_on_from_its_checkpoint(alone: list[Any], done_steps: int) -> None:
    with engine() as loop:
        loop.send(submit("a", job(steps=7), checkpoint_interval=1))
        loop.end("a")
        data = next(m.data for m in loop.of("a") if isinstance(m, messages.Checkpoint) and m.step == done_steps)
    with engine() as loop:
        loop.send(submit("a", job(steps=7), checkpoint=data, done_steps=done_steps))
        loop.end("a")
    assert loop.steps("a") == list(range(done_steps, 8))
    assert loop.frames("a") == alone


def test_a_job_whose_steps_were_all_taken_is_only_decoded(alone: list[Any]) -> None:
    backend = null_backend()
    state = backend.encode(job(steps=7))
    for _ in range(7):
        backend.step([state])
    with engine(backend) as loop:
        loop.send(submit("a", job(steps=7), checkpoint=backend.save(state), done_steps=7))
        loop.end("a")
    assert kinds(loop.of("a")) == [
        "EncodingStarted",
        "Stepped",
        "DecodingStarted",
        *["FrameDone"] * 2,
        "JobFinished",
    ]
    assert loop.frames("a") == alone


@pytest.mark.parametrize("damaged", [b"", b"damaged", b"\xff\x00"])
@pytest.mark.parametrize("done_steps", [4, 7])
def test_a_job_with_a_damaged_checkpoint_begins_anew(alone: list[Any], damaged: bytes, done_steps: int) -> None:
    with engine() as loop:
        loop.send(submit("a", job(steps=7), checkpoint=damaged, done_steps=done_steps))
        assert isinstance(loop.end("a"), messages.JobFinished)
    assert loop.steps("a") == list(range(8))
    assert loop.frames("a") == alone


def test_a_batch_that_runs_out_of_memory_is_tried_in_smaller_ones(
    alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_MEMORY_ROWS", "9")
    with engine(null_backend(), max_rows=64) as loop:
        loop.send(*(submit(name, job(steps=7)) for name in "abc"), submit("large", job(frames=5, steps=7)))
        assert loop.end("a", "b", "c", "large").reason == "OUT_OF_MEMORY"
        for name in "abc":
            assert loop.frames(name) == alone
            assert loop.steps(name) == list(range(8))
    batches = [message for message in loop.heard if isinstance(message, messages.BatchStepped)]
    assert max(batch.rows for batch in batches) <= 9


def test_a_job_that_is_there_already_goes_on(alone: list[Any]) -> None:
    with engine(null_backend(0.005)) as loop:
        loop.send(submit("a", job(steps=7)), submit("a", job("a dog", steps=9)), submit("b", job(steps=7)))
        loop.end("a", "b")
        assert loop.steps("a") == list(range(8))
        assert loop.frames("a") == loop.frames("b") == alone
        assert kinds(loop.of("a")).count("JobFinished") == 1


def test_a_job_that_makes_no_sense_fails_alone(alone: list[Any]) -> None:
    with engine() as loop:
        loop.send(submit("bad", job(steps=7), done_steps=8), submit("good", job(steps=7)))
        failed = loop.end("good", "bad")
        assert (failed.reason, "has done 8 of 7 steps" in failed.message) == ("ENGINE_ERROR", True)
        assert loop.frames("good") == alone


def test_jobs_fail_when_their_deadline_passes() -> None:
    soon = messages.Scheduling(deadline=time.monotonic() + 0.5)
    with engine(null_backend(0.01), max_active_stories=1) as loop:
        loop.send(
            submit("running", job(steps=ENDLESS), scheduling=soon),
            submit("waiting", job(steps=ENDLESS), scheduling=soon),
            submit("patient", job(steps=3)),
        )
        assert isinstance(loop.end("running", "waiting", "patient"), messages.JobFinished)
        assert [loop.end(name).reason for name in ("running", "waiting")] == ["DEADLINE_EXCEEDED"] * 2


def test_waiting_jobs_hear_their_place_and_cancelled_ones_leave_it() -> None:
    with engine(null_backend(0.01), max_active_stories=1) as loop:
        loop.send(submit("running", job(steps=ENDLESS)))
        loop.until(lambda message: isinstance(message, messages.Stepped) and message.step == 1)
        loop.send(*(submit(name, job(steps=2)) for name in ("second", "third")))
        loop.until(lambda message: message == messages.QueueMoved({"third": 1}))
        loop.send(messages.Cancel("second"), messages.Cancel("unknown"))
        loop.until(lambda message: message == messages.QueueMoved({"third": 0}))
        loop.send(messages.Cancel("running"))
        assert isinstance(loop.end("third"), messages.JobFinished)
        assert loop.of("second") == []
        # A cancelled job takes no further step.
        last = max(loop.heard.index(message) for message in loop.of("running"))
        assert last < min(loop.heard.index(message) for message in loop.of("third"))


def test_jobs_of_different_sizes_never_share_a_step() -> None:
    with engine() as loop:
        loop.send(*(submit(f"{size}", job(steps=20, width=size, height=size)) for size in (16, 32)))
        loop.end("16", "32")
    assert {batch.jobs for batch in loop.heard if isinstance(batch, messages.BatchStepped)} == {1}


def test_an_idle_engine_says_that_it_lives() -> None:
    with engine() as loop:
        for _ in range(2):
            assert isinstance(loop.until(lambda message: True), messages.Beat)


def load_message(name: str, folder: str = "null") -> messages.LoadModel:
    return messages.LoadModel(name, Path(folder), job())


def test_models_are_loaded_while_jobs_run_and_only_once(alone: list[Any]) -> None:
    loads: list[tuple[str, bool]] = []

    def load(message: messages.LoadModel, loaded: Backend | None) -> Backend:
        loads.append((message.name, loaded is not None))
        return loaded or NullBackend.load(message.folder, "cpu", ExecutionOptions())

    def answer(message: Any) -> bool:
        return isinstance(message, messages.ModelLoaded)

    with engine(null_backend(0.005), load) as loop:
        loop.send(submit("a", job(steps=7)), load_message("second"))
        told = loop.until(answer)
        assert (told.name, told.error) == ("second", "")
        loop.send(load_message("second"))
        assert loop.until(answer).error == ""
        assert loads == [("second", False), ("second", True)]
        loop.send(load_message("third", "break-load"))
        assert loop.until(answer).error == "OSError: there is no model in break-load"
        loop.send(submit("b", job(steps=7), model="second"), submit("c", model="third"))
        assert loop.end("a", "b", "c").reason == "MODEL_GONE"
        assert loop.frames("a") == loop.frames("b") == alone
        loop.send(messages.UnloadModel("second"), messages.UnloadModel("unknown"), submit("d", model="second"))
        assert loop.end("d").reason == "MODEL_GONE"


def test_a_model_that_fails_its_warm_up_stays_as_it_was(alone: list[Any]) -> None:
    with engine() as loop:
        loop.send(load_message("null", "break-load"))
        assert loop.until(lambda message: isinstance(message, messages.ModelLoaded)).error
        loop.send(submit("a", job(steps=7)))
        loop.end("a")
        assert loop.frames("a") == alone


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_engine_without_a_service_leaves(busy: bool) -> None:
    with engine(null_backend(0.005)) as loop:
        if busy:
            loop.send(submit("a", job(steps=ENDLESS)))
            loop.until(lambda message: isinstance(message, messages.Stepped))
        loop.connection.close()
        loop.leave()
    assert isinstance(loop.left, ServiceGoneError)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_engine_leaves_when_it_is_told(busy: bool) -> None:
    with engine(null_backend(0.005)) as loop:
        if busy:
            loop.send(submit("a", job(steps=ENDLESS)))
            loop.until(lambda message: isinstance(message, messages.Stepped))
    assert loop.left == "told to"
