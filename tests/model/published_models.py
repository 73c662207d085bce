"""Tiny random base models as they are published: diffusers folders, and single files in the original code's form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.model.published_files import published_unet
from tests.model.tiny import tiny_scheduler, tiny_text_encoder, tiny_tokenizer, tiny_vae

TEXT_WIDTH = 32

_UNET = {
    r"conv_in\.": "input_blocks.0.0.",
    r"time_embedding\.linear_1\.": "time_embed.0.",
    r"time_embedding\.linear_2\.": "time_embed.2.",
    r"conv_norm_out\.": "out.0.",
    r"conv_out\.": "out.2.",
    r"mid_block\.resnets\.0\.": "middle_block.0.",
    r"mid_block\.attentions\.0\.": "middle_block.1.",
    r"mid_block\.resnets\.1\.": "middle_block.2.",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_(q|k|v)": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"down_blocks\.(\d)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d)\.downsamplers\.0\.conv": r"down.\1.downsample.conv",
    r"conv_shortcut": "nin_shortcut",
}


SECOND_WIDTH, POOLED, TIME_WIDTH = 48, 24, 8
"""Of the second text encoder in the form of SDXL, and of what the UNet makes of each number of a size."""


def second_text_encoder(tokenizer: Any) -> CLIPTextModelWithProjection:
    """Of other widths and depth than the first."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=SECOND_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=POOLED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def write_folder(folder: Path, *, sdxl: bool = False) -> dict[str, Any]:
    """Writes the diffusers folder of a model, with a model_index.json; returns its modules by their folders."""
    torch.manual_seed(11)
    tokenizer = tiny_tokenizer()
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + POOLED,
    }
    modules = {
        "unet": published_unet(TEXT_WIDTH + SECOND_WIDTH, **added) if sdxl else published_unet(TEXT_WIDTH),
        "vae": tiny_vae(),
        "text_encoder": tiny_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": tiny_scheduler(),
    }
    if sdxl:
        modules |= {"text_encoder_2": second_text_encoder(tokenizer), "tokenizer_2": tokenizer}
    for part, module in modules.items():
        module.save_pretrained(folder / part)
    index: dict[str, Any] = {
        part: ["transformers" if part.startswith("t") else "diffusers", type(module).__name__]
        for part, module in modules.items()
    }
    # The name by which published folders know it.
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    content = {"_class_name": "StableDiffusionPipeline", **index}
    (folder / "model_index.json").write_text(json.dumps(content))
    return modules


def single_file(modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a model by the names of the original code."""
    weights = {f"model.diffusion_model.{_unet_name(key)}": value for key, value in _state(modules["unet"]).items()}
    blocks = len(modules["vae"].config.block_out_channels)
    for key, value in _state(modules["vae"]).items():
        name = f"first_stage_model.{_vae_name(key, blocks)}"
        weights[name] = value[:, :, None, None] if ".attn_1." in name and value.dim() == 2 else value
    for key, value in _state(modules["text_encoder"]).items():
        weights[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {key: value.contiguous() for key, value in weights.items()}


def write_single_file(file: Path, modules: Mapping[str, Any]) -> None:
    """Safetensors or torch, by the suffix."""
    if file.suffix == ".safetensors":
        save_file(single_file(modules), file)
    else:
        torch.save({"state_dict": single_file(modules), "global_step": 7}, file)


def _state(module: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = module.state_dict()
    return state


def _unet_name(key: str) -> str:
    """Of a UNet with one layer per block."""
    for pattern, name in _UNET.items():
        key, changed = re.subn(f"^{pattern}", name, key)
        if changed:
            break
    else:
        key = re.sub(
            r"^down_blocks\.(\d)\.(resnets|attentions)\.0\.",
            lambda m: f"input_blocks.{2 * int(m[1]) + 1}.{int(m[2] == 'attentions')}.",
            key,
        )
        key = re.sub(
            r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 * int(m[1]) + 2}.0.op", key
        )
        key = re.sub(
            r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.",
            lambda m: f"output_blocks.{2 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}.",
            key,
        )
        # The only one: after a block without attention.
        key = key.replace("up_blocks.0.upsamplers.0.conv", "output_blocks.1.1.conv")
    if ".transformer_blocks." not in key and "time_embed" not in key:
        for ours, theirs in _RESNET.items():
            key = re.sub(rf"(blocks\.\d+\.0|middle_block\.[02])\.{ours}\.", rf"\1.{theirs}.", key)
    return key


def _vae_name(key: str, blocks: int) -> str:
    for pattern, name in _VAE.items():
        key = re.sub(pattern, name, key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.conv", key)
