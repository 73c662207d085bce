"""The supervisor with real engine processes: they start, die, hang and start again, and no job is forgotten."""

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storyloom_server import messages
from storyloom_server.scheduler import CostModel
from storyloom_server.supervisor import EngineStatus, ModelError, RestartPolicy, Supervisor
from tests.server.engines import ENDLESS, Heard, engine_options, job, spec, submit, supervised
from tests.server.serving import gone, wait_until

READY, RESTARTING, FAILED = EngineStatus.READY, EngineStatus.RESTARTING, EngineStatus.FAILED
SLOW = "0.02"


class Pids:
    """Engine processes by their order, as the log tells them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def all(self) -> list[int]:
        records = self._caplog.get_records("call")
        started = [record for record in records if record.message == "engine process started"]
        return [record.storyloom_fields["pid"] for record in started]  # type: ignore[attr-defined]

    def kill(self) -> int:
        """Kills the newest process."""
        pid = self.all[-1]
        os.kill(pid, signal.SIGKILL)
        return pid


@pytest.fixture
def pids(caplog: pytest.LogCaptureFixture) -> Iterator[Pids]:
    """None of the processes is left after the test."""
    caplog.set_level(logging.INFO)
    started = Pids(caplog)
    yield started
    assert started.all
    assert all(gone(pid) for pid in started.all)


@contextmanager
def few_files(free: int) -> Iterator[None]:
    """This process can open only so many more files, pipes and sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(free + 1)]
    for filler in fillers:
        os.close(filler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def restarted(supervisor: Supervisor, pids: Pids) -> None:
    """Kills the engine and waits for the next one."""
    pids.kill()
    await supervisor.wait_for(RESTARTING)
    assert await supervisor.wait_for(READY) is READY


def test_a_killed_engine_starts_again_and_keeps_what_it_knew(pids: Pids) -> None:
    told: list[tuple[EngineStatus, object]] = []

    async def run() -> None:
        def on_status(status: EngineStatus) -> None:
            told.append((status, supervisor.coefficients))

        supervisor = Supervisor(engine_options(), RestartPolicy(), on_status=on_status)
        assert supervisor.status is EngineStatus.STARTING
        with pytest.raises(RuntimeError, match="the engine is starting"):
            supervisor.submit(submit("early"), Heard())
        supervisor.start()
        await supervisor.wait_for(READY)
        known = supervisor.coefficients
        assert known != CostModel().coefficients
        pids.kill()
        assert await supervisor.wait_for(RESTARTING) is RESTARTING
        assert supervisor.coefficients == known
        with pytest.raises(RuntimeError, match="the engine is restarting"):
            supervisor.submit(submit("early"), Heard())
        assert await supervisor.wait_for(READY) is READY
        assert supervisor.restarts == 1
        heard = Heard()
        supervisor.submit(submit("a"), heard)
        assert isinstance(await heard.end(), messages.JobFinished)
        await supervisor.close()

    asyncio.run(run())
    assert [status for status, _ in told] == [READY, RESTARTING, READY, EngineStatus.CLOSED]
    assert told[0][1] == told[1][1]
    assert len(set(pids.all)) == 2


def test_only_jobs_that_left_the_queue_are_suspects(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", SLOW)

    async def run() -> None:
        async with supervised(engine_options(max_active_stories=1)) as supervisor:
            running, waiting = Heard(), Heard()
            supervisor.submit(submit("running", job(steps=ENDLESS)), running)
            await running.until(messages.Stepped)
            supervisor.submit(submit("waiting"), waiting)
            assert await waiting.until(messages.QueuePosition) == messages.QueuePosition("waiting", 0)
            await restarted(supervisor, pids)
            assert await running.end() == messages.EngineLost(suspect=True)
            assert await waiting.end() == messages.EngineLost(suspect=False)
            # The next engine knows nothing of them, and takes them again.
            again = Heard()
            supervisor.submit(submit("waiting"), again)
            assert isinstance(await again.end(), messages.JobFinished)
            assert [type(message) for message in running.messages + waiting.messages].count(messages.EngineLost) == 2

    asyncio.run(run())


def test_a_job_that_is_there_is_not_taken_again(pids: Pids) -> None:
    async def run() -> None:
        async with supervised() as supervisor:
            first, second = Heard(), Heard()
            supervisor.submit(submit("a", job(steps=50)), first)
            with pytest.raises(ValueError, match="job a is in the engine already; release it"):
                supervisor.submit(submit("a", job(steps=50)), second)
            assert isinstance(await first.end(), messages.JobFinished)
            assert second.messages == []
            supervisor.submit(submit("a"), second)
            assert isinstance(await second.end(), messages.JobFinished)

    asyncio.run(run())
    assert len(pids.all) == 1


def test_a_released_job_is_heard_of_no_more_and_gives_its_place_back(
    pids: Pids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", SLOW)

    async def run() -> None:
        async with supervised(engine_options(max_active_stories=1)) as supervisor:
            released, other = Heard(), Heard()
            supervisor.submit(submit("released", job(steps=ENDLESS)), released)
            await released.until(messages.Stepped)
            supervisor.release("released")
            supervisor.release("released")
            supervisor.release("never submitted")
            heard = len(released.messages)
            supervisor.submit(submit("other"), other)
            assert isinstance(await other.end(), messages.JobFinished)
            pids.kill()
            await supervisor.wait_for(RESTARTING)
            assert len(released.messages) == heard
            assert not any(isinstance(message, messages.EngineLost) for message in other.messages)

    asyncio.run(run())


def test_batches_are_told_of(pids: Pids) -> None:
    batches: list[messages.BatchStepped] = []

    async def run() -> None:
        async with supervised(on_batch=batches.append) as supervisor:
            heard = Heard()
            supervisor.submit(submit("a", job(steps=5)), heard)
            await heard.end()
            assert supervisor.coefficients == batches[-1].coefficients

    asyncio.run(run())
    assert [(batch.rows, batch.jobs, batch.width) for batch in batches] == [(4, 1, 16)] * 5


def test_models_are_loaded_warmed_and_unloaded_for_good(pids: Pids) -> None:
    async def outcome(supervisor: Supervisor, model: str) -> object:
        heard = Heard()
        supervisor.submit(submit(f"of {model}", model=model), heard)
        ended = await heard.end()
        return ended.reason if isinstance(ended, messages.JobFailed) else type(ended)

    async def run() -> None:
        async with supervised() as supervisor:
            assert await outcome(supervisor, "second") == "MODEL_GONE"
            both = await asyncio.gather(*(supervisor.load_model(spec("second")) for _ in range(2)))
            assert both[0] == both[1] > 0
            assert await supervisor.load_model(spec("second")) > 0  # Warmed up.
            with pytest.raises(ModelError, match="OSError: there is no model in break-load"):
                await supervisor.load_model(spec("third", "break-load"))
            assert await outcome(supervisor, "second") is messages.JobFinished
            # What was loaded is loaded again in the next process, and what could not be is not tried.
            await restarted(supervisor, pids)
            assert await outcome(supervisor, "second") is messages.JobFinished
            supervisor.unload_model("second")
            assert await outcome(supervisor, "second") == "MODEL_GONE"
            await restarted(supervisor, pids)
            assert await outcome(supervisor, "second") == "MODEL_GONE"
            assert await outcome(supervisor, "null") is messages.JobFinished

    asyncio.run(run())


def test_an_engine_that_dies_while_it_loads_a_model_starts_without_it(
    pids: Pids, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("STORYLOOM_TEST_LOAD_GATE", str(gate))

    async def run() -> None:
        async with supervised() as supervisor:
            gate.unlink()
            loading = asyncio.create_task(supervisor.load_model(spec("second")))
            await asyncio.sleep(0.1)
            pids.kill()
            with pytest.raises(ModelError, match="the engine process died while it loaded the model"):
                await loading
            with pytest.raises(ModelError, match="the engine is restarting; try again later"):
                await supervisor.load_model(spec("second"))
            gate.touch()
            await supervisor.wait_for(READY)
            heard = Heard()
            supervisor.submit(submit("a", model="second"), heard)
            assert (await heard.end()).reason == "MODEL_GONE"
            assert await supervisor.load_model(spec("second")) > 0

    asyncio.run(run())


def test_closing_answers_whoever_waits_for_a_model(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_LOAD_SECONDS", "3")

    async def run() -> None:
        async with supervised() as supervisor:
            loading = asyncio.create_task(supervisor.load_model(spec("second")))
            await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            with pytest.raises(ModelError, match="closed"):
                await loading

    asyncio.run(run())


def test_an_engine_that_keeps_dying_is_given_up(pids: Pids) -> None:
    async def run() -> None:
        async with supervised(policy=RestartPolicy(max_restarts=1)) as supervisor:
            heard = Heard()
            supervisor.submit(submit("a", job(steps=ENDLESS)), heard)
            await restarted(supervisor, pids)
            heard = Heard()
            supervisor.submit(submit("a", job(steps=ENDLESS)), heard)
            pids.kill()
            assert await supervisor.wait_for(READY, RESTARTING) in (READY, FAILED)
            assert await supervisor.wait_for(FAILED) is FAILED
            assert isinstance(await heard.end(), messages.EngineLost)
            # Whoever waits for an engine is told that none will come.
            assert await supervisor.wait_for(READY) is FAILED
            with pytest.raises(RuntimeError, match="the engine is failed"):
                supervisor.submit(submit("b"), Heard())

    asyncio.run(run())
    assert len(pids.all) == 2


@pytest.mark.parametrize("free", [0, 2], ids=["no pipe", "no process"])
def test_an_engine_that_cannot_be_started_is_told_of(free: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_options(), RestartPolicy())
        open_files = os.listdir("/proc/self/fd")
        with few_files(free):
            supervisor.start()
            async with asyncio.timeout(60):
                assert await supervisor.wait_for(READY) is FAILED
        await supervisor.close()
        assert os.listdir("/proc/self/fd") == open_files

    asyncio.run(run())
    assert "an engine process cannot be started" in caplog.messages


def test_an_engine_that_cannot_be_started_again_is_tried_later(pids: Pids, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with supervised() as supervisor:
            with few_files(0):
                pids.kill()
                while "an engine process cannot be started" not in caplog.messages:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert supervisor.status is RESTARTING
            assert await supervisor.wait_for(READY) is READY
            heard = Heard()
            supervisor.submit(submit("a"), heard)
            assert isinstance(await heard.end(), messages.JobFinished)

    asyncio.run(run())


def test_a_model_that_does_not_load_at_the_start_is_not_tried_again(pids: Pids) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_options(spec(folder="break-load")), RestartPolicy())
        supervisor.start()
        assert await supervisor.wait_for(READY) is FAILED
        await supervisor.close()

    asyncio.run(run())
    assert len(pids.all) == 1


@pytest.mark.parametrize("moment", ["starting", "killed", "restarting", "working"])
def test_closing_leaves_no_process_whatever_the_moment(pids: Pids, moment: str) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_options(), RestartPolicy())
        supervisor.start()
        if moment == "starting":
            while not pids.all:  # noqa: ASYNC110 - a list has no event.
                await asyncio.sleep(0)
        else:
            await supervisor.wait_for(READY)
            heard = Heard()
            supervisor.submit(submit("a", job(steps=ENDLESS)), heard)
            await heard.until(messages.Stepped)
        if moment in ("killed", "restarting"):
            pids.kill()
        if moment == "restarting":
            while len(pids.all) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        waiting = asyncio.create_task(supervisor.wait_for(FAILED))
        await supervisor.close()
        assert await waiting is EngineStatus.CLOSED
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(run())
    wait_until(lambda: all(gone(pid) for pid in pids.all), 20)


def test_closing_before_the_first_start_leaves_nothing() -> None:
    async def run() -> EngineStatus:
        supervisor = Supervisor(engine_options(), RestartPolicy())
        supervisor.start()
        await supervisor.close()
        return await supervisor.wait_for(READY)

    assert asyncio.run(run()) is EngineStatus.CLOSED


def test_a_hung_engine_is_killed(pids: Pids) -> None:
    async def run() -> None:
        async with supervised(policy=RestartPolicy(hang_seconds=3)) as supervisor:
            heard = Heard()
            supervisor.submit(submit("a", job("hang", steps=5)), heard)
            assert await heard.end() == messages.EngineLost(suspect=True)
            assert await supervisor.wait_for(READY) is READY

    asyncio.run(run())
    assert len(pids.all) == 2


def test_an_engine_that_loads_a_large_model_is_not_taken_for_hung(pids: Pids, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_LOAD_SECONDS", "5")

    async def run() -> None:
        async with supervised(policy=RestartPolicy(hang_seconds=2.5)) as supervisor:
            assert await supervisor.load_model(spec("second")) >= 5

    asyncio.run(run())
    assert len(pids.all) == 1


def test_many_waiting_jobs_hear_where_they_are_until_they_leave_the_queue(
    pids: Pids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", SLOW)
    jobs = {f"job-{index}": Heard() for index in range(40)}

    async def run() -> None:
        async with supervised(engine_options(max_active_stories=1)) as supervisor:
            for name, heard in jobs.items():
                supervisor.submit(submit(name, job(steps=2)), heard)
            for heard in jobs.values():
                assert isinstance(await heard.end(), messages.JobFinished)

    asyncio.run(run())
    for heard in jobs.values():
        left = next(i for i, message in enumerate(heard.messages) if isinstance(message, messages.EncodingStarted))
        assert not any(isinstance(message, messages.QueuePosition) for message in heard.messages[left:])
    last = max(jobs.values(), key=lambda heard: sum(isinstance(m, messages.QueuePosition) for m in heard.messages))
    positions = [message.position for message in last.messages if isinstance(message, messages.QueuePosition)]
    assert len(positions) > 5
    assert positions[-1] < 5
    assert positions[-1] < max(positions)
