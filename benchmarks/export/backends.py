"""The same six-frame story on every backend, side by side in one run: `python -m benchmarks.export.backends`.

First in this process, the backends in turns step by step: time and processor time of every denoising step, and how far
the latents and pictures are from torch float32. Then through real servers, one per backend. Writes a JSON file with
every number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from storyloom import Character, Frame, Settings, Story, StoryClient
from storyloom_export.artefact import Artefact, default_folder
from storyloom_export.compare import psnr
from storyloom_export.onnx_files import export_package
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.noise import frame_seed
from storyloom_model.package import ModelPackage
from storyloom_model.prompts import ComposedPrompt, compose
from storyloom_server.engine.backend import load_backend

MIA = "a young woman with long red hair and round glasses, wearing a green sweater"
LEO = "an old man with a white beard, wearing a blue jacket"
PLACES = (
    "a portrait of {mia} in a park",
    "{mia} reading a book in a garden",
    "{mia} and {leo} at a lake",
    "a portrait of {leo} sitting in a cafe",
    "{mia} waving on a street",
    "{leo} and {mia} in a kitchen",
)
SEED = 7

Clock: TypeAlias = tuple[float, float]
"""Seconds that something took, and seconds of processor time of this process, which other load weighs on less."""


def job(package: ModelPackage, steps: int) -> StoryJob:
    """Six frames of two characters with the package's defaults."""
    defaults = package.manifest.defaults
    frames = []
    for index, prompt in enumerate(PLACES):
        composed = compose("", prompt, {"mia": MIA, "leo": LEO}, [])
        assert isinstance(composed, ComposedPrompt)
        frames.append(FrameJob(composed, frame_seed(SEED, index)))
    return StoryJob(
        tuple(frames), "", steps, defaults.guidance_scale, defaults.solver, defaults.width, defaults.height,
        defaults.adapter,
    )  # fmt: skip


def in_process(loaded: Mapping[str, Any], package: ModelPackage, steps: int, repeats: int) -> dict[str, Any]:
    """Makes the story with every backend at once, which take turns step by step, so that other load meets all alike.

    Args:
        loaded: backends by name; the first is the reference.
        package: what they have loaded.
        steps: of the solver.
        repeats: stories.
    """
    backends = list(loaded)
    _in_turns(loaded, job(package, 1), {name: {} for name in backends})  # Warm-up.
    clocks: dict[str, dict[str, list[Clock]]] = {name: {} for name in backends}
    for _ in range(repeats):
        ends = _in_turns(loaded, job(package, steps), clocks)
    latents, pictures = ends[backends[0]]
    found = {}
    for name in backends:
        off = (ends[name][0] - latents).abs()
        entry: dict[str, Any] = {}
        for stage, readings in clocks[name].items():
            entry |= {f"{stage}_seconds": statistics.median(wall for wall, _ in readings)}
            entry |= {f"{stage}_cpu_seconds": statistics.median(cpu for _, cpu in readings)}
        entry |= {"step_seconds_all": [round(wall, 4) for wall, _ in clocks[name]["step"]]}
        entry |= {"step_cpu_seconds_all": [round(cpu, 4) for _, cpu in clocks[name]["step"]]}
        entry |= {"latents_max_error": off.max().item(), "latents_mean_error": off.mean().item()}
        entry |= {"psnr": [psnr(ours, theirs) for ours, theirs in zip(ends[name][1], pictures, strict=True)]}
        found[name] = entry
    return found


def _in_turns(
    loaded: Mapping[str, Any], wanted: StoryJob, clocks: dict[str, dict[str, list[Clock]]]
) -> dict[str, tuple[torch.Tensor, NDArray[np.uint8]]]:
    """The story once with each backend; adds to the clocks of every stage. Returns final latents and pictures."""
    states = {name: _timed(clocks[name], "encode", partial(loaded[name].encode, wanted)) for name in loaded}
    for _ in range(wanted.steps):
        for name, state in states.items():
            _timed(clocks[name], "step", partial(loaded[name].step, [state]))
    return {
        name: (
            state.latents.cpu(),
            np.concatenate(
                [
                    _timed(clocks[name], "decode", partial(loaded[name].decode, state, [frame]))
                    for frame in range(len(wanted.frames))
                ]
            ),
        )
        for name, state in states.items()
    }


def _timed(clocks: dict[str, list[Clock]], stage: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clocks.setdefault(stage, []).append((time.perf_counter() - wall, time.process_time() - cpu))
    return made


@contextmanager
def server(folder: Path, backend: str, device: str, threads: int) -> Iterator[str]:
    """A real server of one backend; gives its address."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready"
        command = [sys.executable, "-m", "storyloom_server", "--model", str(folder), "--backend", backend]
        command += ["--device", device, "--port", "0", "--ready-file", str(ready), "--threads", str(threads)]
        command += ["--state-folder", str(Path(scratch) / "state")]
        process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the {backend} server stopped with exit code {process.returncode}")
                time.sleep(0.1)
            yield ready.read_text().strip()
        finally:
            process.terminate()
            process.wait(timeout=60)


def served(folder: Path, backends: list[str], device: str, threads: int, steps: int, repeats: int) -> dict[str, Any]:
    """The story through a server of each backend: seconds, and pictures against the first backend's."""
    story = Story(
        characters={"mia": Character(description=MIA), "leo": Character(description=LEO)},
        frames=tuple(Frame(prompt=prompt) for prompt in PLACES),
        settings=Settings(steps=steps, seed=SEED),
    )
    seconds: dict[str, list[float]] = {}
    pictures: dict[str, list[NDArray[np.uint8]]] = {}
    for name in backends:
        with server(folder, name, device, threads) as address, StoryClient(address) as client:
            for _ in range(repeats):
                started = time.monotonic()
                result = client.generate(story, timeout=1200)
                seconds.setdefault(name, []).append(time.monotonic() - started)
            pictures[name] = [np.asarray(frame.convert("RGB")) for frame in result.frames]
    return {
        name: {
            "story_seconds": seconds[name],
            "psnr": [psnr(a, b) for a, b in zip(pictures[name], pictures[backends[0]], strict=True)],
        }
        for name in backends
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    parser.add_argument("--backends", nargs="+", default=["torch", "onnxruntime"], help="the first is the reference")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export/backends-cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "package"
        shutil.copytree(options.model, folder, ignore=shutil.ignore_patterns("onnx", "tensorrt"))
        artefact: Artefact = export_package(ModelPackage.load(folder), default_folder(folder))
        loaded = {name: load_backend(name, folder, options.device, ExecutionOptions()) for name in options.backends}
        within = in_process(loaded, ModelPackage.load(folder), options.steps, options.repeats)
        del loaded  # The servers have the machine to themselves.
        through = served(
            folder, options.backends, options.device, options.threads, options.steps, options.repeats
        )  # fmt: skip
    result = {
        "command": "python -m benchmarks.export.backends " + " ".join(sys.argv[1:]),
        "steps": options.steps, "frames": len(PLACES), "package_hash": artefact.record.package_hash,
        "in_process": within, "served": through,
        "verdict": verdict({name: statistics.median(through[name]["story_seconds"]) for name in options.backends}),
        "hardware": {"machine": platform.machine(), "threads": options.threads, "cores": os.cpu_count(),
                     "load_average": os.getloadavg(), "date": time.strftime("%Y-%m-%d"), "device": options.device},
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "onnx", "diffusers")},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in options.backends:
        inside, outside = within[name], through[name]
        print(
            f"{name:12} step {1000 * inside['step_seconds']:7.1f} ms ({1000 * inside['step_cpu_seconds']:.1f} ms of "
            f"processor time), decode {1000 * inside['decode_seconds']:6.1f} ms "
            f"a frame, story through the server {statistics.median(outside['story_seconds']):6.2f} s, latents off by "
            f"{inside['latents_max_error']:.1e} at most, PSNR {min(inside['psnr']):.1f} dB at least"
        )
    print(verdict({name: statistics.median(through[name]["story_seconds"]) for name in options.backends}))


def verdict(seconds: Mapping[str, float]) -> str:
    """Which backend is the better default, by the seconds of a story through the server."""
    best, *others = sorted(seconds, key=lambda name: seconds[name])
    return f"better default here: {best}" + "".join(
        f", {seconds[name] / seconds[best]:.2f} times as fast as {name}" for name in others
    )


if __name__ == "__main__":
    main()
