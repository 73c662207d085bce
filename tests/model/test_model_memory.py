"""When memory runs out: the step is as if it had not been tried, and can be tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from tests.model.test_model_graphs import PretendedCapture
from tests.model.tiny import finish, tiny_job


@pytest.mark.parametrize("solver", ["ddim", "euler", "unipc"])
def test_a_step_that_runs_out_of_memory_leaves_its_stories_as_they_were(tiny_package: Path, solver: str) -> None:
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(16,)), one_call=True)
    jobs = [tiny_job(2, seed=1, solver=solver), tiny_job(3, seed=2, solver=solver)]
    expected = [shared.encode(job) for job in jobs]
    states = [shared.encode(job) for job in jobs]
    unet = shared._unets["amsa-mask"]

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    for _ in range(4):
        before = [shared.save(state) for state in states]
        hook = unet.mid_block.register_forward_hook(refuse)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            shared.step(states)
        hook.remove()
        assert shared.is_out_of_memory(caught.value)
        for state, data in zip(states, before, strict=True):
            kept = shared.restore(state.job, data)
            assert state.step_index == kept.step_index
            assert state.error is None
            assert torch.equal(state.latents, kept.latents)
        shared.step(states)
        shared.step(expected)
    for state, other in zip(states, expected, strict=True):
        assert torch.equal(state.latents, other.latents)


def test_running_out_of_memory_gives_up_graphs_and_what_the_call_held(tiny_package: Path) -> None:
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(16,)), one_call=True)
    graphs = shared._runner.graphs = GraphCache(4, PretendedCapture())
    finish(shared, tiny_job(2, steps=1))
    assert len(graphs) == 1

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = shared._unets["amsa-mask"].register_forward_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        shared.step([shared.encode(tiny_job(2))])
    hook.remove()
    assert len(graphs) == 0
    held, trace = 0, caught.value.__traceback__
    while trace is not None:
        if "unet" in trace.tb_frame.f_code.co_filename:
            held += sum(isinstance(value, torch.Tensor) for value in trace.tb_frame.f_locals.values())
        trace = trace.tb_next
    assert held == 0
    assert finish(shared, tiny_job(2)).done


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert Denoiser.is_out_of_memory(error) is expected


def test_the_cpu_counts_no_device_memory(denoiser: Denoiser) -> None:
    assert denoiser.take_peak_bytes() is None
    assert denoiser.memory_bytes() is None
