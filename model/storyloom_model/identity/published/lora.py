"""LoRA files with keys in the styles of diffusers (old and new), kohya and peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from torch import Tensor, nn

from storyloom_model.identity.adapter import LowRank
from storyloom_model.identity.published.layers import base_name, listed
from storyloom_model.package import PackageError

UNET = "unet"
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_PEFT_ROOT = "base_model.model."
_TEXT_ROOT = "text_model"
"""Files have it in front of a text encoder's modules; transformers 5 has not."""
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a core",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What a peft configuration says and weights do not. ``alphas`` are by the end of a module's name."""

    alpha: float | None = None
    alphas: Mapping[str, float] | None = None
    rank_stabilised: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LoraSettings:
        """Reads ``adapter_config.json``, or the same in the metadata of a file that diffusers wrote.

        Raises:
            PackageError: it is not a plain LoRA's.
        """
        if config.get("use_dora"):
            raise PackageError("the LoRA is a DoRA, which is not read; take a plain LoRA")
        return cls(config.get("lora_alpha"), config.get("alpha_pattern") or {}, bool(config.get("use_rslora")))

    def scale(self, module: str, rank: int) -> float:
        """What a module's change is multiplied by; 1 where nothing says otherwise."""
        fitting = [
            value
            for pattern, value in (self.alphas or {}).items()
            if re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
        ]
        alpha = fitting[0] if fitting else self.alpha
        return 1.0 if alpha is None else alpha / (rank**0.5 if self.rank_stabilised else rank)


def read_lora(
    name: str,
    weights: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    settings: LoraSettings | None = None,
) -> dict[str, dict[str, LowRank]]:
    """The changes that a LoRA makes, by module ("unet", "text_encoder", ...) and by its parameter's name.

    Convolutions' changes are flat, too: [r, in * height * width] and [out, r].

    Args:
        name: of the LoRA, for errors.
        weights: by the file's own names; diffusers' converters turn kohya's and older ones into its own.
        modules: of the base model, by the names of their folders; they may be on the meta device.
        settings: of a file in peft's style.

    Raises:
        PackageError: the file is not a plain LoRA, is for another base model, or has weights that no module has a
            place for.
    """
    kinds = {kind for part, kind in _OTHER_KINDS.items() if any(part in key for key in weights)}
    if kinds:
        raise PackageError(f"LoRA {name} is a {' and '.join(sorted(kinds))}, which is not read; take a plain LoRA")
    named, alphas = _named(name, weights, modules[UNET])
    found: dict[str, dict[str, LowRank]] = {}
    for key, down in named.items():
        if not key.endswith(_DOWN):
            continue
        part, _, module = key.removesuffix(_DOWN).partition(".")
        up = named.get(key.removesuffix(_DOWN) + _UP)
        if up is None:
            raise PackageError(f"LoRA {name} has one half of the change of {part}.{module} and not the other")
        if part not in modules:
            raise PackageError(f"LoRA {name} changes {part}, which the package does not have: it is for another model")
        own = alphas.get(f"{part}.{module}")
        if not hasattr(modules[part], _TEXT_ROOT):
            module = module.removeprefix(f"{_TEXT_ROOT}.")
        scale = own / len(down) if own is not None else (settings or LoraSettings()).scale(module, len(down))
        change = LowRank(down.flatten(1), up.flatten(1), scale)
        _check_fits(name, modules[part], part, module, change)
        found.setdefault(part, {})[f"{module}.weight"] = change
    if 2 * sum(map(len, found.values())) != len(named):
        unknown = sorted(key for key in named if not key.endswith((_DOWN, _UP)))
        raise PackageError(f"LoRA {name} has weights in no style that is known: {listed(unknown)}")
    return found


def _named(name: str, weights: Mapping[str, Tensor], unet: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights by folder, module and ``lora_A`` or ``lora_B``, and the alphas that the file itself has."""
    alphas: Mapping[str, float] = {}
    if all(key.startswith(_KOHYA) for key in weights):
        pipelines: Any = StableDiffusionXLPipeline
        try:
            weights, alphas = pipelines.lora_state_dict(dict(weights), unet_config=unet.config)
        except (ValueError, KeyError, IndexError) as error:
            raise PackageError(f"LoRA {name} has weights in no style that is known: {error}") from error
    rooted = {_rooted(key): value for key, value in weights.items()}
    return _in_peft_style(rooted), {_module(key): alpha for key, alpha in _in_peft_style(dict(alphas)).items()}


def _rooted(key: str) -> str:
    """The oldest files, and peft's own, do not say that they are a UNet's."""
    key = key.removeprefix(_PEFT_ROOT)
    return key if key.startswith((f"{UNET}.", "text_encoder")) else f"{UNET}.{key}"


def _in_peft_style(values: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in values.items() if key.startswith(f"{UNET}.")}
    texts = {key: value for key, value in values.items() if key not in own}
    if any("lora_linear_layer" in key or "to_out_lora" in key for key in texts):
        texts = convert_state_dict_to_peft(texts)
    return {**convert_unet_state_dict_to_peft(own), **texts}


def _module(alpha: str) -> str:
    return alpha.removesuffix(".alpha").removesuffix(_DOWN)


def _check_fits(name: str, base: nn.Module, part: str, module: str, change: LowRank) -> None:
    try:
        weight: Any = base.get_submodule(module).weight
    except AttributeError:
        raise PackageError(f"LoRA {name} changes {part}.{module}, which the package does not have") from None
    expected = tuple(weight.flatten(1).shape)
    given = (change.up.shape[0], change.down.shape[1])
    if given == expected:
        return
    if module.endswith(("attn2.to_k", "attn2.to_v")):
        raise PackageError(
            f"LoRA {name} is for {base_name(given[1])}, the package is {base_name(expected[1])}: take one for it"
        )
    raise PackageError(
        f"LoRA {name} is not for this model: it changes {part}.{module} as {given[0]}x{given[1]}, which is "
        f"{expected[0]}x{expected[1]} in the package"
    )
