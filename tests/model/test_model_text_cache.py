"""Keys and values of the text: made once per story, and the same to the bit as made anew in every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention, text_keys_values
from storyloom_model.denoiser import Denoiser
from tests.model.tiny import tiny_job, tiny_unet

ROWS, TOKENS, SIZE = 4, 10, (8, 8)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tells_a_story", [True, False])
@torch.no_grad()
def test_a_pass_with_them_is_bitwise_the_pass_without(tells_a_story: bool) -> None:
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    install_story_attention(unet)
    latents, text, times = draw(0, ROWS, 4, *SIZE), draw(1, ROWS, TOKENS, 32), torch.full((ROWS,), 500.0)
    marks = torch.zeros(ROWS, 1, TOKENS, dtype=torch.bool)
    marks[:, 0, 2:5] = True
    outputs = []
    for kept in ({}, {"text": text_keys_values(unet, text)}):
        story = {"story": StoryAttention(GroupLayout((ROWS,)), SIZE, marks)} if tells_a_story else {}
        # Their text itself no longer matters.
        seen = torch.zeros_like(text) if kept else text
        options: Any = story | kept or None
        outputs.append(unet(latents, times, seen, cross_attention_kwargs=options, return_dict=False)[0])
    assert torch.equal(*outputs)


def test_only_encoding_projects_the_text(denoiser: Denoiser) -> None:
    projected: list[int] = []
    unet = denoiser._unets["amsa-mask"]
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2.to_k")]
    hooks = [layer.register_forward_hook(lambda *_: projected.append(1)) for layer in layers]
    try:
        state = denoiser.encode(tiny_job(2))
        assert len(projected) == len(layers) == len(state.text_keys_values)
        while not state.done:
            denoiser.step([state])
        assert len(projected) == len(layers)
    finally:
        for hook in hooks:
            hook.remove()


def test_stories_account_for_what_they_hold(denoiser: Denoiser) -> None:
    small, large = (denoiser.encode(tiny_job(frames, solver="unipc")) for frames in (1, 2))
    assert large.nbytes > 2 * small.nbytes  # Twice as much of all, and Bo's tokens too.
    cached = sum(one.nbytes for pair in small.text_keys_values for one in pair)
    # Two rows of 77 tokens in float32, keys and values of as many channels as each layer has.
    unet = denoiser._unets["amsa-mask"]
    widths = [module.out_features for name, module in unet.named_modules() if name.endswith("attn2.to_k")]
    assert cached == 2 * 77 * 4 * 2 * sum(widths)
    assert small.nbytes > cached
    before = large.nbytes
    denoiser.step([large])
    maps = large.previous_maps
    assert maps is not None
    # The maps, and what UniPC keeps: its last sample and one clean prediction.
    assert large.nbytes == before + maps.nbytes + 2 * large.latents.nbytes
