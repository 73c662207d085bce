"""IP-Adapter (Ye et al. 2023) for SD 1.5 and SDXL: plain, plus, full, FaceID, FaceID-plus and its second version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from storyloom_model.identity.adapter import IdentityAdapter, LayerProjections, LowRank
from storyloom_model.identity.character_adapter import PartStreams
from storyloom_model.identity.perceiver import Perceiver, PerceiverSizes, Resampler
from storyloom_model.identity.published.forms import Form
from storyloom_model.identity.published.layers import AttentionLayer, read_layers
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.published.parts import loaded, split
from storyloom_model.package import PackageError

_PLAIN_TOKENS = 4
"""Of a picture's embedding; the weights tell only this times the width."""


@dataclass(frozen=True, slots=True)
class Method:
    """A use of a form: files of one form differ in what they were trained to read, which their weights do not tell."""

    form: Form
    reads: tuple[str, ...]
    projection: Callable[[Mapping[str, Tensor]], nn.Module]


class PlainProjection(nn.Module):
    """Some tokens of a picture's projected embedding."""

    def __init__(self, embedding: int, width: int, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self.proj = nn.Linear(embedding, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, embedding] -> [B, tokens, width]."""
        tokens: Tensor = self.norm(self.proj(embedding).unflatten(-1, (self._tokens, -1)))
        return tokens


class FullProjection(nn.Module):
    """A token of each of a picture's hidden states."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(states, states), nn.GELU(), nn.Linear(states, width), nn.LayerNorm(width))

    def forward(self, states: Tensor) -> Tensor:
        """[B, S, states] -> [B, S, width]."""
        tokens: Tensor = self.proj(states)
        return tokens


class FaceProjection(nn.Module):
    """Some tokens of a face's embedding."""

    def __init__(self, face: int, hidden: int, width: int, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self.proj = nn.Sequential(nn.Linear(face, hidden), nn.GELU(), nn.Linear(hidden, tokens * width))
        self.norm = nn.LayerNorm(width)

    def tokens(self, face: Tensor) -> Tensor:
        """[B, face] -> [B, tokens, width]."""
        tokens: Tensor = self.norm(self.proj(face).unflatten(-1, (self._tokens, -1)))
        return tokens

    def forward(self, *inputs: Tensor) -> Tensor:
        """The embeddings [B, face] -> [B, tokens, width]."""
        return self.tokens(*inputs)


class FacePlusProjection(FaceProjection):
    """The face's tokens ask the states of the face crop; the second version adds the tokens as they were."""

    def __init__(self, face: int, hidden: int, tokens: int, sizes: PerceiverSizes, *, shortcut: bool) -> None:
        super().__init__(face, hidden, sizes.width, tokens)
        self._shortcut = shortcut
        self.perceiver_resampler = Perceiver(sizes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The embeddings [B, face] and the states [B, S, states] -> [B, tokens, width]."""
        face, states = inputs
        coarse = self.tokens(face)
        fine: Tensor = self.perceiver_resampler(coarse, states)
        return coarse + fine if self._shortcut else fine


def read_ip_adapter(
    method: str,
    name: str,
    weights: Mapping[str, Tensor],
    layers: Sequence[AttentionLayer],
    empty_states: Tensor | None = None,
) -> IdentityAdapter:
    """Makes an adapter of the weights of a file.

    Args:
        method: of ``METHODS``; the file must have its form.
        name: of the adapter.
        weights: with names that begin with "image_proj." and "ip_adapter.".
        layers: of the UNet that it is for.
        empty_states: see ``ReferenceTokens``.

    Raises:
        PackageError: the file is for another base model, or its weights are not those of the form.
    """
    own = METHODS[method]
    projection, found, low_rank = _read(own, name, weights, layers)
    return IdentityAdapter(name, ReferenceTokens(projection, own.reads, empty_states), found, low_rank=low_rank)


def read_character_adapter(
    form: Form,
    name: str,
    weights: Mapping[str, Tensor],
    layers: Sequence[AttentionLayer],
    empty_states: Tensor | None = None,
) -> IdentityAdapter:
    """Makes a Character-Adapter of an IP-Adapter's file.

    Args:
        form: of the file.
        name, weights, layers, empty_states: see ``read_ip_adapter``.

    Raises:
        PackageError: the file is of a form that reads no whole characters, or see ``read_ip_adapter``.
    """
    if form not in (Form.IP_ADAPTER, Form.IP_ADAPTER_PLUS):
        raise PackageError(
            f"adapter {name} is a file of the form {form}, and Character-Adapter needs one of the form ip-adapter or "
            "ip-adapter-plus"
        )
    projection, found, low_rank = _read(METHODS[form], name, weights, layers)
    maker = PartStreams(projection, states=form == Form.IP_ADAPTER_PLUS, empty_states=empty_states)
    return IdentityAdapter(name, maker, found, low_rank=low_rank)


def _read(
    own: Method, name: str, weights: Mapping[str, Tensor], layers: Sequence[AttentionLayer]
) -> tuple[nn.Module, tuple[LayerProjections, ...], dict[str, LowRank]]:
    image, attention = split(name, weights, "image_proj.", "ip_adapter.")
    projection = loaded(name, own.projection, image)
    return projection, *read_layers(name, attention, layers, _output_width(own.form, image))


def _output_width(form: Form, image: Mapping[str, Tensor]) -> int:
    names = {Form.IP_ADAPTER_PLUS: "norm_out.weight", Form.IP_ADAPTER_FULL: "proj.3.weight"}
    return len(image[names.get(form, "norm.weight")])


def _plain(image: Mapping[str, Tensor]) -> nn.Module:
    outputs, embedding = image["proj.weight"].shape
    return PlainProjection(embedding, outputs // _PLAIN_TOKENS, _PLAIN_TOKENS)


def _full(image: Mapping[str, Tensor]) -> nn.Module:
    width, states = image["proj.2.weight"].shape
    return FullProjection(states, width)


def _plus(image: Mapping[str, Tensor]) -> nn.Module:
    return Resampler(PerceiverSizes.of(image), image["latents"].shape[1])


def _face(image: Mapping[str, Tensor]) -> nn.Module:
    width = len(image["norm.weight"])
    hidden, face = image["proj.0.weight"].shape
    return FaceProjection(face, hidden, width, len(image["proj.2.weight"]) // width)


def _face_plus(image: Mapping[str, Tensor], *, shortcut: bool) -> nn.Module:
    hidden, face = image["proj.0.weight"].shape
    sizes = PerceiverSizes.of(image, "perceiver_resampler.")
    tokens = len(image["proj.2.weight"]) // sizes.width
    return FacePlusProjection(face, hidden, tokens, sizes, shortcut=shortcut)


METHODS: dict[str, Method] = {
    "ip-adapter": Method(Form.IP_ADAPTER, ("character_embedding",), _plain),
    "ip-adapter-plus": Method(Form.IP_ADAPTER_PLUS, ("character_states",), _plus),
    "ip-adapter-plus-face": Method(Form.IP_ADAPTER_PLUS, ("face_states",), _plus),
    "ip-adapter-full-face": Method(Form.IP_ADAPTER_FULL, ("face_states",), _full),
    "ip-adapter-faceid": Method(Form.IP_ADAPTER_FACEID, ("face",), _face),
    "ip-adapter-faceid-plus": Method(
        Form.IP_ADAPTER_FACEID_PLUS, ("face", "face_states"), partial(_face_plus, shortcut=False)
    ),
    "ip-adapter-faceid-plusv2": Method(
        Form.IP_ADAPTER_FACEID_PLUS, ("face", "face_states"), partial(_face_plus, shortcut=True)
    ),
}
