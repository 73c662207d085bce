"""Which published form a file has, told by the names and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from torch import Tensor

from storyloom_model.identity.published.layers import listed
from storyloom_model.package import PackageError

FACE_WIDTH = 512
"""Channels of a face recogniser's embedding, which no image encoder's states have."""


class Form(StrEnum):
    """Forms that differ in their weights."""

    IP_ADAPTER = "ip-adapter"
    IP_ADAPTER_FULL = "ip-adapter-full"
    IP_ADAPTER_PLUS = "ip-adapter-plus"
    IP_ADAPTER_FACEID = "ip-adapter-faceid"
    IP_ADAPTER_FACEID_PLUS = "ip-adapter-faceid-plus"
    INSTANTID = "instantid"
    STORYMAKER = "storymaker"
    PHOTOMAKER = "photomaker"
    PHOTOMAKER_V2 = "photomaker-v2"
    LORA = "lora"


def detect(weights: Mapping[str, Tensor]) -> Form:
    """The form of a file's weights.

    Raises:
        PackageError: it is none of those known; the message lists what is in the file.
    """
    if "image_proj_model.bg_embed" in weights:
        return Form.STORYMAKER
    if "id_encoder.fuse_module.layer_norm.weight" in weights:
        second = any(name.startswith("id_encoder.qformer_perceiver.") for name in weights)
        return Form.PHOTOMAKER_V2 if second else Form.PHOTOMAKER
    projection = {name.removeprefix("image_proj."): value for name, value in weights.items() if "image_proj." in name}
    if projection:
        form = _image_form(projection)
        if form is not None:
            return form
    elif any("lora" in name.lower() for name in weights):
        return Form.LORA
    raise PackageError(
        f"the file is no adapter in a form that is known ({', '.join(Form)}); it has {listed(sorted(weights))}"
    )


def _image_form(projection: Mapping[str, Tensor]) -> Form | None:
    if "proj.weight" in projection:
        return Form.IP_ADAPTER
    if "proj.3.weight" in projection:
        return Form.IP_ADAPTER_FULL
    if "perceiver_resampler.proj_in.weight" in projection:
        return Form.IP_ADAPTER_FACEID_PLUS
    if "norm.weight" in projection and "proj.2.weight" in projection:
        return Form.IP_ADAPTER_FACEID
    if "latents" in projection and "proj_in.weight" in projection:
        from_face = projection["proj_in.weight"].shape[1] == FACE_WIDTH
        return Form.INSTANTID if from_face else Form.IP_ADAPTER_PLUS
    return None
