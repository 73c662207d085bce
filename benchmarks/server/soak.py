"""Half an hour of mixed traffic on a real server: its memory, files and threads must stay where they are.

Stories of all kinds come at random times: some are cancelled, some lose their client, some are watched by several, some
go on from others, some fail in the engine, some should never have been sent. The denoiser does nothing, so that as many
stories as possible pass through everything else.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server import machine
from benchmarks.server.scrape import Scrape, free_port
from benchmarks.server.soak_report import write_plot
from storyloom.v1 import character_service_pb2, character_service_pb2_grpc, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from tests.server.processes import open_files, processor_seconds, resident_bytes, threads
from tests.server.serving import ServerProcess, ended, generate, record, serving, stories, until_step, watch

OUT = Path("benchmarks/results/server/soak.json")
_PROMPTS = ("a dog", "a cat walks", "{mia} sits in a park", "{mia} and {bo} at a lake", "{bo} reads")
_CAST = (
    story_pb2.Character(name="mia", description="a girl with red hair"),
    story_pb2.Character(name="bo", description="an old man"),
)
_DONE, _CANCELLED, _FAILED = pb.STORY_STATE_FINISHED, pb.STORY_STATE_CANCELLED, pb.STORY_STATE_FAILED
_WORKERS = 16
# What the server holds of memory, threads and connections follows from the most stories that it had at once: at first
# so many clients come that all workers are busy.
_RUSH_SECONDS, _RUSH = 60.0, 5.0
# Three minutes, so that the store is swept every 45 seconds and holds as much as it ever will after four minutes, which
# is before the first samples that count: those of the second sixth of the time.
_RETENTION_HOURS = 0.05


def random_story(draw: random.Random, *words: str, steps: int | None = None) -> story_pb2.Story:
    """One to six frames; ``words`` stand in the first prompt."""
    prompts = [draw.choice(_PROMPTS) for _ in range(draw.choice((1, 2, 2, 4, 6)))]
    prompts[0] = " ".join((prompts[0], *words))
    settings = story_pb2.Settings(steps=steps or draw.choice((2, 6, 12)), preview_interval=draw.choice((0, 0, 2)))
    return story_pb2.Story(
        title="soak", characters=_CAST, frames=[story_pb2.Frame(prompt=prompt) for prompt in prompts], settings=settings
    )


def whole(channel: grpc.Channel, draw: random.Random) -> bool:
    asked = random_story(draw)
    events = list(generate(channel, asked))
    return bool(events[-1].HasField("done")) and sum(event.HasField("frame") for event in events) == len(asked.frames)


def cancelled(channel: grpc.Channel, draw: random.Random) -> bool:
    story_id = until_step(generate(channel, random_story(draw, steps=100)))
    stories(channel).CancelStory(pb.CancelStoryRequest(story_id=story_id), timeout=60)
    return ended(channel, story_id).state == _CANCELLED


def abandoned(channel: grpc.Channel, draw: random.Random) -> bool:
    call = generate(channel, random_story(draw, steps=100), on_disconnect=pb.DISCONNECT_POLICY_CANCEL)
    story_id = until_step(call)
    call.cancel()
    return ended(channel, story_id).state == _CANCELLED


def resumed(channel: grpc.Channel, draw: random.Random) -> bool:
    call = generate(channel, random_story(draw, steps=12))
    for event in call:
        if event.progress.step >= 2:
            break
    call.cancel()
    numbers = [later.sequence for later in watch(channel, event.story_id, event.sequence)]
    return numbers == sorted(set(numbers)) and numbers[0] > event.sequence


def watched_by_many(channel: grpc.Channel, draw: random.Random) -> bool:
    created = stories(channel).CreateStory(pb.CreateStoryRequest(story=random_story(draw)), timeout=60).story
    calls = [watch(channel, created.story_id) for _ in range(3)]
    pictures = [[event.frame.image.png for event in call if event.HasField("frame")] for call in calls]
    return pictures[0] == pictures[1] == pictures[2] and len(pictures[0]) == len(created.story.frames)


def gone_on_from(channel: grpc.Channel, draw: random.Random) -> bool:
    story_id = list(generate(channel, random_story(draw)))[-1].story_id
    more = pb.ExtendStoryRequest(story_id=story_id, frames=[story_pb2.Frame(prompt="{mia} waves")])
    longer = stories(channel).ExtendStory(more, timeout=60).story.story_id
    again = pb.RedoFrameRequest(story_id=story_id, frame_index=0, seed=draw.getrandbits(60))
    other = stories(channel).RedoFrame(again, timeout=60).story.story_id
    return ended(channel, longer).state == ended(channel, other).state == _DONE


def failing(channel: grpc.Channel, draw: random.Random) -> bool:
    asked = random_story(draw, draw.choice(("raise-encode", "raise-step", "raise-decode", "diverge")))
    created = stories(channel).CreateStory(pb.CreateStoryRequest(story=asked), timeout=60).story
    return ended(channel, created.story_id).state == _FAILED


def with_a_kept_character(channel: grpc.Channel, draw: random.Random) -> bool:
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    new = character_service_pb2.CreateCharacterRequest(name="kim", description="a boy in a blue coat")
    kept = stub.CreateCharacter(new, timeout=60).character.character_id
    asked = random_story(draw)
    asked.characters.append(story_pb2.Character(name="kim", character_id=kept))
    asked.frames[0].prompt = "{kim} runs"
    done = bool(list(generate(channel, asked))[-1].HasField("done"))
    stub.DeleteCharacter(character_service_pb2.DeleteCharacterRequest(character_id=kept), timeout=60)
    return done


def asked_for_again(channel: grpc.Channel, draw: random.Random) -> bool:
    story_id = list(generate(channel, random_story(draw)))[-1].story_id
    pictures = [frame.image.png for frame in record(channel, story_id, images=True).frames]
    listed = stories(channel).ListStories(pb.ListStoriesRequest(page_size=10), timeout=60).stories
    return all(pictures) and bool(listed)


def refused(channel: grpc.Channel, draw: random.Random) -> bool:
    path = "/storyloom.v1.StoryService/CreateStory"
    bad = (
        pb.CreateStoryRequest(story=random_story(draw, "{nobody}")).SerializeToString(),
        pb.CreateStoryRequest(story=random_story(draw), request_id="!").SerializeToString(),
        draw.randbytes(200),
    )
    try:
        channel.unary_unary(path, bytes, bytes)(draw.choice(bad), timeout=60)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return False


KINDS: Sequence[tuple[Callable[[grpc.Channel, random.Random], bool], int]] = (
    (whole, 6),
    (cancelled, 2),
    (abandoned, 2),
    (resumed, 2),
    (watched_by_many, 2),
    (gone_on_from, 2),
    (failing, 1),
    (with_a_kept_character, 1),
    (asked_for_again, 1),
    (refused, 3),
)


class Traffic:
    """Sends stories at random times until ``seconds`` are over, after a rush; ``counts`` are outcomes by kind."""

    def __init__(self, address: str, rate: float, seed: int) -> None:
        self._address = address
        self._rate = rate
        self._draw = random.Random(seed)  # noqa: S311 - no secrets here
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, seconds: float) -> None:
        began = time.monotonic()
        end = began + seconds
        kinds, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
        with grpc.insecure_channel(self._address) as shared, ThreadPoolExecutor(_WORKERS) as pool:
            while (now := time.monotonic()) < end:
                kind = self._draw.choices(kinds, weights)[0]
                pool.submit(self._one, kind, self._draw.getrandbits(64), shared)
                rate = self._rate * (_RUSH if now < began + _RUSH_SECONDS else 1.0)
                time.sleep(max(0.0, self._draw.expovariate(rate) - (time.monotonic() - now)))

    def _one(self, kind: Callable[[grpc.Channel, random.Random], bool], seed: int, shared: grpc.Channel) -> None:
        draw = random.Random(seed)  # noqa: S311
        try:
            if draw.random() < 0.3:  # A client of its own.
                options = [("grpc.use_local_subchannel_pool", 1)]
                with grpc.insecure_channel(self._address, options) as own:
                    good = kind(own, draw)
            else:
                good = kind(shared, draw)
            problem = "" if good else "not as it should be"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted.
            problem = f"{type(error).__name__}: {error}"
        with self._lock:
            self.counts[f"{kind.__name__}: {'problem' if problem else 'as it should be'}"] += 1
            if problem:
                self.problems.append(f"{kind.__name__}: {problem[:300]}")


def sample(server: ServerProcess, scrape: Scrape, state: Path, began: float) -> dict[str, float]:
    """What the server uses now."""
    metrics = scrape.read()
    pids = {"server": server.process.pid, "engine": server.engine_pid}
    found = {
        f"{name}_{what}": float(measure(pid))
        for name, pid in pids.items()
        for what, measure in (
            ("resident_bytes", resident_bytes),
            ("open_files", open_files),
            ("threads", threads),
            ("processor_seconds", processor_seconds),
        )
    }
    blobs = sizes(state / "blobs")
    return found | {
        "seconds": time.monotonic() - began,
        "open_stories": metrics.total("storyloom_stories_in_flight") + metrics.total("storyloom_stories_queued"),
        "stories": metrics.total("storyloom_stories_total"),
        "database_bytes": float(sum(path.stat().st_size for path in state.glob("stories.db*"))),
        "blob_bytes": float(sum(blobs)),
        "blobs": float(len(blobs)),
    }


def sizes(folder: Path) -> list[int]:
    """Of all files below a folder in use: some come and go while they are counted."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                found.append(path.stat().st_size)
    return found


def growths(samples: Sequence[dict[str, float]], begin: float, end: float) -> dict[str, float]:
    """Relative growth of what must not grow, from the second sixth of a time to its last; medians of each.

    The first sixth is the warm-up: caches, pools of threads and of connections, and the store fill up.
    """
    part = (end - begin) / 6
    early = [each for each in samples if begin + part < each["seconds"] <= begin + 2 * part]
    late = [each for each in samples if each["seconds"] > end - part]
    return {
        name: statistics.median(each[name] for each in late) / statistics.median(each[name] for each in early) - 1
        for name in samples[0]
        if name.endswith(("resident_bytes", "open_files", "threads", "database_bytes", "blobs"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"), help="its weights are not used")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=2.0, help="new clients a second")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    port, seconds = free_port(), 60 * options.minutes
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        arguments = ("--metrics-port", str(port), "--retention-hours", str(_RETENTION_HOURS))
        slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.01"}
        with serving(Path(folder), options.model, *arguments, environment=slow) as server:
            traffic = Traffic(server.address, options.rate, options.seed)
            sender = threading.Thread(target=traffic.run, args=(seconds,))
            began = time.monotonic()
            sender.start()
            while sender.is_alive():
                samples.append(sample(server, Scrape(port), state, began))
                sender.join(options.interval)
            samples.append(sample(server, Scrape(port), state, began))
            stopped_with = server.terminate()
    result = {
        "command": "python -m benchmarks.server.soak " + " ".join(sys.argv[1:]),
        "hardware": machine.facts(),
        "rate": options.rate,
        "retention_hours": _RETENTION_HOURS,
        "outcomes": dict(sorted(traffic.counts.items())),
        "problems": traffic.problems,
        "exit_code": stopped_with,
        "growth": growths(samples, 0.0, seconds),
        "growth_in_second_half": growths(samples, seconds / 2, seconds),
        "samples": samples,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    write_plot(result, options.out.with_suffix(".png"))
    for name, value in result["growth"].items():
        second = result["growth_in_second_half"][name]
        print(f"{name}: {100 * value:+.2f} % after the warm-up, {100 * second:+.2f} % in the second half")
    print(
        f"{samples[-1]['stories']:.0f} stories, {len(traffic.problems)} problems; the server left with {stopped_with}"
    )


if __name__ == "__main__":
    main()
