"""AMSA inside a real UNet: what each frame can see, and what it cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.maps import ForegroundRule
from tests.model.tiny import tiny_unet

FRAMES, CAST, TOKENS, SIZE = 3, 2, 10, (8, 8)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    unet = tiny_unet().eval().requires_grad_(False)
    install_story_attention(unet)
    return unet


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int) -> Tensor:
    """Character 0 has tokens 1 to 3, character 1 tokens 5 and 6."""
    mask = torch.zeros(rows, CAST, TOKENS, dtype=torch.bool)
    mask[:, 0, 1:4] = mask[:, 1, 5:7] = True
    return mask


def run(unet: Any, latents: Tensor, text: Tensor, story: StoryAttention | None) -> Tensor:
    times = torch.full((len(latents),), 500.0)
    kwargs = None if story is None else {"story": story}
    out: Tensor = unet(latents, times, encoder_hidden_states=text, cross_attention_kwargs=kwargs, return_dict=False)[0]
    return out


def first_self_attention(unet: Any) -> Any:
    return unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1


def test_without_a_story_nothing_changes() -> None:
    torch.manual_seed(1)
    plain = tiny_unet().eval()
    ours = copy.deepcopy(plain)
    install_story_attention(ours)
    latents, text = draw(0, FRAMES, 4, *SIZE), draw(1, FRAMES, TOKENS, 32)
    with torch.no_grad():
        expected = run(plain, latents, text, None)
        assert torch.equal(run(ours, latents, text, None), expected)
        # Maps are taken, but no frame sees another: the same pictures.
        story = StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES), cross_frame=False)
        torch.testing.assert_close(run(ours, latents, text, story), expected, atol=1e-5, rtol=0)
        alone = StoryAttention(GroupLayout((1,) * FRAMES), SIZE, tokens(FRAMES))
        torch.testing.assert_close(run(ours, latents, text, alone), expected, atol=1e-5, rtol=0)


def test_every_cross_attention_layer_leaves_a_map(unet: Any) -> None:
    story = StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES))
    run(unet, draw(0, FRAMES, 4, *SIZE), draw(1, FRAMES, TOKENS, 32), story)
    layers = [name for name in unet.attn_processors if "attn2" in name]
    assert len(story.layer_maps) == len(layers)
    assert {layer.size for layer in story.layer_maps} == {(8, 8), (4, 4)}
    assert all(layer.values.shape == (FRAMES, CAST, layer.size[0] * layer.size[1]) for layer in story.layer_maps)
    assert story.average_maps().shape == (FRAMES, CAST, *SIZE)


def test_frames_share_when_they_may(unet: Any) -> None:
    latents, text = draw(0, FRAMES, 4, *SIZE), draw(1, FRAMES, TOKENS, 32)
    together = run(unet, latents, text, StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES)))
    apart = run(unet, latents, text, StoryAttention(GroupLayout((1,) * FRAMES), SIZE, tokens(FRAMES)))
    assert float((together - apart).abs().max()) > 1e-3


def test_on_the_first_step_the_first_layer_sees_only_its_own_frame(unet: Any) -> None:
    attention, hidden = first_self_attention(unet), draw(2, FRAMES, 64, 32)
    story = StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES))
    assert torch.equal(attention(hidden, story=story), attention(hidden))
    seen = StoryAttention(
        GroupLayout((FRAMES,)), SIZE, tokens(FRAMES), previous_maps=draw(3, FRAMES, CAST, *SIZE).abs()
    )
    assert not torch.allclose(attention(hidden, story=seen), attention(hidden), atol=1e-4)


def test_only_the_foreground_of_other_frames_is_seen(unet: Any) -> None:
    attention, hidden = first_self_attention(unet), draw(2, FRAMES, 64, 32)
    foreground = torch.zeros(FRAMES, *SIZE)
    foreground[:, 2:5, 3:6] = 1
    inside = foreground[0].flatten().bool()

    def attend(values: Tensor) -> Tensor:
        story = StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES), first_mask=foreground)
        out: Tensor = attention(values, story=story)
        return out

    before = attend(hidden)
    background_changed, foreground_changed = hidden.clone(), hidden.clone()
    background_changed[1, ~inside] += 1.0
    foreground_changed[1, inside] += 1.0
    assert torch.equal(attend(background_changed)[[0, 2]], before[[0, 2]])
    assert not torch.allclose(attend(foreground_changed)[0], before[0], atol=1e-4)
    assert not torch.allclose(attend(background_changed)[1], before[1], atol=1e-4)


def test_groups_in_one_batch_do_not_see_each_other(unet: Any) -> None:
    latents, text = draw(0, 5, 4, *SIZE), draw(1, 5, TOKENS, 32)
    both = run(unet, latents, text, StoryAttention(GroupLayout((3, 2)), SIZE, tokens(5), cross_frame=(True, False)))
    sharing = run(unet, latents[:3], text[:3], StoryAttention(GroupLayout((3,)), SIZE, tokens(3)))
    torch.testing.assert_close(both[:3], sharing, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[3:], run(unet, latents[3:], text[3:], None), atol=1e-5, rtol=0)


def test_negative_rows_take_the_masks_of_their_prompts(unet: Any) -> None:
    """What the text of a negative row would say about the characters has no say."""
    latents, text = draw(0, 4, 4, *SIZE), draw(1, 4, TOKENS, 32)

    def run_with(token_mask: Tensor) -> StoryAttention:
        story = StoryAttention(GroupLayout((2, 2)), SIZE, token_mask, mask_rows=(2, 3, 2, 3))
        outputs.append(run(unet, latents, text, story))
        return story

    outputs: list[Tensor] = []
    with_negative = tokens(4)
    without_negative = with_negative.clone()
    without_negative[:2] = False
    story = run_with(with_negative)
    run_with(without_negative)
    assert torch.equal(*outputs)
    assert story.average_maps().shape == (2, CAST, *SIZE)


def test_a_row_in_which_nobody_is_gives_nothing_away(unet: Any) -> None:
    attention, hidden = first_self_attention(unet), draw(2, 2, 64, 32)
    previous = draw(3, 2, CAST, *SIZE).abs()
    previous[1] = 0
    story = StoryAttention(GroupLayout((2,)), SIZE, tokens(2), previous_maps=previous)
    out = attention(hidden, story=story)
    torch.testing.assert_close(out[0], attention(hidden)[0], atol=1e-6, rtol=0)
    assert not torch.allclose(out[1], attention(hidden)[1], atol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (6, 10), (5, 7)])
def test_latents_need_not_be_square_nor_even(unet: Any, size: tuple[int, int]) -> None:
    story = StoryAttention(GroupLayout((2,)), size, tokens(2), previous_maps=draw(3, 2, CAST, *size).abs())
    out = run(unet, draw(0, 2, 4, *size), draw(1, 2, TOKENS, 32), story)
    assert torch.isfinite(out).all()
    assert {layer.size for layer in story.layer_maps} == {size, (-(-size[0] // 2), -(-size[1] // 2))}


def test_masks_train_through_the_maps() -> None:
    torch.manual_seed(0)
    unet = tiny_unet().requires_grad_(False)
    install_story_attention(unet)
    projection = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.requires_grad_()
    story = StoryAttention(GroupLayout((FRAMES,)), SIZE, tokens(FRAMES), first_mask=torch.ones(FRAMES, *SIZE))
    run(unet, draw(0, FRAMES, 4, *SIZE), draw(1, FRAMES, TOKENS, 32), story)
    story.layer_maps[0].values.square().sum().backward()  # type: ignore[no-untyped-call]
    assert projection.grad is not None
    assert float(projection.grad.abs().max()) > 0


def test_a_fixed_rule_is_used(unet: Any) -> None:
    attention, hidden = first_self_attention(unet), draw(2, 2, 64, 32)
    previous = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(2, CAST, 8, 8)

    def visible(value: float) -> int:
        rule = ForegroundRule("fixed", value)
        mask = StoryAttention(GroupLayout((2,)), SIZE, tokens(2), previous_maps=previous, rule=rule).mask(64)
        assert mask is not None
        return int(mask[0].sum())

    assert attention(hidden).shape == hidden.shape
    assert visible(0.5) == 32
    assert visible(0.9) == 7


def test_what_does_not_fit_is_refused(unet: Any) -> None:
    with pytest.raises(ValueError, match="the layout has 3 rows"):
        StoryAttention(GroupLayout((3,)), SIZE, tokens(2))
    with pytest.raises(ValueError, match="previous_maps must have 3 rows"):
        StoryAttention(GroupLayout((3,)), SIZE, tokens(3), previous_maps=torch.zeros(2, CAST, *SIZE))
    with pytest.raises(ValueError, match="no level of a 8 by 8 latent has 65 positions"):
        StoryAttention(GroupLayout((1,)), SIZE, tokens(1)).mask(65)
    unconditional: Any = UNet2DModel
    with pytest.raises(ValueError, match="not a plain transformer attention"):
        install_story_attention(
            unconditional(
                block_out_channels=(32, 64),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )
        )
