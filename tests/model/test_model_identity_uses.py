"""What stories can ask of StoryMaker, as its pictures show it: the face alone, other clothes, a mix of two people."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.loading import save_identity_adapter
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes, StoryMakerStreams
from storyloom_model.jobs import Identity, JobError
from storyloom_model.manifest import IdentityAdapterFile
from storyloom_model.package import ModelPackage, write_manifest
from tests.model.tiny import finish, tiny_job, tiny_unet
from tests.model.tiny_identity import ENCODERS, FACE, WIDTH, build_identity_package, tiny_layers, tiny_low_rank

STATES = 8


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    """The tiny package with a StoryMaker adapter, low-rank changes and all."""
    folder = build_identity_package(tmp_path_factory.mktemp("uses"))
    sizes = StoryMakerSizes(WIDTH, FACE, STATES, 1, 2, WIDTH, 2, places=2, depth=1, head_width=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        resampler, unet = StoryMakerResampler(sizes), tiny_unet()
        torch.nn.init.normal_(resampler.bg_embed)
        adapter = IdentityAdapter(
            "storymaker",
            StoryMakerStreams(resampler),
            tiny_layers(unet),
            low_rank=tiny_low_rank(unet, "attn1.to_q"),
            encoders=ENCODERS,
        )
    save_identity_adapter(folder / "identity" / "storymaker.safetensors", adapter, "storymaker")
    manifest = ModelPackage.load(folder).manifest
    file = IdentityAdapterFile(file="identity/storymaker.safetensors", method="storymaker")
    adapters = {**manifest.identity_adapters, "storymaker": file}
    write_manifest(folder, manifest.model_copy(update={"identity_adapters": adapters}))
    return Denoiser.load(folder)


def _draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def person(face: int, looks: int, clothes: int | None = None, encoders: str = ENCODERS) -> bytes:
    """Somebody whose face and whose looks come from seeds; with ``clothes``, also a picture of garments."""
    references = [
        ReferenceFeatures("character", _draw(face, FACE), _draw(face, 4, STATES), None, _draw(looks, 4, STATES))
    ]
    if clothes is not None:
        references.append(ReferenceFeatures("clothes", character_states=_draw(clothes, 4, STATES)))
    return IdentityFeatures(encoders, tuple(references)).to_bytes()


def picture(denoiser: Denoiser, *identities: Identity, seed: int = 1, **settings: Any) -> torch.Tensor:
    """Latents of two frames, of Mia and of Mia and Bo."""
    job = tiny_job(2, seed, steps=2, identities=identities, identity_adapter="storymaker", **settings)
    return finish(denoiser, job).latents


def mia(features: bytes, **options: Any) -> Identity:
    return Identity("mia", features, **options)


def test_the_face_alone_leaves_looks_to_the_prompt(denoiser: Denoiser) -> None:
    stylised = [picture(denoiser, mia(person(1, looks), keep=("face",))) for looks in (1, 2)]
    assert torch.equal(*stylised)
    whole = [picture(denoiser, mia(person(1, looks))) for looks in (1, 2)]
    assert not torch.allclose(*whole)
    assert not torch.allclose(stylised[0], whole[0])
    assert not torch.allclose(stylised[0], picture(denoiser, mia(person(3, 1), keep=("face",))))


def test_clothes_and_hair_alone_leave_the_face_to_the_prompt(denoiser: Denoiser) -> None:
    dressed = [picture(denoiser, mia(person(face, 1), keep=("clothes", "hair"))) for face in (1, 2)]
    assert torch.equal(*dressed)
    assert not torch.allclose(dressed[0], picture(denoiser, mia(person(1, 2), keep=("clothes", "hair"))))


def test_clothes_are_swapped_by_a_picture_of_others(denoiser: Denoiser) -> None:
    swapped = picture(denoiser, mia(person(1, 1, clothes=7)))
    assert torch.equal(swapped, picture(denoiser, mia(person(1, 7))))
    assert not torch.allclose(swapped, picture(denoiser, mia(person(1, 1))))


def test_another_seed_is_a_variation(denoiser: Denoiser) -> None:
    one, again, other = (picture(denoiser, mia(person(1, 1)), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_two_people_are_interpolated(denoiser: Denoiser) -> None:
    own, other = person(1, 1), person(2, 2)
    ends = picture(denoiser, mia(own)), picture(denoiser, mia(other))
    mixed = [picture(denoiser, mia(own, blend=other, blend_weight=weight)) for weight in (0.0, 0.2, 0.6, 1.0)]
    torch.testing.assert_close(mixed[0], ends[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[3], ends[1], atol=1e-4, rtol=1e-4)
    away = [float((one - ends[0]).norm()) for one in mixed]
    assert away[0] < away[1] < away[2]
    assert not torch.allclose(mixed[2], ends[1], atol=1e-3)


def test_it_goes_with_lora(denoiser: Denoiser) -> None:
    people = person(1, 1), person(2, 2)
    plain = [picture(denoiser, mia(one)) for one in people]
    inked = [picture(denoiser, mia(one), loras=(("style", 0.8), ("line", 0.5))) for one in people]
    for one, other in zip(plain, inked, strict=True):
        assert not torch.allclose(one, other)
    assert not torch.allclose(*inked)
    apart = picture(denoiser, mia(people[0], scale=0.0), loras=(("style", 0.8), ("line", 0.5)))
    assert not torch.allclose(apart, inked[0])


def test_two_characters_keep_their_places(denoiser: Denoiser) -> None:
    one, other = person(1, 1), person(2, 2)
    both = picture(denoiser, mia(one), Identity("bo", other))
    swapped = picture(denoiser, mia(other), Identity("bo", one))
    assert not torch.allclose(both[1], swapped[1])


def test_features_of_other_networks_are_refused_and_of_other_finders_are_not(denoiser: Denoiser) -> None:
    same = picture(denoiser, mia(person(1, 1, encoders=f"{ENCODERS}:another-detector")))
    assert torch.equal(same, picture(denoiser, mia(person(1, 1))))
    with pytest.raises(JobError, match="of other encoders than identity adapter storymaker was made for"):
        picture(denoiser, mia(person(1, 1, encoders=f"others:{ENCODERS}")))
