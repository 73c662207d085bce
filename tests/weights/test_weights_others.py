"""The adapters of other methods for the built-in model: each goes into its package and brings a person into a frame."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.stories.others import OTHERS, fit_out
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.features import Reference
from storyloom_model.jobs import FrameJob, Identity, StoryJob
from storyloom_model.prompts import ComposedPrompt
from storyloom_training.storydb.groups import Split, sample_group
from storyloom_training.storydb.picture import render

METHODS = ("ip-adapter", "photomaker", "instantid", "character-adapter")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Denoiser:
    """Of the built-in model as ``make quality-methods`` fits it out."""
    package = tmp_path_factory.mktemp("others") / "package"
    fit_out(package)
    return Denoiser.load(package)


def frame(denoiser: Denoiser, adapter: str | None, person: int = 1) -> np.ndarray:
    """A picture of somebody; what an adapter is told comes from the first true picture of a held-out person."""
    known = ()
    if adapter is not None:
        encoder = denoiser.reference_encoder
        assert encoder is not None
        shown = io.BytesIO()
        group = sample_group(Split.TEST, person, people=1, frames=1)
        Image.fromarray(render(group, 0, 128).image).save(shown, "PNG")
        known = (Identity("mia", encoder.encode([Reference(shown.getvalue())])[0].to_bytes()),)
    job = StoryJob(
        frames=(FrameJob(ComposedPrompt("a woman in the park", {"mia": ((0, 7),)}), seed=5),),
        negative_prompt="",
        steps=2,
        guidance_scale=4.0,
        solver="ddim",
        width=128,
        height=128,
        adapter=None,
        identities=known,
        identity_adapter=adapter,
    )
    state = denoiser.encode(job)
    while not state.done:
        denoiser.step([state])
    return denoiser.decode(state, [0])[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_changes_the_picture(denoiser: Denoiser, method: str) -> None:
    plain, one, other = (frame(denoiser, *whom) for whom in ((None,), (method, 1), (method, 2)))
    assert one.shape == plain.shape == (128, 128, 3)
    assert (one != plain).any()
    assert (one != other).any()


def test_the_card_names_every_file() -> None:
    card = (OTHERS / "README.md").read_text()
    for file in OTHERS.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in card
