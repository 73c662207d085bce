"""LoRA fused into a variant of the UNet, or computed beside its weights row by row: time and memory of both.

Grouped, stories with different LoRA share a UNet call, and every changed layer of every step computes the low-rank
change of each row on top. Fused, they take calls of their own, at no cost in the step, and a variant is made once.
Processor seconds of one thread, so that others on the machine count little.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyloom_model.adapters import with_adapter
from storyloom_model.batch import collate, unet_pass
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.adapter import LowRank
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.low_rank import Changes, fuse
from storyloom_model.manifest import Manifest
from storyloom_model.maps import ForegroundRule
from storyloom_model.prompts import ComposedPrompt, compose

MIB = 2**20


def random_lora(unet: Any, rank: int, seed: int) -> dict[str, LowRank]:
    """Of all attention weights."""
    draw = torch.Generator().manual_seed(seed)
    weights = {key: value for key, value in unet.named_parameters() if ".attn" in key and value.ndim == 2}
    return {
        key: LowRank(
            torch.randn(rank, value.shape[1], generator=draw) / value.shape[1] ** 0.5,
            0.1 * torch.randn(value.shape[0], rank, generator=draw),
        )
        for key, value in weights.items()
    }


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median processor time; a run before warms up."""
    work()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def story(manifest: Manifest, frames: int, seed: int) -> StoryJob:
    """So many frames of one character."""
    prompt = compose("", "{mia} in a park", {"mia": "a woman with red hair in a blue coat"}, [])
    assert isinstance(prompt, ComposedPrompt)
    defaults = manifest.defaults
    return StoryJob(
        tuple(FrameJob(prompt, seed + frame) for frame in range(frames)), "", defaults.steps, defaults.guidance_scale,
        defaults.solver, defaults.width, defaults.height, adapter=defaults.adapter,
    )  # fmt: skip


def beside(unet: Any, loras: Sequence[Changes], rows: Sequence[int]) -> list[Any]:
    """Hooks that compute the changes of each row's LoRA beside the weights."""
    places = torch.tensor(rows)
    hooks = []
    for key in loras[0]:
        down, up = (torch.stack([getattr(one[key], half) for one in loras])[places] for half in ("down", "up"))
        hooks.append(unet.get_submodule(key.rpartition(".")[0]).register_forward_hook(partial(_add, down, up)))
    return hooks


def _add(down: Tensor, up: Tensor, _: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + inputs[0] @ down.transpose(1, 2) @ up.transpose(1, 2)


@torch.inference_mode()
def measure(denoiser: Denoiser, rank: int, frames: int, repeats: int) -> dict[str, Any]:
    """Both ways, for two stories with a LoRA each."""
    unet = denoiser._unets[denoiser.manifest.defaults.adapter]
    rule = ForegroundRule(denoiser.manifest.attention.threshold, denoiser.manifest.attention.value)
    loras = [random_lora(unet, rank, seed) for seed in (1, 2)]
    states = [denoiser.encode(story(denoiser.manifest, frames, seed)) for seed in (1, 2)]
    apart, together = [collate([state]) for state in states], collate(states)
    fused = [with_adapter(unet, fuse(unet, [(one, 1.0)]), "lora") for one in loras]
    plain = seconds(lambda: unet_pass(unet, rule, together), repeats)
    two_calls = seconds(lambda: [unet_pass(*call) for call in zip(fused, [rule] * 2, apart, strict=True)], repeats)
    hooks = beside(unet, loras, [story for story, state in enumerate(states) for _ in range(state.rows)])
    grouped = seconds(lambda: unet_pass(unet, rule, together), repeats)
    for hook in hooks:
        hook.remove()
    own = [value for key, value in fused[0].named_parameters() if key in loras[0]]
    return {
        "rows_of_a_story": states[0].rows,
        "fuse_seconds": seconds(lambda: with_adapter(unet, fuse(unet, [(loras[0], 1.0)]), "lora"), repeats),
        "fused_two_calls_seconds": two_calls,
        "grouped_one_call_seconds": grouped,
        "without_lora_one_call_seconds": plain,
        "unet_mib": sum(value.nbytes for value in unet.parameters()) / MIB,
        "variant_mib": sum(value.nbytes for value in own) / MIB,
        "lora_mib": sum(one.down.nbytes + one.up.nbytes for one in loras[0].values()) / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency/lora.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": " ".join(["python -m benchmarks.latency.lora", *sys.argv[1:]]),
        "rank": options.rank, "frames": options.frames,
        **measure(Denoiser.load(options.model), options.rank, options.frames, options.repeats),
        "hardware": {"machine": platform.machine(), "cpu_threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
