"""The backend onnxruntime makes what torch makes, step by step, and says what it cannot do."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from storyloom_export.artefact import Artefact, ArtefactError
from storyloom_export.compare import psnr
from storyloom_export.denoiser import OnnxDenoiser, OnnxTensorRtDenoiser, components_of, onnx_sessions
from storyloom_export.memory import DeviceMemory
from storyloom_export.modules import ExportedUNet
from storyloom_export.session import Session
from storyloom_model import ComposedPrompt, FrameJob, StoryJob, compose
from storyloom_model.checkpoint import CheckpointError
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.identity.storynizor import StorynizorInjector
from storyloom_model.package import ModelPackage
from storyloom_model.state import StoryState
from tests.export.identities import identity
from tests.model.tiny import finish, tiny_anchors, tiny_job

CPU = DeviceMemory(torch.device("cpu"))
REFERENCES = {"identities": (identity("mia", 1), identity("bo", 2, scale=0.6))}


@pytest.fixture(scope="module")
def exported(exported_package: Path) -> OnnxDenoiser:
    return OnnxDenoiser.load(exported_package)


@pytest.fixture(scope="module")
def reference(exported_package: Path) -> Denoiser:
    return Denoiser.load(exported_package)


def run(denoiser: Denoiser, *jobs: StoryJob) -> list[StoryState]:
    states = [denoiser.encode(job) for job in jobs]
    while not all(state.done for state in states):
        denoiser.step([state for state in states if not state.done])
    return states


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        # The maps of random weights are almost flat, so that rounding decides about a position of a mask now and then.
        ({}, 1e-2),
        ({"adapter": "amsa", "solver": "unipc", "width": 96}, 1e-2),
        ({"adapter": "none", "solver": "euler", "cross_frame": False}, 1e-4),
        ({"adapter": "amsa", "solver": "unipc", "cross_frame": False}, 1e-4),
        ({"guidance_scale": 1.0, "cross_frame": False}, 1e-4),
        # References, as streams alone and with changed weights; a LoRA.
        ({**REFERENCES, "identity_adapter": "storynizor", "cross_frame": False}, 1e-3),
        ({**REFERENCES, "identity_adapter": "storymaker", "adapter": "amsa"}, 1e-2),
        ({**REFERENCES, "identity_adapter": "storynizor", "loras": (("style", 0.5),), "guidance_scale": 1.0}, 1e-2),
    ],
)
def test_a_story_is_the_one_that_torch_makes(
    exported: OnnxDenoiser, reference: Denoiser, settings: dict[str, object], tolerance: float
) -> None:
    ours, theirs = (run(denoiser, tiny_job(4, **settings))[0] for denoiser in (exported, reference))
    assert (ours.latents - theirs.latents).abs().max() < tolerance
    pictures = [denoiser.decode(state, range(4)) for denoiser, state in ((exported, ours), (reference, theirs))]
    assert min(psnr(mine, other) for mine, other in zip(*pictures, strict=True)) > 40
    previews = [denoiser.preview(state, [0]) for denoiser, state in ((exported, ours), (reference, theirs))]
    assert np.abs(previews[0].astype(int) - previews[1].astype(int)).max() <= 2


def test_a_story_without_characters_sees_only_its_own_frames(exported: OnnxDenoiser, reference: Denoiser) -> None:
    prompts = [compose("", text, {}, []) for text in ("a dog", "a cat")]
    frames = tuple(FrameJob(prompt, seed) for seed, prompt in enumerate(prompts) if isinstance(prompt, ComposedPrompt))
    job = dataclasses.replace(tiny_job(1), frames=frames)
    ours, theirs = (run(denoiser, job)[0].latents for denoiser in (exported, reference))
    assert (ours - theirs).abs().max() < 1e-3


def test_stories_in_one_padded_call_are_what_they_are_alone(exported_package: Path) -> None:
    together = OnnxDenoiser.load(exported_package, one_call=True)
    anchored = tiny_job(2, seed=3, anchors=tiny_anchors(together, 1))
    referring = tiny_job(2, seed=4, identities=(identity("bo", 2),), identity_adapter="storynizor")
    jobs = tiny_job(3, seed=1), tiny_job(2, seed=2, guidance_scale=1.0, steps=3), anchored, referring
    joined = run(together, *jobs)
    for state, job in zip(joined, jobs, strict=True):
        assert (state.latents - run(together, job)[0].latents).abs().max() < 1e-2


@pytest.mark.parametrize(("guidance_scale", "cross_frame"), [(4.0, True), (1.0, True), (4.0, False)])
def test_a_story_with_anchors_is_the_one_that_torch_makes(
    exported: OnnxDenoiser, reference: Denoiser, guidance_scale: float, cross_frame: bool
) -> None:
    anchors = tiny_anchors(reference, 2)
    job = tiny_job(2, anchors=anchors, guidance_scale=guidance_scale, cross_frame=cross_frame)
    ours, theirs = (run(denoiser, job)[0] for denoiser in (exported, reference))
    assert (ours.latents - theirs.latents).abs().max() < 1e-2
    without = run(exported, dataclasses.replace(job, anchors=()))[0]
    assert torch.equal(ours.latents, without.latents) is not cross_frame


def test_a_frame_looks_the_same_on_both(exported: OnnxDenoiser, reference: Denoiser) -> None:
    found = []
    for denoiser in (exported, reference):
        state = run(denoiser, tiny_job(2))[0]
        found.append(denoiser.looks(state, 0, denoiser.decode(state, [0])[0]))
    assert found[0].keys() == found[1].keys()
    for name, look in found[0].items():
        assert np.abs(look - found[1][name]).max() < 0.05


def test_a_story_goes_on_from_a_checkpoint_of_its_own_runtime_alone(
    exported: OnnxDenoiser, reference: Denoiser
) -> None:
    job = tiny_job(2, solver="unipc", anchors=tiny_anchors(reference, 1))
    state = exported.encode(job)
    for _ in range(2):
        exported.step([state])
    kept = exported.save(state)
    resumed = exported.restore(job, kept)
    for going in (state, resumed):
        while not going.done:
            exported.step([going])
    assert torch.equal(state.latents, resumed.latents)
    assert exported.final_latents(state) == exported.final_latents(resumed)
    with pytest.raises(CheckpointError, match="another job, or of another model"):
        reference.restore(job, kept)


def test_sizes_that_the_graph_does_not_take_are_refused(package: ModelPackage, artefact: Artefact) -> None:
    unet = ExportedUNet(artefact, package.folder, onnx_sessions(package, artefact, CPU))
    with pytest.raises(ValueError, match=r"multiples of 2; got \[7, 8\]"):
        unet({"latents": torch.zeros(1, 4, 7, 8), "times": torch.zeros(1), "text": torch.zeros(1, 77, 32)})
    with pytest.raises(ValueError, match=r"take no control\.0; serve such stories with torch"):
        unet({"latents": torch.zeros(1, 4, 8, 8), "control.0": torch.zeros(1)})


def test_memory_that_ran_out_is_told_from_other_errors(tmp_path: Path) -> None:
    inputs = {"x": torch.zeros(1, 1)}
    size = torch.tensor([2**22, 2**20])
    node = helper.make_node("Expand", ["x", "size"], ["big"])
    first = helper.make_node("ReduceMax", ["big"], ["out"], keepdims=1)
    values = [helper.make_tensor_value_info("x", 1, [1, None]), helper.make_tensor_value_info("size", 7, [2])]
    graph = helper.make_graph([node, first], "big", values, [helper.make_tensor_value_info("out", 1, [1, 1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "big.onnx")
    session = Session(tmp_path / "big.onnx", CPU)
    with pytest.raises(MemoryError) as raised:
        session.run(inputs | {"size": size}, {"out": ((1, 1), torch.float32)})
    assert Denoiser.is_out_of_memory(raised.value)
    with pytest.raises(Exception, match="Expand") as other:
        session.run({"x": torch.zeros(1, 2), "size": torch.tensor([1, 3])}, {"out": ((1, 1), torch.float32)})
    assert not Denoiser.is_out_of_memory(other.value)


def test_a_file_that_onnx_runtime_cannot_read_is_told_with_how_to_rebuild(artefact: Artefact, tmp_path: Path) -> None:
    newer = onnx.load(artefact.component("vae_decoder"), load_external_data=False)
    newer.ir_version = 99
    contents = {"newer": newer.SerializeToString(), "cut": newer.SerializeToString()[:1000], "empty": b""}
    for name, content in contents.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(
            ArtefactError, match=rf"cannot load .*{name}\.onnx.*make the export anew.*storyloom-export onnx"
        ):
            Session(tmp_path / f"{name}.onnx", CPU)


def test_a_component_that_the_export_has_not_is_told_with_how_to_rebuild(artefact: Artefact) -> None:
    with pytest.raises(
        ArtefactError, match=r"has no component resampler, only .*text_encoder.*storyloom-export onnx PACKAGE"
    ):
        artefact.component("resampler")


def test_a_device_without_provider_is_refused(exported_package: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ArtefactError, match=r"no CUDAExecutionProvider, only .* install onnxruntime-gpu"):
        OnnxDenoiser.load(exported_package, "cuda:0")


def test_options_that_the_export_has_not_are_refused(exported_package: Path) -> None:
    with pytest.raises(ValueError, match=r"is float32, not float16.*--dtype float16"):
        OnnxDenoiser.load(exported_package, options=ExecutionOptions(dtype="float16"))
    with pytest.raises(ValueError, match="compile is for the backend torch"):
        OnnxDenoiser.load(exported_package, options=ExecutionOptions(compile=True))


def test_a_package_without_export_says_how_to_make_one(exported_package: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(exported_package, tmp_path / "bare", ignore=shutil.ignore_patterns("onnx"))
    with pytest.raises(ArtefactError, match="make it anew with: storyloom-export onnx"):
        OnnxDenoiser.load(bare)


def test_references_and_loras_change_the_story(exported: OnnxDenoiser) -> None:
    """What is compared with torch's above is really there: each of them makes another story, and lets go again."""
    plain = tiny_job(2, steps=2)
    made = [
        finish(exported, dataclasses.replace(plain, **settings)).latents
        for settings in (
            {},
            {**REFERENCES, "identity_adapter": "storynizor"},
            {**REFERENCES, "identity_adapter": "storymaker"},
            {"loras": (("style", 0.5),)},
            {},
        )
    ]
    assert torch.equal(made[0], made[-1])
    differences = [(one - other).abs().max() for one, other in itertools.combinations(made[:-1], 2)]
    assert min(differences) > 1e-3


def test_a_backend_that_keeps_engines_refuses_changed_weights(package: ModelPackage, artefact: Artefact) -> None:
    """The rest of the package is served as ever, references without changed weights among it."""
    denoiser = OnnxTensorRtDenoiser(package, components_of(package, artefact, onnx_sessions(package, artefact, CPU)))
    assert finish(denoiser, tiny_job(1, steps=1, identities=(identity("mia", 1),), identity_adapter="storynizor")).done
    wanted = {
        "identity adapter storymaker": {
            "identities": (identity("mia", 1),),
            "identity_adapter": "storymaker",
        },
        "LoRA style": {"loras": (("style", 1.0),)},
    }
    for words, settings in wanted.items():
        with pytest.raises(
            JobError, match=f"the backend onnxruntime-tensorrt cannot run {words}; leave it out, or serve"
        ):
            denoiser.encode(tiny_job(2, steps=1, **settings))


def test_graphs_know_no_parts(package: ModelPackage, artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take them for characters: an adapter that has streams for parts is left to torch."""
    monkeypatch.setattr(StorynizorInjector, "by_parts", True)
    denoiser = OnnxDenoiser(package, components_of(package, artefact, onnx_sessions(package, artefact, CPU)))
    with pytest.raises(JobError, match="the backend onnxruntime cannot run identity adapter storynizor; leave it out"):
        denoiser.encode(tiny_job(1, steps=1, identities=(identity("mia", 1),), identity_adapter="storynizor"))
