"""Stage 1: the autoencoder. L1, edges and a little KL on crops; then the decoder alone, with the encoder frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
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


def reconstruction_loss(made: Tensor, true: Tensor, weight: Tensor, recipe: VaeRecipe) -> Tensor:
    """L1 of pixels and of edges.

    Args:
        made, true: [n, 3, h, w] in [-1, 1].
        weight: [n, 1, h, w], positive, of the pixels.
    """
    weight = weight / weight.mean()
    pixels = (weight * (made - true).abs()).mean()
    edges = (_edges(weight.expand_as(true), mean=True) * (_edges(made) - _edges(true)).abs()).mean()
    return pixels + recipe.edge_weight * edges


@dataclass(frozen=True)
class Crops:
    """`pixels` [n, 3, crop, crop] in [-1, 1]; `weight` [n, 1, crop, crop], how much each pixel matters."""

    pixels: Tensor
    weight: Tensor


def draw_corner(heads: npt.NDArray[np.uint8], data: StoryDB, crop: int, draw: torch.Generator) -> tuple[int, int]:
    """Where a crop starts (y, x): anywhere, or, in half the cases, where it shows a head if the picture has one."""
    room = data.size - crop + 1
    y, x = torch.randint(room, (2,), generator=draw).tolist()
    place, focus = torch.rand(2, generator=draw).tolist()
    cells = np.argwhere(heads.max(0) > 127)
    if focus < 0.5 and len(cells):
        block = data.size // data.mask_size
        centre = cells[int(place * len(cells))] * block + block // 2
        y, x = (int(np.clip(c - crop + 1 + o * crop // room, 0, room - 1)) for c, o in zip(centre, (y, x), strict=True))
    return y, x


def draw_crops(data: StoryDB, draw: torch.Generator, recipe: VaeRecipe) -> Crops:
    """Draws crops. Pixels of people, and more so of heads, matter most: clutter would take all the capacity."""
    crop, block = recipe.crop, data.size // data.mask_size
    indices = torch.randint(len(data.pictures), (recipe.batch,), generator=draw).tolist()
    pieces, weights = [], []
    for index in indices:
        y, x = draw_corner(data.heads[index], data, crop, draw)
        pieces.append(data.pictures[index, y : y + crop, x : x + crop])
        people, heads = (
            part[index].max(0).repeat(block, 0).repeat(block, 1)[y : y + crop, x : x + crop] / np.float32(255)
            for part in (data.masks, data.heads)
        )
        weights.append(1 + recipe.people_weight * people + recipe.head_weight * heads)
    return Crops(to_tensor(np.stack(pieces)), torch.from_numpy(np.stack(weights))[:, None])


def _stage(
    recipe: Recipe, folder: Path, vae: AutoencoderKL, *, steps: int, rate_scale: float = 1.0, decoder_only: bool = False
) -> Stage:
    parts = (vae.decoder, vae.post_quant_conv) if decoder_only else (vae,)
    parameters = [p for part in parts for p in part.parameters()]
    rate = recipe.vae.learning_rate * rate_scale
    return Stage(
        name="decoder" if decoder_only else "vae",
        folder=folder,
        model=vae,
        optimizer=torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
        steps=steps,
        warmup=min(100, steps),
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


def train_vae(
    recipe: Recipe, data: StoryDB, folder: Path, device: torch.device, start: AutoencoderKL | None = None
) -> AutoencoderKL:
    """Trains encoder and decoder together, from nothing or, with `start`, on from there."""
    torch.manual_seed(recipe.seed)
    if start is None:
        vae = build_vae(recipe).to(device)
        stage = _stage(recipe, folder, vae, steps=recipe.vae.joint_steps)
    else:
        vae = start.to(device=device, memory_format=torch.channels_last)
        stage = _stage(recipe, folder, vae, steps=recipe.vae.onward_steps, rate_scale=recipe.vae.onward_rate_scale)

    def compute(stage: Stage) -> Losses:
        crops = draw_crops(data, stage.generator, recipe.vae)
        true, weight = crops.pixels.to(vae.device), crops.weight.to(vae.device)
        with mixed_precision(vae.device):
            posterior = vae.encode(true).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=stage.generator).to(vae.device)
            made = vae.decode(posterior.mean + posterior.std * noise).sample
        rec = reconstruction_loss(made.float(), true, weight, recipe.vae)
        kl = posterior.kl().float().mean()
        return {"loss": rec + recipe.vae.kl_weight * kl, "rec": rec.detach(), "kl": kl.detach()}

    run(stage, compute, lambda s: _sample_grid(data, vae, s))
    return vae


def train_decoder(recipe: Recipe, data: StoryDB, folder: Path, vae: AutoencoderKL) -> AutoencoderKL:
    """Trains the decoder on; latents, and with them every trained UNet, stay what they are."""
    plan = recipe.vae
    stage = _stage(recipe, folder, vae, steps=plan.decoder_steps, rate_scale=plan.onward_rate_scale, decoder_only=True)

    def compute(stage: Stage) -> Losses:
        crops = draw_crops(data, stage.generator, recipe.vae)
        true, weight = crops.pixels.to(vae.device), crops.weight.to(vae.device)
        with mixed_precision(vae.device):
            with torch.no_grad():
                latents = vae.encode(true).latent_dist.mode()
            made = vae.decode(latents).sample
        rec = reconstruction_loss(made.float(), true, weight, recipe.vae)
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
