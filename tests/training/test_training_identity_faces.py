"""The ID loss: the recogniser with gradients, faces in their places, and whom it looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from storyloom_model.identity.encoders.crops import aligned_face
from storyloom_training.diffusion import add_noise, build_scheduler
from storyloom_training.identity.adapters.batches import IdentityBatch, References
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.identity.adapters.face_loss import FaceLoss, aligned, clean_estimate
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.recognition import OnnxRecogniser
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Group, Split, sample_group
from storyloom_training.storydb.picture import Picture, render

PACKAGE = Path(__file__).parents[2] / "weights" / "storyloom-mini"
SIZE, FRAMES = 128, 2


class Pixels:
    """Stands in for an autoencoder: latents are the picture."""

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


class Known(PeopleFeatures):
    """Faces of two groups of two frames with one person each."""

    def __init__(self, faces: np.ndarray) -> None:
        super().__init__(Path())
        table = torch.full((2, FRAMES, 3), -1)
        table[:, :, 0] = torch.arange(4).view(2, FRAMES)
        vars(self).update(table=table, face=faces)


@pytest.fixture(scope="module")
def encoder() -> PackageEncoder:
    return PackageEncoder(PACKAGE / "faces", PACKAGE / "image_encoder")


@pytest.fixture(scope="module")
def recognise(encoder: PackageEncoder) -> OnnxRecogniser:
    return OnnxRecogniser(encoder.recogniser)


class Near(StoryDB):
    """Groups of one person, seen from near."""

    def group(self, index: int) -> Group:
        group = sample_group(self.split, index, people=1, frames=self.frames)
        return replace(group, frames=tuple(replace(frame, framing="portrait") for frame in group.frames))


@pytest.fixture(scope="module")
def data() -> StoryDB:
    return Near(Path(), Split.TRAIN, 2, FRAMES, SIZE, 16)


@pytest.fixture(scope="module")
def pictures(data: StoryDB) -> list[Picture]:
    return [render(data.group(group), frame, SIZE) for group in range(2) for frame in range(FRAMES)]


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 127.5 - 1


def test_the_recogniser_says_in_torch_what_it_says_in_onnx_runtime(
    encoder: PackageEncoder, recognise: OnnxRecogniser, pictures: list[Picture]
) -> None:
    crops = np.stack([aligned_face(one.image, np.array(one.people[0].landmarks)) for one in pictures])
    made = F.normalize(recognise(_tensor(crops)))
    np.testing.assert_allclose(made.numpy(), encoder.faces(crops), atol=1e-4)


def test_faces_are_cut_out_where_the_encoders_cut_them_out(pictures: list[Picture]) -> None:
    for picture in pictures:
        landmarks = np.array(picture.people[0].landmarks)
        expected = _tensor(aligned_face(picture.image, landmarks))
        made = aligned(_tensor(picture.image), landmarks)
        # OpenCV rounds places to 1/32 of a pixel; black borders are grey here.
        inside = (expected > -1).all(0)
        assert (made - expected).abs()[:, inside].mean() < 0.02


def test_a_clean_estimate_is_clean_where_the_v_is_right() -> None:
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    timesteps = torch.tensor([0, 200, 999])
    noisy, target = add_noise(build_scheduler(), clean, noise, timesteps)
    torch.testing.assert_close(clean_estimate(noisy, target, timesteps), clean, atol=1e-5, rtol=1e-5)


@pytest.fixture
def loss(encoder: PackageEncoder, recognise: OnnxRecogniser, data: StoryDB, pictures: list[Picture]) -> FaceLoss:
    crops = np.stack([aligned_face(one.image, np.array(one.people[0].landmarks)) for one in pictures])
    return FaceLoss(Pixels(), 1.0, recognise, data, Known(encoder.faces(crops)), rows=2, below=250)


def _references(*there: bool) -> References:
    entries = torch.full((len(there), 3, 1), -1)
    entries[torch.tensor(there), 0, 0] = 0
    return References.whole(entries)


def test_the_loss_is_low_for_the_right_faces_and_leads_to_them(loss: FaceLoss, pictures: list[Picture]) -> None:
    chosen = [0, 2]
    clean = torch.stack([_tensor(pictures[place].image) for place in chosen])
    other = torch.stack([_tensor(pictures[place].image) for place in (2, 0)])
    timesteps = torch.full((2,), 100)
    draw = torch.Generator().manual_seed(0)
    noisy, right = add_noise(build_scheduler(), clean, torch.randn(clean.shape, generator=draw), timesteps)
    _, wrong = add_noise(build_scheduler(), other, torch.randn(clean.shape, generator=draw), timesteps)
    batch = IdentityBatch(chosen, [1, 1], [None, None], _references(True, True))
    low = loss(noisy, right, timesteps, batch, batch.references)
    wrong.requires_grad_()
    high = loss(noisy, wrong, timesteps, batch, batch.references)
    assert low is not None
    assert high is not None
    assert low < 0.2 < high
    (slope,) = torch.autograd.grad(high, wrong)
    after = loss(noisy, wrong - 20 * slope, timesteps, batch, batch.references)
    assert after is not None
    assert after < high


def test_only_late_frames_with_references_are_looked_at(loss: FaceLoss) -> None:
    latents = torch.zeros(4, 3, SIZE, SIZE)
    late, early = torch.tensor([9] * 4), torch.tensor([250, 999, 400, 250])
    batch = IdentityBatch([0, 1, 2, 3], [1] * 4, [None] * 4, _references(True, True, True, True))
    assert loss(latents, latents, early, batch, batch.references) is None
    assert loss(latents, latents, late, batch, _references(False, False, False, False)) is None
    zeroed = replace(batch.references, zeroed=torch.ones(4, dtype=torch.bool))
    assert loss(latents, latents, late, batch, zeroed) is None
    decoded: list[int] = []
    loss.vae.decode = lambda rows: decoded.append(len(rows)) or SimpleNamespace(sample=rows)
    assert loss(latents, latents, late, batch, _references(False, True, True, True)) is not None
    assert decoded == [2]
