"""Stage 1: the autoencoder. L1, edges and a little KL on crops; then the decoder alone, with the encoder frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from storyloom_training.config import Recipe, VaeRecipe
from storyloom_training.device import mixed_precision
from storyloom_training.loop import Losses, Stage, run
from storyloom_training.storydb.dataset import StoryDB


def build_vae(recipe: Recipe) -> AutoencoderKL:
    levels = len(recipe.vae.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.vae.channels,
        layers_per_block=1,
        latent_channels=recipe.vae.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=recipe.data.size,
    )
    return vae.to(memory_format=torch.channels_last)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return tensor.div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def to_pictures(tensor: Tensor) -> np.ndarray:
    """float [n, 3, h, w] in [-1, 1] -> uint8 [n, h, w, 3]."""
    scaled = tensor.float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _edges(x: Tensor, *, mean: bool = False) -> Tensor:
    """Differences to the right and lower neighbour, which make a picture look sharp or blurred; or their means."""
    sign, scale = (1.0, 0.5) if mean else (-1.0, 1.0)
    right = scale * (x[..., :, 1:] + sign * x[..., :, :-1])
    down = scale * (x[..., 1:, :] + sign * x[..., :-1, :])
    return torch.cat((right.flatten(1), down.flatten(1)), dim=1)


def reconstruction_loss(made: Tensor, true: Tensor, people: Tensor, recipe: VaeRecipe) -> Tensor:
    """L1 of pixels and of edges; pixels of people weigh more, or cluttered backgrounds would take all the capacity.

    Args:
        made, true: [n, 3, h, w] in [-1, 1].
        people: [n, 1, h, w], 1 where a person is.
    """
    weight = 1 + (recipe.people_weight - 1) * people
    weight = weight / weight.mean()
    pixels = (weight * (made - true).abs()).mean()
    edges = (_edges(weight.expand_as(true), mean=True) * (_edges(made) - _edges(true)).abs()).mean()
    return pixels + recipe.edge_weight * edges


def _crops(data: StoryDB, stage: Stage, recipe: VaeRecipe) -> tuple[Tensor, Tensor]:
    """Draws crops [n, 3, crop, crop] in [-1, 1], and where people are in them [n, 1, crop, crop]."""
    crop, block = recipe.crop, data.size // data.mask_size
    indices = torch.randint(len(data.pictures), (recipe.batch,), generator=stage.generator).tolist()
    offsets = torch.randint(data.size - crop + 1, (recipe.batch, 2), generator=stage.generator).tolist()
    pieces, people = [], []
    for index, (y, x) in zip(indices, offsets, strict=True):
        pieces.append(data.pictures[index, y : y + crop, x : x + crop])
        coverage = data.masks[index].max(0).repeat(block, 0).repeat(block, 1)
        people.append(coverage[y : y + crop, x : x + crop])
    return to_tensor(np.stack(pieces)), torch.from_numpy(np.stack(people))[:, None].float() / 255


def _stage(recipe: Recipe, folder: Path, vae: AutoencoderKL, *, decoder_only: bool) -> Stage:
    parts = (vae.decoder, vae.post_quant_conv) if decoder_only else (vae,)
    parameters = [p for part in parts for p in part.parameters()]
    rate = recipe.vae.learning_rate * (0.6 if decoder_only else 1.0)
    return Stage(
        name="decoder" if decoder_only else "vae",
        folder=folder,
        model=vae,
        optimizer=torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
        steps=recipe.vae.decoder_steps if decoder_only else recipe.vae.joint_steps,
        warmup=min(100, recipe.vae.joint_steps),
        learning_rate=rate,
        generator=torch.Generator().manual_seed(recipe.seed + (2 if decoder_only else 1)),
        parameters=parameters,
    )


def _sample_grid(data: StoryDB, vae: AutoencoderKL, stage: Stage) -> None:
    true = to_tensor(data.pictures[:: max(1, len(data.pictures) // 8)][:8]).to(vae.device)
    with torch.inference_mode(), mixed_precision(vae.device):
        made = vae.decode(vae.encode(true).latent_dist.mode()).sample
    grid = np.concatenate([np.concatenate(list(to_pictures(x)), axis=1) for x in (true, made)], axis=0)
    folder = stage.folder / "samples"
    folder.mkdir(exist_ok=True)
    Image.fromarray(grid).save(folder / f"{stage.step:06d}.png")


def train_vae(recipe: Recipe, data: StoryDB, folder: Path, device: torch.device) -> AutoencoderKL:
    """Trains encoder and decoder together."""
    torch.manual_seed(recipe.seed)
    vae = build_vae(recipe).to(device)
    stage = _stage(recipe, folder, vae, decoder_only=False)

    def compute(stage: Stage) -> Losses:
        true, people = _crops(data, stage, recipe.vae)
        true, people = true.to(vae.device), people.to(vae.device)
        with mixed_precision(vae.device):
            posterior = vae.encode(true).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=stage.generator).to(vae.device)
            made = vae.decode(posterior.mean + posterior.std * noise).sample
        rec = reconstruction_loss(made.float(), true, people, recipe.vae)
        kl = posterior.kl().float().mean()
        return {"loss": rec + recipe.vae.kl_weight * kl, "rec": rec.detach(), "kl": kl.detach()}

    run(stage, compute, lambda s: _sample_grid(data, vae, s))
    return vae


def train_decoder(recipe: Recipe, data: StoryDB, folder: Path, vae: AutoencoderKL) -> AutoencoderKL:
    """Trains the decoder on; latents, and with them every trained UNet, stay what they are."""
    stage = _stage(recipe, folder, vae, decoder_only=True)

    def compute(stage: Stage) -> Losses:
        true, people = _crops(data, stage, recipe.vae)
        true, people = true.to(vae.device), people.to(vae.device)
        with mixed_precision(vae.device):
            with torch.no_grad():
                latents = vae.encode(true).latent_dist.mode()
            made = vae.decode(latents).sample
        rec = reconstruction_loss(made.float(), true, people, recipe.vae)
        return {"loss": rec, "rec": rec.detach()}

    run(stage, compute, lambda s: _sample_grid(data, vae, s))
    return vae


def latent_statistics(vae: AutoencoderKL, data: StoryDB) -> float:
    """The scaling factor that gives latents a standard deviation of 1."""
    sample = data.pictures[:: max(1, len(data.pictures) // 256)][:256]
    return 1.0 / float(encode_pictures(vae, sample).std())


@torch.inference_mode()
def encode_pictures(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 16) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 latents [n, c, h/8, w/8], not scaled."""
    parts = []
    for start in range(0, len(pictures), batch):
        chunk = to_tensor(pictures[start : start + batch]).to(vae.device)
        with mixed_precision(vae.device):
            parts.append(vae.encode(chunk).latent_dist.mode().float().cpu())
    return torch.cat(parts)
