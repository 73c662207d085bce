"""Pictures of an adapter in training: stories with references, without the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from storyloom_model.attention import StoryAttention
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import build_scheduler
from storyloom_training.identity.adapters.batches import IdentityBatch, References
from storyloom_training.identity.adapters.said import said_plainly
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.identity.adapters.trainee import Trainee
from storyloom_training.vae import to_pictures


@torch.inference_mode()
def sample_stories(
    bench: Bench,
    trainee: Trainee,
    batch: IdentityBatch,
    references: References | None,
    frames: int,
    *,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 1,
) -> Tensor:
    """DDIM with classifier-free guidance, frames of a group attending to each other; returns latents [rows, c, h, w].

    The negative rows have an empty prompt and zeroed references, and take their masks from the others.
    """
    scheduler, unet, rows = build_scheduler(), bench.model.unet, len(batch.pictures)
    scheduler.set_timesteps(steps)
    latents = torch.randn((rows, *bench.latents.shape[1:]), generator=torch.Generator().manual_seed(seed))
    features = bench.source.features
    if references is None:
        said, both = said_plainly(bench.model, bench.tokenizer, batch), None
    else:
        said = trainee.said(bench.model, bench.tokenizer, batch, features, references)
        both = references.under_negatives()
    text = torch.cat((bench.model.encode(bench.tokenizer, [""] * rows), said.text)).float()
    masks = said.masks.repeat(2, 1, 1)
    layout = bench.layout(2 * rows)
    identity = None if both is None else trainee.streams(features, both)
    previous = None
    for timestep in scheduler.timesteps:
        story = StoryAttention(
            layout,
            latent_size=(latents.shape[-2], latents.shape[-1]),
            token_mask=masks,
            previous_maps=previous,
            mask_rows=[rows + row % rows for row in range(2 * rows)],
            identity=identity,
        )
        with mixed_precision(unet.device):
            noisy = latents.repeat(2, 1, 1, 1)
            added = {}
            if both is not None:
                added = trainee.controls(bench.faces, 2 * batch.pictures, features, both, noisy, timestep)
            made = unet(
                noisy, timestep.expand(2 * rows), text, cross_attention_kwargs={"story": story}, **added
            ).sample.float()
        previous = story.average_maps()
        plain, conditioned = made.chunk(2)
        latents = scheduler.step(plain + guidance * (conditioned - plain), timestep, latents).prev_sample
    return latents


@torch.inference_mode()
def decode(vae: AutoencoderKL, scale: float, latents: Tensor) -> np.ndarray:
    """uint8 [rows, h, w, 3]."""
    with mixed_precision(vae.device):
        pictures: np.ndarray = to_pictures(vae.decode(latents / scale).sample)
    return pictures


def contact_sheet(
    bench: Bench, vae: AutoencoderKL, scale: float, groups: list[int], trainee: Trainee, file: Path
) -> None:
    """A line a group: the picture that the references of all frames are from, then frames that say little of looks."""
    frames = bench.plan.frames
    batch = bench.source.of_groups(groups, torch.Generator().manual_seed(2), 0, drop=False)
    references = one_reference(bench, groups, frames)
    made = decode(vae, scale, sample_stories(bench, trainee, batch, references, frames))
    lines = []
    for place, group in enumerate(groups):
        shown = bench.source.data.pictures[group * bench.source.data.frames + _clearest(bench, group)]
        lines.append(np.concatenate([shown, *made[place * frames : (place + 1) * frames]], axis=1))
    Image.fromarray(np.concatenate(lines, axis=0)).save(file)


def one_reference(bench: Bench, groups: list[int], frames: int) -> References:
    """The same frame of a group as the reference of everybody in all its frames."""
    table = bench.source.features.table
    entries = torch.stack([table[group, _clearest(bench, group)] for group in groups])
    rows = entries.repeat_interleave(frames, 0)
    return References.whole(rows[..., None])


def _clearest(bench: Bench, group: int) -> int:
    """The frame that shows the most faces, and these the largest."""
    data = bench.source.data
    seen = (bench.source.features.table[group] >= 0).sum(1)
    size = torch.from_numpy(data.heads[group * data.frames : (group + 1) * data.frames].sum((1, 2, 3)).astype(np.int64))
    return int((seen * 10**9 + size).argmax())
