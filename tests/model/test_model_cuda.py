"""What only a GPU can show of the model: graphs that survive other layouts, buckets, peaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.state import StoryState
from tests.model.tiny import finish, tiny_job
from tests.model.tiny_control import posed
from tests.model.tiny_identity import identity

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GRAPHS = ExecutionOptions(cuda_graphs=True, buckets=(16,))
JOBS = [
    tiny_job(3, seed=1, steps=3),
    tiny_job(2, seed=2, steps=5, guidance_scale=1.0, solver="euler"),
    tiny_job(4, seed=3, steps=4, solver="unipc"),
]


def load(package: Path, options: ExecutionOptions) -> Denoiser:
    return Denoiser.load(package, "cuda", options)


def run(denoiser: Denoiser, jobs: list[StoryJob]) -> list[StoryState]:
    """All stories together; each leaves when it is done, so that layouts change."""
    states = [denoiser.encode(job) for job in jobs]
    while open_states := [state for state in states if not state.done]:
        denoiser.step(open_states)
    return states


def test_one_graph_serves_changing_layouts_and_steps(tiny_package: Path) -> None:
    plain = run(load(tiny_package, ExecutionOptions(buckets=(16,))), JOBS)
    denoiser = load(tiny_package, GRAPHS)
    for expected, found in zip(plain, run(denoiser, JOBS), strict=True):
        assert torch.equal(found.latents, expected.latents)
    graphs = denoiser._runner.graphs
    assert graphs is not None
    assert (graphs.captured, graphs.refused) == (1, 0)


def test_within_a_bucket_a_story_is_bitwise_that_of_a_run_alone(tiny_package: Path) -> None:
    denoiser = load(tiny_package, GRAPHS)
    together = run(denoiser, JOBS)
    for state, job in zip(together, JOBS, strict=True):
        assert torch.equal(state.latents, finish(denoiser, job).latents)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_types_channels_last_and_compiled(tiny_package: Path, dtype: str) -> None:
    expected = run(load(tiny_package, ExecutionOptions(buckets=(16,))), JOBS)
    options = ExecutionOptions(
        dtype="bfloat16" if dtype == "bfloat16" else "float16",
        compile=True,
        cuda_graphs=True,
        channels_last=True,
        buckets=(16,),
    )
    denoiser = load(tiny_package, options)
    for one, other in zip(expected, run(denoiser, JOBS), strict=True):
        assert torch.corrcoef(torch.stack([one.latents.flatten(), other.latents.flatten()]))[0, 1] > 0.9
    assert denoiser._runner.compiled
    assert denoiser._runner.graphs is not None
    assert denoiser._runner.graphs.refused == 0


def test_a_checkpoint_goes_on_bitwise(tiny_package: Path) -> None:
    denoiser, job = load(tiny_package, GRAPHS), JOBS[2]
    state = denoiser.encode(job)
    denoiser.step([state])
    denoiser.step([state])
    again = denoiser.restore(job, denoiser.save(state))
    while not state.done:
        denoiser.step([state])
    while not again.done:
        denoiser.step([again])
    assert torch.equal(again.latents, state.latents)


def test_stories_with_references_are_bitwise_those_of_a_run_alone(identity_package: Path) -> None:
    """Of different casts and adapters, in one graph, beside one that has none."""
    denoiser = load(identity_package, GRAPHS)
    mia, bo = identity("mia", 1), identity("bo", 2, scale=0.5)
    jobs = [
        tiny_job(2, seed=1, steps=3, identities=(mia,), identity_adapter="faces"),
        tiny_job(2, seed=2, steps=3, identities=(mia, bo), identity_adapter="shared", guidance_scale=1.0),
        tiny_job(2, seed=3, steps=3, guidance_scale=1.0),
    ]
    alone = [finish(load(identity_package, ExecutionOptions(buckets=(16,))), job) for job in jobs[:2]]
    for state, expected in zip(run(denoiser, jobs), alone, strict=False):
        assert torch.equal(state.latents, expected.latents)
    graphs = denoiser._runner.graphs
    assert graphs is not None
    assert (graphs.captured, graphs.refused) == (1, 0)


def test_peaks_are_taken_once(tiny_package: Path) -> None:
    denoiser = load(tiny_package, ExecutionOptions())
    denoiser.take_peak_bytes()
    run(denoiser, JOBS)
    first, second, total = denoiser.take_peak_bytes(), denoiser.take_peak_bytes(), denoiser.memory_bytes()
    assert first is not None
    assert second is not None
    assert total is not None
    assert second <= first < total
    assert first > 0


def test_one_graph_serves_whoever_has_poses(control_package: Path) -> None:
    """Within a bucket a story is bitwise the same, with a pose or beside one."""
    denoiser = load(control_package, GRAPHS)
    jobs = [
        posed(tiny_job(2, seed=1, steps=3), 7),
        tiny_job(2, seed=2, steps=3),
        posed(tiny_job(2, seed=3, steps=3), 8),
    ]
    together = run(denoiser, jobs)
    plain = run(load(control_package, ExecutionOptions(buckets=(16,))), jobs)
    for state, job, expected in zip(together, jobs, plain, strict=True):
        assert torch.equal(state.latents, expected.latents)
        assert torch.equal(state.latents, finish(denoiser, job).latents)
    graphs = denoiser._runner.graphs
    assert graphs is not None
    assert (graphs.captured, graphs.refused) == (2, 0)
