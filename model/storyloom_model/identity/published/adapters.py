"""Published adapters by the name of their method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.published import ip_adapter, photomaker
from storyloom_model.identity.published.forms import Form, detect
from storyloom_model.identity.published.instantid import read_instantid
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.identity.published.storymaker import read_storymaker
from storyloom_model.manifest import KEEPS, Keep
from storyloom_model.package import PackageError

_FORMS = {name: method.form for name, method in ip_adapter.METHODS.items()} | {
    "instantid": Form.INSTANTID,
    "storymaker": Form.STORYMAKER,
    "photomaker": Form.PHOTOMAKER,
    "photomaker-v2": Form.PHOTOMAKER_V2,
}
CHARACTER_ADAPTER = "character-adapter"
"""Another use of IP-Adapter's files, by parts of characters; it is never told by a file."""
METHODS = (*_FORMS, CHARACTER_ADAPTER)
"""What the method of a published adapter can be called."""

EMPTY_STATES = "empty_states"
"""Kept beside a file's own weights: what the package's image encoder says of an empty picture, [S, width]."""


def read_adapter(method: str, name: str, weights: Mapping[str, Tensor], unet: Any) -> IdentityAdapter:
    """Makes an identity adapter of the weights of a published file.

    Args:
        method: of ``METHODS``.
        name: of the adapter.
        weights: by the file's own names; ``EMPTY_STATES`` may be beside them.
        unet: that it is for; it may be on the meta device.

    Raises:
        PackageError: the file has another form, is for another base model, or lacks weights.
    """
    published = {key: value for key, value in weights.items() if key != EMPTY_STATES}
    form = detect(published)
    if method == CHARACTER_ADAPTER:
        return ip_adapter.read_character_adapter(
            form, name, published, attention_layers(unet), weights.get(EMPTY_STATES)
        )
    if method not in _FORMS:
        raise PackageError(f"adapter {name}: unknown method {method}; {_fitting(form)}")
    if _FORMS[method] != form:
        raise PackageError(f"adapter {name} is a file of the form {form}, not {method}; {_fitting(form)}")
    if method in photomaker.METHODS:
        return photomaker.read_photomaker(method, name, published, unet)
    layers = attention_layers(unet)
    if method == "storymaker":
        return read_storymaker(name, published, layers)
    if method == "instantid":
        return read_instantid(name, published, layers)
    return ip_adapter.read_ip_adapter(method, name, published, layers, weights.get(EMPTY_STATES))


def reads_states(method: str) -> bool:
    """Whether an adapter wants to be told what the image encoder says of an empty picture."""
    own = ip_adapter.METHODS.get(method)
    return method == CHARACTER_ADAPTER or (own is not None and any(field.endswith("_states") for field in own.reads))


def keeps_of(method: str) -> tuple[Keep, ...]:
    """What a method can take over from references."""
    if method in photomaker.METHODS:
        return ("face", "hair")
    if method == CHARACTER_ADAPTER:
        return ("face", "hair", "clothes")
    own = ip_adapter.METHODS.get(method)
    faces_only = method == "instantid" or (own is not None and all(one.startswith("face") for one in own.reads))
    return ("face",) if faces_only else KEEPS


def method_of(form: Form, file_name: str) -> str:
    """The method of a file of a form. Where the weights do not tell it, its name does, as its authors named it.

    Raises:
        PackageError: the form is not that of an identity adapter.
    """
    fitting = [method for method, own in _FORMS.items() if own == form]
    if not fitting:
        raise PackageError(f"{file_name} is no identity adapter: {_fitting(form)}")
    named = [method for method in fitting if method in file_name.lower().replace("_", "-")]
    return max(named, key=len) if named else fitting[-1 if form == Form.IP_ADAPTER_FACEID_PLUS else 0]


def _fitting(form: Form) -> str:
    methods = [method for method, own in _FORMS.items() if own == form]
    return f"its method is {' or '.join(methods)}" if methods else "it is a LoRA, and stories name it under loras"
