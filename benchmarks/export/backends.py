"""The same six-frame story on every backend, side by side in one run: `python -m benchmarks.export.backends`.

First in this process, one backend after the other in turns: time of every denoising step, and how far the latents and
pictures are from torch float32. Then through real servers, one per backend. Writes a JSON file with every number.
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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

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


def in_process(folder: Path, backends: list[str], device: str, steps: int, repeats: int) -> dict[str, Any]:
    """Makes the story with each backend, in turns."""
    package = ModelPackage.load(folder)
    wanted = job(package, steps)
    loaded: dict[str, Any] = {name: load_backend(name, folder, device, ExecutionOptions()) for name in backends}
    seconds: dict[str, dict[str, list[float]]] = {name: {"encode": [], "step": [], "decode": []} for name in backends}
    ends: dict[str, tuple[Any, NDArray[np.uint8]]] = {}
    for turn in range(repeats + 1):
        for name in backends:
            times, backend = seconds[name], loaded[name]
            started = time.perf_counter()
            state = backend.encode(wanted)
            marks = [time.perf_counter()]
            while not state.done:
                backend.step([state])
                marks.append(time.perf_counter())
            ends[name] = state.latents.cpu(), backend.decode(state, range(len(wanted.frames)))
            if turn:  # the first is warm-up
                times["encode"].append(marks[0] - started)
                times["step"] += np.diff(marks).tolist()
                times["decode"].append((time.perf_counter() - marks[-1]) / len(wanted.frames))
    latents, pictures = ends[backends[0]]
    found = {}
    for name in backends:
        off = (ends[name][0] - latents).abs()
        entry: dict[str, Any] = {
            f"{stage}_seconds": statistics.median(values) for stage, values in seconds[name].items()
        }
        entry |= {"step_seconds_all": [round(value, 4) for value in seconds[name]["step"]]}
        entry |= {"latents_max_error": off.max().item(), "latents_mean_error": off.mean().item()}
        entry |= {"psnr": [psnr(ours, theirs) for ours, theirs in zip(ends[name][1], pictures, strict=True)]}
        found[name] = entry
    return found


@contextmanager
def server(folder: Path, backend: str, device: str, threads: int) -> Iterator[str]:
    """A real server of one backend; gives its address."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready"
        command = [sys.executable, "-m", "storyloom_server", "--model", str(folder), "--backend", backend]
        command += ["--device", device, "--port", "0", "--ready-file", str(ready), "--threads", str(threads)]
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
        within = in_process(folder, options.backends, options.device, options.steps, options.repeats)
        through = served(
            folder, options.backends, options.device, options.threads, options.steps, options.repeats
        )  # fmt: skip
    result = {
        "command": "python -m benchmarks.export.backends " + " ".join(sys.argv[1:]),
        "steps": options.steps, "frames": len(PLACES), "package_hash": artefact.record.package_hash,
        "in_process": within, "served": through,
        "hardware": {"machine": platform.machine(), "threads": options.threads, "cores": os.cpu_count(),
                     "load_average": os.getloadavg(), "device": options.device},
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "onnx", "diffusers")},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in options.backends:
        inside, outside = within[name], through[name]
        print(
            f"{name:12} step {1000 * inside['step_seconds']:7.1f} ms, decode {1000 * inside['decode_seconds']:6.1f} ms "
            f"a frame, story through the server {statistics.median(outside['story_seconds']):6.2f} s, latents off by "
            f"{inside['latents_max_error']:.1e} at most, PSNR {min(inside['psnr']):.1f} dB at least"
        )


if __name__ == "__main__":
    main()
