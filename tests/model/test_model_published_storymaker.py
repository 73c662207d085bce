"""StoryMaker's file against the method's formulas, written out over the file's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.published.adapters import method_of, read_adapter
from storyloom_model.identity.published.forms import detect
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes
from storyloom_model.package import PackageError
from tests.model.published_files import (
    DEPTH,
    FACE,
    HEAD,
    STATES,
    full_size_unet,
    identity,
    meta_weights,
    published_unet,
    random_weights,
    storymaker_shapes,
)

WIDTH = 64


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(storymaker_shapes(attention_layers(published_unet(WIDTH))))


@pytest.fixture(scope="module")
def adapter(weights: dict[str, Tensor]) -> IdentityAdapter:
    return read_adapter("storymaker", "test", weights, published_unet(WIDTH))


class Formula:
    """Equations 4 to 7 of the paper on the weights of a file, one character at a time."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = {name.removeprefix("image_proj_model."): value for name, value in weights.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def perceiver(self, name: str, queries: Tensor, states: Tensor) -> Tensor:
        x = self.linear(f"{name}.proj_in", states)
        for layer in range(DEPTH):
            attention, feed_forward = f"{name}.layers.{layer}.0", f"{name}.layers.{layer}.1"
            own = self.norm(f"{attention}.norm2", queries)
            seen = torch.cat([self.norm(f"{attention}.norm1", x), own])
            q = self.linear(f"{attention}.to_q", own)
            k, v = self.linear(f"{attention}.to_kv", seen).chunk(2, dim=1)
            heads = [
                torch.softmax(a @ b.T / HEAD**0.5, dim=1) @ c
                for a, b, c in zip(q.split(HEAD, 1), k.split(HEAD, 1), v.split(HEAD, 1), strict=True)
            ]
            queries = queries + self.linear(f"{attention}.to_out", torch.cat(heads, dim=1))
            hidden = F.gelu(self.linear(f"{feed_forward}.1", self.norm(f"{feed_forward}.0", queries)))
            queries = queries + self.linear(f"{feed_forward}.3", hidden)
        return self.norm(f"{name}.norm_out", self.linear(f"{name}.proj_out", queries))

    def face(self, face: Tensor, states: Tensor) -> Tensor:
        coarse = self.linear("proj.2", F.gelu(self.linear("proj.0", face))).reshape(4, WIDTH)
        coarse = self.norm("norm", coarse)
        return coarse + self.perceiver("perceiver_resampler", coarse, states)

    def appearance(self, states: Tensor) -> Tensor:
        return self.perceiver("resample", self._weights["resample.latents"][0], states)

    def frame(self, characters: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Of the tokens of each character's face and appearance."""
        blocks = [self._weights["bg_embed"][0]]
        for place, parts in enumerate(characters):
            tokens = torch.cat(parts) + self._weights["pos_embed"][place]
            blocks.append(tokens + self.norm("norm_out", self.linear("proj_out", tokens)))
        return torch.cat(blocks)

    def character(self, features: IdentityFeatures) -> tuple[Tensor, Tensor]:
        face, face_states, character_states = arrays(features)
        return self.face(face, face_states), self.appearance(character_states)


def arrays(features: IdentityFeatures) -> tuple[Tensor, Tensor, Tensor]:
    (one,) = features.references
    return torch.tensor(one.face), torch.tensor(one.face_states), torch.tensor(one.character_states)


def tokens_of(adapter: IdentityAdapter, *characters: CharacterIdentity) -> Tensor:
    (stream,) = adapter.maker.streams({f"character-{place}": one for place, one in enumerate(characters)})
    assert stream.owner is None
    return stream.tokens


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
@torch.inference_mode()
def test_tokens_are_those_of_the_formulas(adapter: IdentityAdapter, weights: dict[str, Tensor], count: int) -> None:
    features = [identity(seed) for seed in range(count)]
    formula = Formula(weights)
    found = tokens_of(adapter, *map(CharacterIdentity, features))
    assert found.shape == (20 * (count + 1), WIDTH)
    close(found, formula.frame([formula.character(one) for one in features]))
    characters = zip(*map(arrays, features), strict=True)
    close(adapter.maker.resampler(*map(torch.stack, characters)), found)  # type: ignore[operator]


@torch.inference_mode()
def test_the_negative_prompt_sees_zeros_and_the_background(
    adapter: IdentityAdapter, weights: dict[str, Tensor]
) -> None:
    formula = Formula(weights)
    nothing = formula.face(torch.zeros(FACE), torch.zeros(5, STATES)), formula.appearance(torch.zeros(5, STATES))
    cast = {"mia": CharacterIdentity(identity(1), scale=1.0), "bo": CharacterIdentity(identity(2), scale=0.5)}
    (negative,) = adapter.maker.negative_streams(cast)
    close(negative.tokens, formula.frame([nothing, nothing]))
    assert negative.scale == 0.75
    assert not adapter.maker.streams({})
    assert not adapter.maker.negative_streams({})


@torch.inference_mode()
def test_uses(adapter: IdentityAdapter, weights: dict[str, Tensor]) -> None:
    """Stylised, clothes alone, other clothes, and half one character, half another."""
    formula, features, other = Formula(weights), identity(1), identity(2)
    face, appearance = formula.character(features)
    other_face, other_appearance = formula.character(other)

    stylised = tokens_of(adapter, CharacterIdentity(features, keep=frozenset({"face"})))
    close(stylised, formula.frame([(face, 0 * appearance)]))
    dressed = tokens_of(adapter, CharacterIdentity(features, keep=frozenset({"clothes", "hair"})))
    close(dressed, formula.frame([(0 * face, appearance)]))

    clothes = identity(2, role="clothes", face=None, face_states=None).references
    swapped = CharacterIdentity(IdentityFeatures("test", (*features.references, *clothes)))
    close(tokens_of(adapter, swapped), formula.frame([(face, other_appearance)]))

    blended = tokens_of(adapter, CharacterIdentity(features, blend=other, blend_weight=0.25))
    parts = 0.75 * face + 0.25 * other_face, 0.75 * appearance + 0.25 * other_appearance
    close(blended, formula.frame([parts]))


def test_what_the_references_lack_is_said(adapter: IdentityAdapter) -> None:
    with pytest.raises(FeaturesError, match="no reference of character-0 shows a face; add one"):
        tokens_of(adapter, CharacterIdentity(identity(face=None)))
    with pytest.raises(FeaturesError, match="no reference of character-0 shows more than the face"):
        tokens_of(adapter, CharacterIdentity(identity(character_states=None)))
    with pytest.raises(FeaturesError, match="tells at most 3 characters apart"):
        tokens_of(adapter, *[CharacterIdentity(identity())] * 4)


def test_layers_and_low_rank_changes_are_the_files(adapter: IdentityAdapter, weights: dict[str, Tensor]) -> None:
    layers = attention_layers(published_unet(WIDTH))
    cross = [index for index, layer in enumerate(layers) if layer.context is not None]
    assert adapter.scale == 0.8
    for index, layer in zip(cross, adapter.layers, strict=True):
        assert torch.equal(layer.to_k, weights[f"ip_adapter.{index}.to_k_ip.weight"])
        assert torch.equal(layer.to_v, weights[f"ip_adapter.{index}.to_v_ip.weight"])
    parameters = dict(published_unet(WIDTH).named_parameters())
    assert len(adapter.low_rank) == 4 * len(layers)
    for name, change in adapter.low_rank.items():
        assert (change.up @ change.down).shape == parameters[name].shape
        assert change.scale == 0.8
    out = adapter.low_rank[f"{layers[1].name}.to_out.0.weight"]
    assert torch.equal(out.down, weights["ip_adapter.1.to_out_lora.down.weight"])


def test_the_full_size_file_fits_sdxl_and_nothing_else() -> None:
    sdxl = full_size_unet("SDXL")
    published = meta_weights(storymaker_shapes(attention_layers(sdxl), states=1280, rank=128))
    assert method_of(detect(published), "mask.bin") == "storymaker"
    found = read_adapter("storymaker", "test", published, sdxl)
    assert (len(found.layers), len(found.low_rank)) == (70, 560)
    with pytest.raises(PackageError, match=r"is for SDXL \(2048\), the package is SD 1.5 \(768\)"):
        read_adapter("storymaker", "test", published, full_size_unet("SD 1.5"))


def test_a_fresh_resampler_has_sizes_of_its_own_and_starts_as_nothing_added() -> None:
    sizes = StoryMakerSizes(width=32, states=24, character_width=16, character_heads=2, depth=2, head_width=8)
    resampler = StoryMakerResampler(sizes)
    assert StoryMakerSizes.of(resampler.state_dict(), head_width=8) == sizes
    characters = torch.randn(2, 3, sizes.tokens, 32)
    placed = resampler.place(characters)
    assert torch.equal(placed, torch.cat([torch.zeros(2, sizes.tokens, 32), characters.flatten(1, 2)], dim=1))


def test_the_published_keys_load_strictly() -> None:
    with torch.device("meta"):
        resampler: Any = StoryMakerResampler(StoryMakerSizes())
    shapes = storymaker_shapes(attention_layers(full_size_unet("SDXL")), states=1280, rank=128)
    own = {f"image_proj_model.{name}": tuple(value.shape) for name, value in resampler.state_dict().items()}
    assert own == {name: shape for name, shape in shapes.items() if name.startswith("image_proj_model.")}
