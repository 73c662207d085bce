"""ControlNets through the engine: what diffusers makes of them, whom they reach, and what they cost the others."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storyloom_model.batch import Capacity, collate, pad, unet_pass
from storyloom_model.checkpoint import CheckpointError
from storyloom_model.components import load_components
from storyloom_model.controlnets.pictures import draw_faces, fitted
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from storyloom_model.identity.casting import row_streams
from storyloom_model.jobs import Control, Identity, StoryJob
from storyloom_model.package import ModelPackage, PackageError
from storyloom_model.state import StoryState
from tests.model.test_model_denoiser import difference, run_batch
from tests.model.test_model_graphs import PretendedCapture
from tests.model.tiny import SIZE, finish, tiny_anchors, tiny_job, tiny_unet
from tests.model.tiny_control import LANDMARKS, picture, posed, set_config, tiny_controlnet, with_landmarks
from tests.model.tiny_identity import identity


def pose_job(*seeds: int | None, frames: int = 2, **fields: Any) -> StoryJob:
    """Pictures for the first frames of three steps."""
    return posed(tiny_job(frames, **({"steps": 3} | fields)), *seeds)


def face_job(*identities: Identity, frames: int = 1, **fields: Any) -> StoryJob:
    """Mia alone; with two frames both, then."""
    wanted = {"identities": identities, "identity_adapter": "faces", "steps": 2}
    return tiny_job(frames, **(wanted | fields))


@torch.inference_mode()
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_pose_makes_what_diffusers_makes(control_package: Path, tmp_path: Path, order: str) -> None:
    folder = shutil.copytree(control_package, tmp_path / "package")
    set_config(folder / "controlnets/pose", controlnet_conditioning_channel_order=order)
    package = ModelPackage.load(folder)
    parts = load_components(package)
    pipelines: Any = StableDiffusionControlNetPipeline
    pipeline = pipelines(
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet,
        controlnet=parts.controlnets["pose"], scheduler=parts.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    job = posed(tiny_job(1, steps=2, adapter=None), 5, scale=0.5)
    denoiser = Denoiser.load(folder)
    expected = pipeline(
        job.frames[0].prompt.text,
        negative_prompt=job.negative_prompt,
        image=Image.open(io.BytesIO(picture(5))),
        num_inference_steps=2,
        guidance_scale=job.guidance_scale,
        controlnet_conditioning_scale=0.8 * 0.5,
        latents=denoiser.encode(job).latents.clone(),
        output_type="latent",
    ).images
    torch.testing.assert_close(finish(denoiser, job).latents, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(finish(denoiser, tiny_job(1, steps=2, adapter=None)).latents, expected, atol=1e-2)


@torch.inference_mode()
def test_the_face_is_read_in_place_of_the_text(control_package: Path, control_denoiser: Denoiser) -> None:
    """A step of a story against diffusers' own call: the drawing, the face's tokens and, under the negative prompt,
    those of no face.
    """
    job = face_job(Identity("mia", with_landmarks(1), scale=0.5))
    state = control_denoiser.encode(job)
    streams, kind_of_row = row_streams(job, control_denoiser._identity_adapters["faces"])
    tokens = torch.stack([streams[kind][0].tokens for kind in kind_of_row])
    pixels = draw_faces([LANDMARKS], SIZE, SIZE)
    net = load_components(ModelPackage.load(control_package)).controlnets["face"]
    inputs = collate([state])
    down, middle = net(
        inputs["latents"],
        inputs["times"],
        encoder_hidden_states=tokens,
        controlnet_cond=torch.from_numpy(pixels).permute(2, 0, 1)[None].expand(2, -1, -1, -1) / 255,
        conditioning_scale=0.5,
        return_dict=False,
    )
    unet = control_denoiser._unets["amsa-mask"]
    uncontrolled = {name: value for name, value in inputs.items() if not name.startswith("control/")}

    class WithResiduals:
        def __call__(self, *args: Any, **options: Any) -> Any:
            given = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return unet(*args, **(options | given))

    rule, nets = control_denoiser._rule, control_denoiser._controlnets
    expected = unet_pass(WithResiduals(), rule, uncontrolled)["values"]
    found = unet_pass(unet, rule, inputs, controlnets=nets)["values"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float((found - unet_pass(unet, rule, uncontrolled)["values"]).abs().max()) > 1e-2


def test_poses_of_two_stories_do_not_mix(control_package: Path, control_denoiser: Denoiser) -> None:
    jobs = [pose_job(seed, None, seed=story) for story in (1, 2) for seed in (7, 8)]
    alone = [finish(control_denoiser, job) for job in jobs]
    for places in ((0, 3), (1, 2)):
        states = run_batch(control_denoiser, [jobs[place] for place in places], [0, 1])
        for place, state in zip(places, states, strict=True):
            assert torch.equal(state.latents, alone[place].latents)
    assert difference(alone[0], alone[1]) > 1e-2
    shared = run_batch(Denoiser.load(control_package, one_call=True), [jobs[0], jobs[3]], [0, 1])
    assert max(difference(shared[0], alone[0]), difference(shared[1], alone[3])) < 0.02


def test_a_pose_costs_others_nothing(control_package: Path, identity_denoiser: Denoiser) -> None:
    """A story without one is bitwise that of a package which has no ControlNets: alone, and in one call with poses."""
    plain = tiny_job(2, seed=5, steps=3)
    denoiser = Denoiser.load(control_package, one_call=True)
    assert not any(name.startswith("control/") for name in collate([denoiser.encode(plain)]))
    assert torch.equal(finish(denoiser, plain).latents, finish(identity_denoiser, plain).latents)
    rest = [tiny_job(3, seed=2, steps=3, guidance_scale=1.0), face_job(identity("mia", 1), seed=3, steps=3)]
    without = run_batch(denoiser, [plain, *rest], [0, 0, 0])
    for neighbours in ([posed(rest[0], 7, None, 8), rest[1]], [rest[0], face_job(Identity("mia", with_landmarks(1)))]):
        together = run_batch(denoiser, [plain, *neighbours], [0, 0, 0])
        assert torch.equal(together[0].latents, without[0].latents)
        assert max(difference(one, other) for one, other in zip(together[1:], without[1:], strict=True)) > 1e-2
    keys = {denoiser.encode(job).key for job in (plain, posed(plain, 7), *rest)}
    assert len(keys) == 1


def test_a_pose_reaches_its_frame_alone(control_denoiser: Denoiser) -> None:
    """Without attention across frames; anchors have none."""
    anchors = tiny_anchors(control_denoiser, 2)
    job = pose_job(None, 7, None, frames=3, cross_frame=False, anchors=anchors)
    with_pose, without = (
        finish(control_denoiser, one) for one in (job, pose_job(frames=3, cross_frame=False, anchors=anchors))
    )
    assert torch.equal(with_pose.latents[[0, 2]], without.latents[[0, 2]])
    assert float((with_pose.latents[1] - without.latents[1]).abs().max()) > 1e-2
    rows = next(value for name, value in collate([control_denoiser.encode(job)]).items() if name.endswith("/rows"))
    assert rows.tolist() == [1, 6]


def test_strength_counts_and_nothing_is_nothing(control_denoiser: Denoiser) -> None:
    plain = finish(control_denoiser, pose_job())
    assert torch.equal(finish(control_denoiser, posed(pose_job(), 7, 8, scale=0.0)).latents, plain.latents)
    weak, strong = (finish(control_denoiser, posed(pose_job(), 7, 8, scale=scale)) for scale in (0.3, 1.0))
    assert 1e-3 < difference(plain, weak) < difference(plain, strong)


def test_pictures_of_any_size_and_kind_are_taken(control_denoiser: Denoiser) -> None:
    """A wide story; one colour is the same at every size and in every format."""

    def coloured(size: tuple[int, int], form: str, mode: str = "RGB") -> StoryJob:
        file = io.BytesIO()
        Image.new(mode, size, "#404040" if mode == "RGB" else 64).save(file, form, quality=100)
        job = tiny_job(1, steps=1, width=96)
        return replace(job, frames=(replace(job.frames[0], control=Control("pose", file.getvalue())),))

    expected = finish(control_denoiser, coloured((96, SIZE), "PNG"))
    for other in (coloured((200, 300), "PNG"), coloured((40, 40), "JPEG"), coloured((96, 64), "PNG", "L")):
        assert difference(finish(control_denoiser, other), expected) < 1e-3
    assert expected.controls[0].embedding.shape[-2:] == (8, 12)


def test_the_face_is_where_the_reference_has_it(control_denoiser: Denoiser) -> None:
    here, there = (
        control_denoiser.encode(face_job(Identity("mia", with_landmarks(1, shift)))).controls[0] for shift in (0, 10)
    )
    assert (here.net, here.frames, here.scale) == ("face", (0,), (1.0,))
    assert not torch.equal(here.embedding, there.embedding)
    assert fitted([[0, 0], [100, 50]], (100, 50), 64, 64).tolist() == [[0, 16], [64, 48]]
    # Features of earlier versions; another adapter; no strength; two characters, whose references are of one face each.
    for job in (
        face_job(identity("mia", 1)),
        face_job(Identity("mia", with_landmarks(1)), identity_adapter="shared"),
        face_job(Identity("mia", with_landmarks(1), scale=0.0)),
    ):
        assert control_denoiser.encode(job).controls == ()
    both = face_job(Identity("mia", with_landmarks(1)), Identity("bo", with_landmarks(2)), frames=2)
    assert [control.frames for control in control_denoiser.encode(both).controls] == [(0,)]


class _Faces:
    """Finds one face, and notes what it was shown."""

    def __init__(self, *landmarks: Any) -> None:
        self.found = [type("Face", (), {"landmarks": each}) for each in landmarks]
        self.faces_in = self

    def faces(self, pixels: Any) -> Any:
        assert pixels.shape == (SIZE, SIZE, 3)
        return self.found


@pytest.fixture
def finding(control_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The denoiser with encoders that find these faces in every picture."""

    def find(*landmarks: Any) -> Denoiser:
        encoder = type("Encoder", (), {"faces": _Faces(*landmarks)})
        monkeypatch.setitem(control_denoiser.__dict__, "reference_encoder", encoder)
        return control_denoiser

    return find


def test_the_face_is_where_the_pose_has_it(finding: Any) -> None:
    wanted = (Identity("mia", with_landmarks(1, references=2)), Identity("bo", with_landmarks(2)))
    job = posed(face_job(*wanted, frames=2), None, 3, net="face", scale=0.5)
    controls = finding(LANDMARKS + 5, LANDMARKS - 5, LANDMARKS).encode(job).controls
    # Mia has two references of two tokens each, Bo one: no row is padded to another's length.
    assert [(one.frames, one.scale, tuple(one.tokens.shape)) for one in controls] == [
        ((0,), (1.0,), (2, 4, 32)),
        ((1,), (0.5,), (2, 6, 32)),
    ]
    assert difference(finish(finding(LANDMARKS), job), finish(finding(LANDMARKS + 9), job)) > 1e-3
    with pytest.raises(JobError, match="frame 2: no face was found in its pose"):
        finding().encode(job)


jobs = st.builds(
    lambda seeds, face, **fields: posed(
        face_job(*([Identity("mia", with_landmarks(face))] if face else []), frames=2, **fields), *seeds
    ),
    st.tuples(st.sampled_from([None, 7, 8]), st.sampled_from([None, 9])),
    face=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 99),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    cross_frame=st.booleans(),
)


@settings(max_examples=3, deadline=None)
@given(batch=st.lists(st.tuples(jobs, st.integers(0, 2)), min_size=2, max_size=3))
def test_stories_with_poses_join_and_leave(control_denoiser: Denoiser, batch: list[tuple[StoryJob, int]]) -> None:
    states = run_batch(control_denoiser, [job for job, _ in batch], [join for _, join in batch])
    for state, (job, _) in zip(states, batch, strict=True):
        assert torch.equal(state.latents, finish(control_denoiser, job).latents)


@settings(max_examples=3, deadline=None)
@given(batch=st.lists(jobs, min_size=1, max_size=3))
@torch.inference_mode()
def test_whatever_is_in_the_padding_rows_are_the_same(control_denoiser: Denoiser, batch: list[StoryJob]) -> None:
    states = [control_denoiser.encode(job) for job in batch]
    rows = sum(state.rows for state in states)

    def call(inputs: Any) -> Any:
        unet, nets = control_denoiser._unets["amsa-mask"], control_denoiser._controlnets
        return unet_pass(unet, control_denoiser._rule, inputs, controlnets=nets)["values"][:rows]

    plain = call(collate(states))
    padded = pad(collate(states), Capacity(rows + 2, 3, identity_tokens=9, streams=3, controlled_rows=13))
    clean = call(padded)
    torch.testing.assert_close(clean, plain, atol=2e-3, rtol=0)
    dirty = {name: value.clone() for name, value in padded.items()}
    for name in dirty:
        if name.startswith("control/") and name.endswith(("/embedding", "/tokens", "/scale")):
            dirty[name][12:] = float("nan")
    assert torch.equal(call(dirty), clean)


def test_one_graph_serves_all_poses(control_package: Path) -> None:
    """Shapes depend on the bucket of the rows with a control, not on whose they are."""
    denoiser = Denoiser.load(control_package, options=ExecutionOptions(buckets=(4, 12)), one_call=True)
    graphs = denoiser._runner.graphs = GraphCache(4, PretendedCapture())
    denoiser.step([denoiser.encode(job) for job in (pose_job(7), pose_job())])
    denoiser.step([denoiser.encode(job) for job in (pose_job(), pose_job(8, 9, guidance_scale=1.0), pose_job(8))])
    assert len(graphs) == 1
    denoiser.step([denoiser.encode(job) for job in (pose_job(), pose_job())])
    assert len(graphs) == 2


def test_a_story_with_a_pose_goes_on_from_a_checkpoint(control_denoiser: Denoiser) -> None:
    job = pose_job(7, None, solver="unipc")
    going: StoryState = control_denoiser.encode(job)
    control_denoiser.step([going])
    data = control_denoiser.save(going)
    again = control_denoiser.restore(job, data)
    for state in (going, again):
        while not state.done:
            control_denoiser.step([state])
    assert torch.equal(again.latents, going.latents)
    for other in (pose_job(8), pose_job(None, 7), pose_job(), posed(pose_job(), 7, scale=0.9)):
        with pytest.raises(CheckpointError, match="of another job"):
            control_denoiser.restore(other, data)


def test_a_state_counts_its_bytes(control_denoiser: Denoiser) -> None:
    (control,) = control_denoiser.encode(pose_job(7)).controls
    plain = control_denoiser.encode(pose_job())
    assert control_denoiser.encode(pose_job(7)).nbytes == plain.nbytes + control.embedding.nbytes


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (posed(pose_job(), 7, net="gone"), "no ControlNet called gone; use one of pose, face"),
        (posed(pose_job(), 7, scale=2.5), "frame 1 has a pose of strength 2.5; use one from 0 to 2"),
        (posed(pose_job(), None, 7, scale=float("nan")), "frame 2 has a pose of strength nan"),
        (posed(pose_job(), 7, net="face"), "frame 1 has a pose for face, and no character with references"),
        (
            posed(face_job(identity("mia", 1), identity_adapter="shared"), 7, net="face"),
            "which goes with identity adapter faces; use that",
        ),
        (posed(face_job(identity("mia", 1)), 7, net="face"), "has no encoders to find faces in poses with"),
        (
            replace(pose_job(), frames=(replace(pose_job().frames[0], control=Control("pose", b"junk")),)),
            "frame 1, its pose: the picture is not an image file",
        ),
    ],
)
def test_what_cannot_be_made_says_what_to_change(control_denoiser: Denoiser, job: StoryJob, words: str) -> None:
    with pytest.raises(JobError, match=words):
        control_denoiser.encode(job)


def test_a_package_without_controlnets_says_so(denoiser: Denoiser) -> None:
    with pytest.raises(JobError, match="tiny has no ControlNet called pose; it has none: leave it out"):
        denoiser.encode(pose_job(7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cross_attention_dim": 48}, "is for another base model: its cross_attention_dim is 48, the UNet's 32"),
        ({"conditioning_embedding_out_channels": [4, 8]}, "makes them 2 times smaller; the model needs 3 and 8"),
        ({"conditioning_channels": 1}, "takes pictures of 1 channels"),
    ],
)
def test_a_controlnet_of_another_model_is_refused(
    control_package: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(control_package, tmp_path / "package")
    nets: Any = type(tiny_controlnet(tiny_unet()))
    config = {key: value for key, value in tiny_controlnet(tiny_unet()).config.items() if not key.startswith("_")}
    nets(**(config | change)).save_pretrained(folder / "controlnets/pose")
    with pytest.raises(PackageError, match=words):
        Denoiser.load(folder)


def test_a_damaged_controlnet_is_refused(control_package: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(control_package, tmp_path / "package")
    weights = folder / "controlnets/face/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PackageError, match="is not a diffusers ControlNet in safetensors"):
        Denoiser.load(folder)
    shutil.rmtree(folder / "controlnets/face")
    with pytest.raises(PackageError, match=r"lacks controlnets/face/config\.json"):
        ModelPackage.load(folder)


def test_another_controlnet_makes_another_package(
    control_package: Path, tmp_path: Path, control_denoiser: Denoiser
) -> None:
    """Checkpoints are of the ControlNets that they were made with."""
    folder = shutil.copytree(control_package, tmp_path / "package")
    tiny_controlnet(tiny_unet(), 9).save_pretrained(folder / "controlnets/pose")
    state = control_denoiser.encode(pose_job(7))
    with pytest.raises(CheckpointError, match="of another job, or of another model"):
        Denoiser.load(folder).restore(pose_job(7), control_denoiser.save(state))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"folder": "../x"}, "must be a path inside the package"),
        ({"folder": "x", "kind": "identitynet"}, "needs the adapter whose tokens it reads"),
        ({"folder": "x", "adapter": "faces"}, "takes no adapter; remove it"),
        (
            {"folder": "x", "kind": "identitynet", "adapter": "gone"},
            "gone, which is not listed under identity_adapters",
        ),
        ({"folder": "x", "kind": "identitynet", "adapter": "faces"}, "two of kind identitynet read the same adapter"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(control_package: Path, part: dict[str, Any], words: str) -> None:
    manifest = ModelPackage.load(control_package).manifest
    content = manifest.model_dump(mode="json", exclude_none=True)
    content["controlnets"]["other"] = part
    with pytest.raises(ValueError, match=words):
        type(manifest).model_validate(content)


def test_a_drawing_holds_all_faces() -> None:
    first, last = LANDMARKS * 0.3, LANDMARKS + 20
    both = draw_faces([first, last], SIZE, SIZE)
    alone = draw_faces([last], SIZE, SIZE)
    covered = alone.any(-1)
    assert np.array_equal(both[covered], alone[covered])
    assert np.array_equal(both[~covered], draw_faces([first], SIZE, SIZE)[~covered])
    assert both[~covered].any()
    assert np.array_equal(draw_faces([], 8, 16), np.zeros((16, 8, 3), np.uint8))


def test_a_drawing_in_a_small_frame_is_a_small_drawing() -> None:
    """The authors' dots of 20 pixels would leave nothing of a face in a frame of 128."""
    landmarks = LANDMARKS * 2
    small, full, larger = (draw_faces([landmarks * size / 128], size, size).any(-1) for size in (128, 512, 1024))
    assert abs(small.mean() / full.mean() - 1) < 0.3
    assert larger.mean() < 0.7 * full.mean()  # from 512 pixels on dots are the authors', however large the face is
