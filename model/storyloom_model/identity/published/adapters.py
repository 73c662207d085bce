"""Published adapters by the name of their method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.published import ip_adapter
from storyloom_model.identity.published.forms import Form, detect
from storyloom_model.identity.published.instantid import read_instantid
from storyloom_model.identity.published.layers import AttentionLayer
from storyloom_model.identity.published.storymaker import read_storymaker
from storyloom_model.package import PackageError

_FORMS = {name: method.form for name, method in ip_adapter.METHODS.items()} | {
    "instantid": Form.INSTANTID,
    "storymaker": Form.STORYMAKER,
}
METHODS = tuple(_FORMS)
"""What the method of a published adapter can be called."""


def read_adapter(
    method: str,
    name: str,
    weights: Mapping[str, Tensor],
    layers: Sequence[AttentionLayer],
    empty_states: Tensor | None = None,
) -> IdentityAdapter:
    """Makes an identity adapter of the weights of a published file.

    Args:
        method: of ``METHODS``.
        name: of the adapter.
        weights: by the file's own names.
        layers: of the UNet that it is for.
        empty_states: what the package's image encoder says of an empty picture, [S, width].

    Raises:
        PackageError: the file has another form, is for another base model, or lacks weights.
    """
    form = detect(weights)
    if _FORMS[method] != form:
        raise PackageError(f"adapter {name} is a file of the form {form}, not {method}; {_fitting(form)}")
    if method == "storymaker":
        return read_storymaker(name, weights, layers)
    if method == "instantid":
        return read_instantid(name, weights, layers)
    return ip_adapter.read_ip_adapter(method, name, weights, layers, empty_states)


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
    return f"its method is {' or '.join(methods)}" if methods else "it is a LoRA; list it under `low_rank`"
