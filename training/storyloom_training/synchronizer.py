"""Stage 4: Storynizor's ID-Synchronizer. Attention weights trained on whole groups, frames attending to each other.

Everything else of the UNet stays frozen, as in the paper (section 5.1); what trains is the self-attention and the
queries and keys of the text cross-attention, whose maps become the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.prompts import token_flags
from storyloom_training.base import TextToImage
from storyloom_training.config import Recipe
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import add_noise, build_scheduler
from storyloom_training.loop import Ema, Losses, Stage, run
from storyloom_training.losses import mask_perceptual_loss
from storyloom_training.prompts import Captioner
from storyloom_training.storydb.captions import Caption
from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB


def synchronizer_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The parameters that an ID-Synchronizer replaces, by their name in the UNet."""
    parts = (".attn1.", ".attn2.to_q.", ".attn2.to_k.")
    return {name: value for name, value in unet.named_parameters() if any(part in name for part in parts)}


class _Trained(nn.Module):
    """The trained parameters under their UNet names (dots are not allowed in parameter names)."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = list(parameters)
        for name, value in parameters.items():
            self.register_parameter(name.replace(".", "/"), value)

    @torch.no_grad()
    def add(self, changes: Mapping[str, Tensor]) -> None:
        for name in self.names:
            self.get_parameter(name.replace(".", "/")).add_(changes[name])

    def weights(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name.replace(".", "/")] for name in self.names}


def token_masks(tokenizer: CLIPTokenizer, captions: list[Caption | None], length: int) -> Tensor:
    """bool [rows, MAX_PEOPLE, length]: the tokens of each person's description; None stands for a dropped caption."""
    masks = torch.zeros(len(captions), MAX_PEOPLE, length, dtype=torch.bool)
    for row, caption in enumerate(captions):
        if caption is None:
            continue
        encoding = tokenizer(caption.text, truncation=True, max_length=length, return_offsets_mapping=True)
        for place, span in enumerate(caption.spans):
            flags = token_flags(encoding["offset_mapping"], [span])
            masks[row, place, : len(flags)] = torch.tensor(flags)
    return masks


def _draw_captions(captioner: Captioner, stage: Stage, recipe: Recipe) -> tuple[list[int], list[Caption | None]]:
    """Draws groups and frames; returns the picture numbers and one caption a row, None for a whole dropped group."""
    plan, data = recipe.synchronizer, captioner.data
    pictures: list[int] = []
    captions: list[Caption | None] = []
    for group in torch.randint(data.groups, (plan.groups,), generator=stage.generator).tolist():
        frames = torch.randperm(data.frames, generator=stage.generator)[: plan.frames].tolist()
        dropped = torch.rand((), generator=stage.generator) < plan.text_dropout
        pictures += [group * data.frames + frame for frame in frames]
        captions += [None] * plan.frames if dropped else captioner.of_group(group, frames, stage.step)
    return pictures, captions


def train_synchronizer(
    recipe: Recipe,
    data: StoryDB,
    folder: Path,
    tokenizer: CLIPTokenizer,
    model: TextToImage,
    latents: Tensor,
    mask_loss: float,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Trains one ID-Synchronizer on top of the base model, whose weights are restored afterwards.

    Args:
        recipe, data, folder, tokenizer, latents: of the run.
        model: the base model.
        mask_loss: weight of the Mask Perceptual Loss.
        start: what an earlier synchronizer adds to the weights of the base model that it was trained on, by UNet
            parameter name. Training goes on from there.

    Returns:
        Averaged weights by UNet parameter name.
    """
    plan, base = replace(recipe.synchronizer, mask_loss=mask_loss), recipe.base
    if start is not None:
        plan = replace(plan, steps=plan.onward_steps, learning_rate=plan.learning_rate * plan.onward_rate_scale)
    torch.manual_seed(recipe.seed)
    captioner = Captioner(data, full=base.full_odds, clothes=base.clothes_odds)
    scheduler, unet = build_scheduler(), model.unet
    install_story_attention(unet)
    model.requires_grad_(False)
    trained = _Trained(synchronizer_parameters(unet)).requires_grad_(True)
    before = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    if start is not None:
        trained.add(start)
    average = Ema(trained, plan.ema_decay)
    stage = Stage(
        name=folder.name,
        folder=folder,
        model=trained,
        optimizer=torch.optim.AdamW(trained.parameters(), lr=plan.learning_rate, weight_decay=0.0, fused=True),
        steps=plan.steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(recipe.seed + 4),
        ema=average,
    )

    def compute(stage: Stage) -> Losses:
        draw = stage.generator
        pictures, captions = _draw_captions(captioner, stage, recipe)
        with torch.no_grad():
            text = model.encode(tokenizer, ["" if caption is None else caption.text for caption in captions])
        masks = torch.from_numpy(data.masks[pictures]).float().to(unet.device) / 255
        clean = latents[pictures].float()
        noise = torch.randn(clean.shape, generator=draw)
        # Frames of a story are at the same timestep; groups are spread over the schedule.
        slices = (torch.arange(plan.groups) + torch.rand(plan.groups, generator=draw)) / plan.groups
        timesteps = (slices * 1000).long().repeat_interleave(plan.frames)
        clean, noise, timesteps = (tensor.to(unet.device) for tensor in (clean, noise, timesteps))
        noisy, target = add_noise(scheduler, clean, noise, timesteps)
        # At inference these layers get the previous step's maps, which training does not have.
        stand_in = torch.rand((), generator=draw) < plan.first_mask_odds
        story = StoryAttention(
            GroupLayout((plan.frames,) * plan.groups),
            latent_size=(clean.shape[-2], clean.shape[-1]),
            token_mask=token_masks(tokenizer, captions, text.shape[1]).to(unet.device),
            first_mask=masks.amax(1) if stand_in else None,
        )
        with mixed_precision(unet.device):
            made = unet(noisy, timesteps, text, cross_attention_kwargs={"story": story}).sample
        diffusion = F.mse_loss(made.float(), target)
        present = torch.tensor([caption is not None for caption in captions], device=unet.device).view(-1, 1, 1, 1)
        dice = mask_perceptual_loss([(layer.values, layer.size) for layer in story.layer_maps], masks * present)
        return {"loss": diffusion + plan.mask_loss * dice, "diffusion": diffusion.detach(), "dice": dice.detach()}

    run(stage, compute)
    trained.load_state_dict(before)
    return trained.weights(average.shadow)
