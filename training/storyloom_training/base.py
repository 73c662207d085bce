"""Stage 3: the text-to-image model. CLIP text encoder and conditional UNet, on single pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storyloom_training.config import Recipe
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import add_noise, build_scheduler, sample_latents
from storyloom_training.loop import Ema, Losses, Stage, run
from storyloom_training.losses import people_weights, weighted_mse
from storyloom_training.prompts import Captioner
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.vae import to_pictures


class TextToImage(nn.Module):
    """What stage 2 trains, under one state dict."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def encode(self, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
        """Texts -> hidden states [n, tokens, width]."""
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        device = self.text_encoder.device
        with mixed_precision(device):
            states: Tensor = self.text_encoder(ids.to(device)).last_hidden_state
        return states


def build_model(recipe: Recipe, tokenizer: CLIPTokenizer) -> TextToImage:
    base, levels = recipe.base, len(recipe.base.channels)
    unet = UNet2DConditionModel(
        sample_size=recipe.data.size // 8,
        in_channels=recipe.vae.latent_channels,
        out_channels=recipe.vae.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=base.channels,
        layers_per_block=base.layers_per_block,
        cross_attention_dim=base.text_width,
        # diffusers reads this as the number of heads (its documented naming slip).
        attention_head_dim=tuple(width // base.head_dim for width in base.channels),
        norm_num_groups=16,
        # The caption as a whole joins the timestep (as in DeepFloyd IF); cross-attention says what goes where.
        addition_embed_type="text",
        addition_embed_type_num_heads=base.text_heads,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=base.text_width,
            intermediate_size=4 * base.text_width,
            num_hidden_layers=base.text_layers,
            num_attention_heads=base.text_heads,
            max_position_embeddings=base.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=base.text_width,
        )
    )
    return TextToImage(unet.to(memory_format=torch.channels_last), text_encoder)


def _sample_grid(
    model: TextToImage, tokenizer: CLIPTokenizer, vae: AutoencoderKL, captioner: Captioner, scale: float, stage: Stage
) -> None:
    live = {name: value.clone() for name, value in model.state_dict().items()}
    if stage.ema:
        model.load_state_dict(stage.ema.shadow)
    texts = [captioner(picture * captioner.data.frames, 0).text for picture in range(10)]
    with torch.inference_mode(), mixed_precision(vae.device):
        size = captioner.data.size // 8
        shape = (len(texts), vae.config.latent_channels, size, size)
        latents = sample_latents(
            model.unet, model.encode(tokenizer, texts).float(), model.encode(tokenizer, [""]).float(), shape,
            guidance=4.0, steps=20, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        pictures = to_pictures(vae.decode(latents / scale).sample)
    model.load_state_dict(live)
    folder = stage.folder / "samples"
    folder.mkdir(exist_ok=True)
    half = len(pictures) // 2
    rows = [np.concatenate(list(part), axis=1) for part in (pictures[:half], pictures[half : 2 * half])]
    Image.fromarray(np.concatenate(rows, axis=0)).save(folder / f"{stage.step:06d}.png")
    (folder / "captions.txt").write_text("\n".join(texts) + "\n")


def same_build(one: UNet2DConditionModel, other: UNet2DConditionModel) -> bool:
    """Whether two UNets have the same configuration, whatever wrote it."""
    first, second = ({k: v for k, v in unet.config.items() if not k.startswith("_")} for unet in (one, other))
    return bool(json.loads(json.dumps(first)) == json.loads(json.dumps(second)))  # tuples become lists


def carry_over(unet: UNet2DConditionModel, earlier: UNet2DConditionModel) -> None:
    """Takes over the weights of another UNet that fit, but for the cross-attention: it must read a new text encoder.

    What the cross-attention adds starts at nothing, and so does the caption's part of the time embedding, so that the
    UNet goes on from the pictures it could make without a caption.
    """
    known = earlier.state_dict()
    fitting = {
        name: known[name]
        for name, value in unet.state_dict().items()
        if name in known and known[name].shape == value.shape and ".attn2." not in name
    }
    unet.load_state_dict(fitting, strict=False)
    starts = [module.to_out[0] for name, module in unet.named_modules() if name.endswith(".attn2")]
    starts += [unet.add_embedding.norm2]
    for module in starts:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)


def _parameter_groups(model: TextToImage, text_scale: float) -> list[dict[str, Any]]:
    """The text encoder can read already and moves slowly."""
    return [
        {"params": list(model.unet.parameters())},
        {"params": list(model.text_encoder.parameters()), "rate_scale": text_scale},
    ]


def train_base(
    recipe: Recipe,
    data: StoryDB,
    folder: Path,
    model: TextToImage,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    latents: Tensor,
    scale: float,
    onward: bool,
) -> TextToImage:
    """Trains `model` on `latents` [pictures, c, h, w] (scaled, float16); returns it with averaged weights.

    `onward`: the model has been through this stage before.
    """
    base, scheduler = recipe.base, build_scheduler()
    captioner = Captioner(data, full=base.full_odds, clothes=base.clothes_odds)
    rate = base.learning_rate * (base.onward_rate_scale if onward else 1.0)
    stage = Stage(
        name="base",
        folder=folder,
        model=model,
        optimizer=torch.optim.AdamW(
            _parameter_groups(model, base.text_rate_scale),
            lr=rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        ),
        steps=base.onward_steps if onward else base.steps,
        warmup=base.warmup,
        learning_rate=rate,
        generator=torch.Generator().manual_seed(recipe.seed + 3),
        ema=Ema(model, base.ema_decay),
    )

    def compute(stage: Stage) -> Losses:
        draw = stage.generator
        pictures = torch.randint(len(latents), (base.batch,), generator=draw)
        drop = torch.rand(base.batch, generator=draw) < base.text_dropout
        texts = [
            "" if dropped else captioner(picture, stage.step).text
            for picture, dropped in zip(pictures.tolist(), drop.tolist(), strict=True)
        ]
        clean = latents[pictures].float().contiguous(memory_format=torch.channels_last)
        noise = torch.randn(clean.shape, generator=draw).contiguous(memory_format=torch.channels_last)
        # One timestep per slice of the schedule: the same mean loss with less variance.
        slices = (torch.arange(base.batch) + torch.rand(base.batch, generator=draw)) / base.batch
        timesteps = (slices * 1000).long()
        clean, noise, timesteps = (tensor.to(model.unet.device) for tensor in (clean, noise, timesteps))
        noisy, target = add_noise(scheduler, clean, noise, timesteps)
        with mixed_precision(model.unet.device):
            made = model.unet(noisy, timesteps, model.encode(tokenizer, texts)).sample
        made = made.float()
        masks, heads = (torch.from_numpy(part[pictures]).float() / 255 for part in (data.masks, data.heads))
        weight = people_weights(masks, heads, (clean.shape[2], clean.shape[3]), base.people_weight, base.head_weight)
        plain = F.mse_loss(made.detach(), target)
        return {"loss": weighted_mse(made, target, weight.to(made.device)), "plain": plain}

    run(stage, compute, lambda s: _sample_grid(model, tokenizer, vae, captioner, scale, s))
    if stage.ema:
        model.load_state_dict(stage.ema.shadow)
    return model
