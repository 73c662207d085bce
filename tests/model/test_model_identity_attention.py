"""Identity streams inside a real UNet: what they add, where, and what trains through them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.identity.adapter import LayerProjections, Stream
from storyloom_model.identity.streams import IdentityStreams, pack_streams
from tests.model.tiny import tiny_unet

ROWS, TOKENS, SIZE, WIDTH = 3, 10, (8, 8), 32
CAST = ("mia", "bo")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    unet = tiny_unet().eval().requires_grad_(False)
    install_story_attention(unet)
    return unet


def layers_of(unet: Any, seed: int = 5) -> list[LayerProjections]:
    """Random projections for every cross-attention layer; their keys and values are about as large as the text's."""
    widths = [module.to_k.out_features for name, module in unet.named_modules() if name.endswith("attn2")]
    return [
        LayerProjections(0.2 * draw(seed + place, width, WIDTH), 0.2 * draw(seed + 100 + place, width, WIDTH))
        for place, width in enumerate(widths)
    ]


def marks(present: Sequence[Sequence[int]] = ((0, 1),) * ROWS) -> Tensor:
    """Mia has tokens 1 to 3, Bo tokens 5 and 6, in the rows that they are in."""
    mask = torch.zeros(len(present), len(CAST), TOKENS, dtype=torch.bool)
    for row, places in enumerate(present):
        for place in places:
            mask[row, place, (slice(1, 4), slice(5, 7))[place]] = True
    return mask


def story(identity: IdentityStreams | None, mask: Tensor | None = None, **options: Any) -> StoryAttention:
    token_mask = marks() if mask is None else mask
    return StoryAttention(GroupLayout((len(token_mask),)), SIZE, token_mask, identity=identity, **options)


def run(unet: Any, seen: StoryAttention | None, rows: int = ROWS) -> Tensor:
    times = torch.full((rows,), 500.0)
    kwargs = None if seen is None else {"story": seen}
    text = draw(1, ROWS, TOKENS, WIDTH)[:rows]
    out: Tensor = unet(draw(0, ROWS, 4, *SIZE)[:rows], times, text, cross_attention_kwargs=kwargs, return_dict=False)[0]
    return out


def stream(seed: int, owner: str | None, *, length: int = 4, scale: float = 1.0) -> Stream:
    return Stream(draw(seed, length, WIDTH), owner, scale)


def test_one_stream_is_what_ip_adapter_does(unet: Any) -> None:
    """diffusers' processors on the same weights, through the whole UNet."""
    layers = layers_of(unet)
    tokens = draw(9, ROWS, 4, WIDTH)
    packed = pack_streams([[Stream(one, None, 0.7)] for one in tokens], CAST)
    ours = run(unet, story(packed.project(layers), cross_frame=False))

    theirs = copy.deepcopy(unet)
    remaining = iter(layers)
    processors: dict[str, Any] = {}
    for name in theirs.attn_processors:
        processors[name] = AttnProcessor2_0()
        if "attn2" in name:
            one = next(remaining)
            processor = IPAdapterAttnProcessor2_0(one.to_k.shape[0], WIDTH, (4,), 0.7)
            processor.to_k_ip[0].weight.data, processor.to_v_ip[0].weight.data = one.to_k, one.to_v
            processors[name] = processor
    theirs.set_attn_processor(processors)

    class AsTheyAre(nn.Module):
        def forward(self, embeddings: Tensor) -> list[Tensor]:
            return [embeddings]

    theirs.encoder_hid_proj = AsTheyAre()
    theirs.register_to_config(encoder_hid_dim_type="ip_image_proj")
    expected = theirs(
        draw(0, ROWS, 4, *SIZE), torch.full((ROWS,), 500.0), draw(1, ROWS, TOKENS, WIDTH),
        added_cond_kwargs={"image_embeds": tokens[:, None]}, return_dict=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert float((ours - run(unet, story(None, cross_frame=False))).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "rows",
    [
        [[stream(2, "mia", scale=0.0)]] * ROWS,
        [[Stream(torch.zeros(0, WIDTH), "mia"), stream(3, "bo", scale=0.0)]] * ROWS,
    ],
)
def test_streams_that_count_nothing_change_nothing(unet: Any, rows: list[list[Stream]]) -> None:
    found = run(unet, story(pack_streams(rows, CAST).project(layers_of(unet))))
    assert torch.equal(found, run(unet, story(None)))


def test_a_row_has_its_own_streams_and_no_other(unet: Any) -> None:
    """Rows with different numbers and lengths of streams, and one with none, as if each were alone."""
    rows = [[stream(2, "mia", length=5), stream(3, "bo", length=2, scale=0.5)], [], [stream(4, None, length=3)]]
    layers = layers_of(unet)
    together = run(unet, story(pack_streams(rows, CAST).project(layers), cross_frame=False))
    for row, own in enumerate(rows):
        packed = pack_streams([own if other == row else [] for other in range(ROWS)], CAST) if own else None
        alone = run(unet, story(None if packed is None else packed.project(layers), cross_frame=False))
        torch.testing.assert_close(together[row], alone[row], atol=1e-5, rtol=0)
    swapped = [rows[2], rows[0], rows[1]]
    other = run(unet, story(pack_streams(swapped, CAST).project(layers), cross_frame=False))
    assert all(float((other[row] - together[row]).abs().max()) > 1e-3 for row in range(ROWS))


def test_a_stream_acts_where_its_owner_is(unet: Any) -> None:
    """In a layer's output, hence before the picture's parts mix."""
    masks = torch.zeros(1, 2, *SIZE)
    masks[0, 0, :, :4] = masks[0, 1, :, 4:] = 1
    left = masks[0, 0].flatten().bool()
    layers = layers_of(unet)
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    hidden, text = draw(2, 1, 64, 32), draw(3, 1, TOKENS, WIDTH)

    def attend(streams: list[Stream]) -> Tensor:
        packed = pack_streams([streams], CAST).project(layers)
        out: Tensor = attention(hidden, text, story=story(packed, marks([(0, 1)]), region_masks=masks))[0]
        return out

    both = attend([stream(2, "mia"), stream(3, "bo")])
    other_mia = attend([stream(4, "mia"), stream(3, "bo")])
    other_bo = attend([stream(2, "mia"), stream(4, "bo")])
    assert torch.equal(both[~left], other_mia[~left])
    assert torch.equal(both[left], other_bo[left])
    assert float((both - other_mia)[left].abs().max()) > 1e-3
    assert float((both - other_bo)[~left].abs().max()) > 1e-3


def test_nobody_acts_in_a_row_that_it_is_not_in(unet: Any) -> None:
    rows = [[stream(2, "mia"), stream(3, "bo")]] * ROWS
    without_bo = [[stream(2, "mia")]] * ROWS
    layers, mask = layers_of(unet), marks([(0,)] * ROWS)
    found, expected = (run(unet, story(pack_streams(one, CAST).project(layers), mask)) for one in (rows, without_bo))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_regions_are_of_the_maps_before_and_of_the_step_before(unet: Any) -> None:
    packed = pack_streams([[stream(2, "mia"), stream(3, "bo"), stream(4, None)]] * ROWS, CAST).project(layers_of(unet))
    first = story(packed).regions(64)
    assert first is not None
    assert torch.equal(first[0], torch.tensor([0.5, 0.5, 1.0])[:, None].expand(-1, 64))
    maps = draw(7, ROWS, 2, *SIZE).abs()
    later = story(packed, previous_maps=maps).regions(64)
    assert later is not None
    torch.testing.assert_close(later[:, 0], (maps[:, 0] ** 2 / (maps**2).sum(1)).flatten(1))
    seen = story(packed, previous_maps=maps)
    seen.record(maps.flip(1).flatten(2))
    now = seen.regions(64)
    assert now is not None
    torch.testing.assert_close(now[:, 1], later[:, 0])


def test_negative_rows_take_the_regions_of_their_prompts(unet: Any) -> None:
    packed = pack_streams([[stream(2, "mia"), stream(3, "bo")]] * 2, CAST).project(layers_of(unet))
    mask, maps = marks([(), (0, 1)]), draw(7, 1, 2, *SIZE).abs()
    seen = StoryAttention(GroupLayout((1, 1)), SIZE, mask, mask_rows=(1, 1), previous_maps=maps, identity=packed)
    regions = seen.regions(64)
    assert regions is not None
    assert torch.equal(regions[0], regions[1])
    torch.testing.assert_close(regions.sum(1), torch.ones(2, 64))


def test_streams_train_and_regions_pass_no_gradient(unet: Any) -> None:
    tokens = draw(2, 4, WIDTH).requires_grad_()
    layers = layers_of(unet)
    weights = [weight.requires_grad_() for one in layers for weight in (one.to_k, one.to_v)]
    rows = [[Stream(tokens, "mia"), stream(3, "bo")]] * ROWS
    seen = story(pack_streams(rows, CAST).project(layers), previous_maps=draw(7, ROWS, 2, *SIZE).abs().requires_grad_())
    regions = seen.regions(64)
    assert regions is not None
    assert not regions.requires_grad
    run(unet, seen).square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in weights)
    assert tokens.grad is not None
    assert float(tokens.grad.abs().max()) > 0
    assert seen.identity_maps == []


def test_attention_on_the_tokens_of_each_block_is_kept_to_train_on(unet: Any) -> None:
    """One softmax over a background and two characters, as StoryMaker has it; rows of fewer tokens have fewer."""
    lengths = (12, 8, 4)
    streams = [Stream(draw(row, length, WIDTH).requires_grad_(), None) for row, length in enumerate(lengths)]
    blocks = torch.zeros(ROWS, 3, 12)
    for block in range(3):
        blocks[:, block, 4 * block : 4 * block + 4] = 1
    seen = story(pack_streams([[one] for one in streams], CAST).project(layers_of(unet), blocks))
    run(unet, seen)
    assert len(seen.identity_maps) == len(layers_of(unet))
    for layer in seen.identity_maps:
        assert layer.values.shape == (ROWS, 3, layer.size[0] * layer.size[1])
        torch.testing.assert_close(layer.values.sum(1), torch.ones_like(layer.values[:, 0]))
        assert not layer.values[1, 2].any()
        assert not layer.values[2, 1:].any()
    torch.stack([layer.values[0, 1].mean() for layer in seen.identity_maps]).sum().backward()  # type: ignore[no-untyped-call]
    gradient = streams[0].tokens.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_streams_are_packed_row_by_row() -> None:
    rows = [[], [stream(2, "bo", length=3, scale=0.5), stream(3, None, length=2)], [stream(4, "mia", length=1)]]
    packed = pack_streams(rows, CAST, scale=2.0)
    assert packed.tokens.shape == (3, 5, WIDTH)
    assert torch.equal(packed.ends, torch.tensor([[0, 0], [3, 5], [1, 1]], dtype=torch.int32))
    assert torch.equal(packed.scale, torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]]))
    assert packed.owner.tolist()[1:] == [[1, -1], [0, -1]]
    assert torch.equal(packed.tokens[1], torch.cat([one.tokens for one in rows[1]]))
    assert not packed.tokens[2, 1:].any()


def test_what_does_not_fit_is_refused(unet: Any) -> None:
    with pytest.raises(ValueError, match=r"streams belong to \['zoe'\], who are not among \['mia', 'bo'\]"):
        pack_streams([[stream(2, "zoe")]], CAST)
    with pytest.raises(ValueError, match="no stream in any row"):
        pack_streams([[], []], CAST)
    packed = pack_streams([[stream(2, "mia")]] * 2, CAST).project(layers_of(unet))
    with pytest.raises(ValueError, match="the layout has 3 rows; got identity streams of 2"):
        story(packed)
    with pytest.raises(ValueError, match="region_masks must have 3 rows"):
        story(None, region_masks=torch.zeros(2, 2, *SIZE))
