"""IP-Adapter files against diffusers: its converters, its projections, its loaders."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.adapters import with_adapter
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.published.adapters import EMPTY_STATES, method_of, read_adapter
from storyloom_model.identity.published.forms import detect
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.identity.streams import pack_streams
from storyloom_model.low_rank import fuse
from storyloom_model.package import PackageError
from tests.model.published_files import (
    adapter_shapes,
    full_size_unet,
    identity,
    meta_weights,
    nested,
    published_unet,
    random_weights,
)

READS = {
    "ip-adapter": ("character_embedding",),
    "ip-adapter-plus": ("character_states",),
    "ip-adapter-plus-face": ("face_states",),
    "ip-adapter-full-face": ("face_states",),
    "ip-adapter-faceid": ("face",),
    "ip-adapter-faceid-plus": ("face", "face_states"),
    "ip-adapter-faceid-plusv2": ("face", "face_states"),
}
FORMS = {
    "ip-adapter": "ip-adapter",
    "ip-adapter-plus": "ip-adapter-plus",
    "ip-adapter-plus-face": "ip-adapter-plus",
    "ip-adapter-full-face": "ip-adapter-full",
    "ip-adapter-faceid": "ip-adapter-faceid",
    "ip-adapter-faceid-plus": "ip-adapter-faceid-plus",
    "ip-adapter-faceid-plusv2": "ip-adapter-faceid-plus",
}


@pytest.fixture(scope="module")
def unet() -> Any:
    return published_unet()


def weights_of(method: str, unet: Any) -> dict[str, Tensor]:
    return random_weights(adapter_shapes(FORMS[method], attention_layers(unet)))


def read(method: str, unet: Any, empty_states: Tensor | None = None) -> IdentityAdapter:
    empty = {} if empty_states is None else {EMPTY_STATES: empty_states}
    return read_adapter(method, "test", weights_of(method, unet) | empty, unet)


def in_diffusers(method: str, unet: Any) -> Any:
    """A copy of the UNet into which diffusers has loaded the same file."""
    loaded = copy.deepcopy(unet)
    loaded._load_ip_adapter_weights([nested(weights_of(method, unet))], low_cpu_mem_usage=False)
    return loaded


def diffusers_tokens(method: str, unet: Any, features: IdentityFeatures) -> Tensor:
    """The tokens that diffusers makes of the references, [1, references * n, D]."""
    projection = in_diffusers(method, unet).encoder_hid_proj
    values = [[getattr(one, field) for one in features.references] for field in READS[method]]
    inputs = [torch.stack([torch.from_numpy(one) for one in column])[None] for column in values]
    if len(inputs) == 2:
        layer = projection.image_projection_layers[0]
        layer.clip_embeds = inputs[1]
        layer.shortcut = method.endswith("v2")
    tokens: Tensor = projection([inputs[0]])[0]
    return tokens.flatten(1, 2)


@pytest.mark.parametrize("method", READS)
@torch.inference_mode()
def test_tokens_are_those_that_diffusers_makes(method: str, unet: Any) -> None:
    features = IdentityFeatures("test", (*identity(1).references, *identity(2).references))
    (stream,) = read(method, unet).maker.streams({"mia": CharacterIdentity(features, scale=0.7)})
    torch.testing.assert_close(stream.tokens[None], diffusers_tokens(method, unet, features), atol=1e-4, rtol=1e-4)
    assert (stream.owner, stream.scale) == ("mia", 0.7)


@pytest.mark.parametrize("method", READS)
def test_layers_have_the_weights_that_diffusers_gives_them(method: str, unet: Any) -> None:
    processors = in_diffusers(method, unet).attn_processors.values()
    theirs = [one for one in processors if hasattr(one, "to_k_ip")]
    ours = read(method, unet).layers
    assert len(ours) == len(theirs) > 1
    for layer, processor in zip(ours, theirs, strict=True):
        assert torch.equal(layer.to_k, processor.to_k_ip[0].weight)
        assert torch.equal(layer.to_v, processor.to_v_ip[0].weight)


@torch.inference_mode()
def test_a_whole_file_makes_the_unet_say_what_it_says_in_diffusers(unet: Any) -> None:
    """FaceID-plus version 2: tokens, identity attention and low-rank changes at once, through both UNets."""
    method, features = "ip-adapter-faceid-plusv2", identity(1)
    theirs = in_diffusers(method, unet)
    loras = unet._load_ip_adapter_loras([nested(weights_of(method, unet))])[0]
    theirs.load_lora_adapter(loras, prefix="unet", adapter_name="faceid")
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 64)
    projection = theirs.encoder_hid_proj.image_projection_layers[0]
    reference = features.references[0]
    projection.clip_embeds, projection.shortcut = torch.tensor(reference.face_states)[None, None], True
    face = torch.tensor(reference.face)[None, None]
    expected = theirs(latents, 500, text, added_cond_kwargs={"image_embeds": [face]}).sample

    adapter = read(method, unet)
    ours = with_adapter(unet, fuse(unet, [(adapter.low_rank, 1.0)]), method)
    install_story_attention(ours)
    streams = adapter.maker.streams({"mia": CharacterIdentity(features)})
    seen = pack_streams([streams], ["mia"], scale=adapter.scale).project(adapter.layers)
    story = StoryAttention(GroupLayout((1,)), (8, 8), torch.ones(1, 1, 7), identity=seen)
    found = ours(latents, 500, text, cross_attention_kwargs={"story": story}).sample
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - unet(latents, 500, text).sample).abs().max() > 1e-2


@torch.inference_mode()
def test_low_rank_changes_are_those_that_diffusers_fuses(unet: Any) -> None:
    changed = copy.deepcopy(unet)
    loras = changed._load_ip_adapter_loras([nested(weights_of("ip-adapter-faceid", unet))])[0]
    changed.load_lora_adapter(loras, prefix="unet", adapter_name="faceid")
    changed.fuse_lora()
    fused = {
        name.replace(".base_layer", ""): value for name, value in changed.state_dict().items() if "lora_" not in name
    }
    changes = read("ip-adapter-faceid", unet).low_rank
    assert len(changes) == 4 * len(attention_layers(unet))
    for name, value in unet.state_dict().items():
        change = changes.get(name)
        expected = value if change is None else value + change.scale * change.up @ change.down
        torch.testing.assert_close(fused[name], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", READS)
@torch.inference_mode()
def test_the_negative_prompt_gets_an_empty_picture(method: str, unet: Any) -> None:
    empty = torch.randn(5, 48, generator=torch.Generator().manual_seed(4))
    zeros = {field: 0 * getattr(identity().references[0], field) for field in READS[method]}
    nothing = identity(**zeros | ({"face_states": empty.numpy(), "character_states": empty.numpy()}))
    if method == "ip-adapter":
        nothing = identity(**zeros)
    cast = {"mia": CharacterIdentity(IdentityFeatures("test", (*identity(1).references, *identity(2).references)))}
    (negative,) = read(method, unet, empty).maker.negative_streams(cast)
    (positive,) = read(method, unet, empty).maker.streams(cast)
    once = diffusers_tokens(method, unet, nothing)[0]
    torch.testing.assert_close(negative.tokens, torch.cat([once, once]), atol=1e-4, rtol=1e-4)
    assert negative.tokens.shape == positive.tokens.shape


@pytest.mark.parametrize("base", ["SD 1.5", "SDXL"])
@pytest.mark.parametrize("method", READS)
def test_full_size_files_fit(base: str, method: str) -> None:
    full = full_size_unet(base)
    layers = attention_layers(full)
    embedding = 1024 if base == "SD 1.5" else 1280
    weights = meta_weights(adapter_shapes(FORMS[method], layers, states=1280, embedding=embedding, rank=128))
    assert detect(weights) == FORMS[method]
    adapter = read_adapter(method, "test", weights, full)
    assert len(adapter.layers) == {"SD 1.5": 16, "SDXL": 70}[base]
    assert len(adapter.low_rank) == ({"SD 1.5": 128, "SDXL": 560}[base] if "faceid" in method else 0)


def test_a_file_for_another_base_says_so() -> None:
    weights = meta_weights(adapter_shapes("ip-adapter", attention_layers(full_size_unet("SDXL"))))
    with pytest.raises(PackageError, match=r"is for SDXL \(2048\), the package is SD 1.5 \(768\)"):
        read_adapter("ip-adapter", "test", weights, full_size_unet("SD 1.5"))


def test_a_file_of_another_form_says_which(unet: Any) -> None:
    with pytest.raises(PackageError, match="form ip-adapter-faceid, not ip-adapter-plus; its method is ip-adapter-fac"):
        read_adapter("ip-adapter-plus", "test", weights_of("ip-adapter-faceid", unet), unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ip_adapter.1.to_k_ip.weight": None}, "needs 1.to_k_ip.weight and 1.to_v_ip.weight of 32x64"),
        ({"ip_adapter.99.to_k_ip.weight": torch.zeros(1)}, "no place for: 99.to_k_ip.weight"),
        ({"image_proj.extra": torch.zeros(1)}, "extra"),
        ({"image_proj.norm.bias": None}, "norm.bias"),
        ({"unet.conv_in.weight": torch.zeros(1)}, "does not know: unet.conv_in.weight"),
    ],
)
def test_a_file_with_other_weights_says_which(unet: Any, change: dict[str, Tensor | None], message: str) -> None:
    changed = weights_of("ip-adapter", unet) | change
    weights = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(PackageError, match=message):
        read_adapter("ip-adapter", "test", weights, unet)


def test_no_adapter_at_all_lists_what_is_there() -> None:
    with pytest.raises(PackageError, match=r"no adapter in a form that is known .* it has model.weight"):
        detect({"model.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("file", "method"),
    [
        ("ip-adapter_sd15.safetensors", "ip-adapter"),
        ("ip-adapter_sdxl_vit-h.bin", "ip-adapter"),
        ("ip-adapter-plus_sd15.bin", "ip-adapter-plus"),
        ("ip-adapter-plus-face_sdxl_vit-h.bin", "ip-adapter-plus-face"),
        ("ip-adapter-full-face_sd15.bin", "ip-adapter-full-face"),
        ("ip-adapter-faceid_sdxl.bin", "ip-adapter-faceid"),
        ("ip-adapter-faceid-plus_sd15.bin", "ip-adapter-faceid-plus"),
        ("ip-adapter-faceid-plusv2_sdxl.bin", "ip-adapter-faceid-plusv2"),
    ],
)
def test_published_names_tell_the_method(file: str, method: str, unet: Any) -> None:
    assert method_of(detect(weights_of(method, unet)), file) == method


@torch.inference_mode()
def test_keep_and_blend(unet: Any) -> None:
    maker = read("ip-adapter-plus", unet).maker
    one, two = identity(1), identity(2)

    def tokens(character: CharacterIdentity) -> Tensor:
        return maker.streams({"mia": character})[0].tokens

    swapped = identity(1, character_states=one.references[0].face_states)
    assert torch.equal(tokens(CharacterIdentity(one, keep=frozenset({"face"}))), tokens(CharacterIdentity(swapped)))
    half = tokens(CharacterIdentity(one, blend=two, blend_weight=0.5))
    torch.testing.assert_close(half, (tokens(CharacterIdentity(one)) + tokens(CharacterIdentity(two))) / 2)


def test_what_an_adapter_cannot_do_is_said(unet: Any) -> None:
    maker = read("ip-adapter-faceid", unet).maker
    with pytest.raises(FeaturesError, match="no reference of mia shows the face"):
        maker.streams({"mia": CharacterIdentity(identity(face=None))})
    with pytest.raises(FeaturesError, match="mia keeps clothes, and this adapter takes over nothing but the face"):
        maker.streams({"mia": CharacterIdentity(identity(), keep=frozenset({"clothes"}))})
