"""The stage that trains a pose ControlNet on single pictures; the model stays as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_training.base import TextToImage
from storyloom_training.config import ControlNetRecipe, Recipe
from storyloom_training.controlnet.control import PoseControl
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import add_noise, build_scheduler, sample_latents
from storyloom_training.loop import Ema, Losses, Stage, run
from storyloom_training.losses import people_weights, weighted_mse
from storyloom_training.prompts import Captioner
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.vae import to_pictures

_SAMPLES, _STEPS = 6, 12
_VALIDATED = 48


@dataclass(frozen=True)
class PoseBench:
    """A frozen model, and pictures with their skeletons; `latents` [pictures, c, h, w] are those of `data`."""

    recipe: Recipe
    model: TextToImage
    tokenizer: CLIPTokenizer
    data: StoryDB
    latents: Tensor
    control: PoseControl

    @property
    def plan(self) -> ControlNetRecipe:
        """What of the recipe is for this stage."""
        return self.recipe.controlnet


def loss_of(
    bench: PoseBench, pictures: list[int], texts: list[str], shown: Tensor | None, draw: torch.Generator
) -> Tensor:
    """The diffusion loss of pictures, people weighing as in the text-to-image stage.

    Args:
        bench: what is frozen, and the ControlNet.
        pictures: their numbers.
        texts: their captions.
        shown: skeletons, as of `PoseControl.shown`; None: the model alone.
        draw: of noise and timesteps.
    """
    unet, base, data = bench.model.unet, bench.recipe.base, bench.data
    clean = bench.latents[pictures].float()
    noise = torch.randn(clean.shape, generator=draw)
    slices = (torch.arange(len(pictures)) + torch.rand(len(pictures), generator=draw)) / len(pictures)
    clean, noise, timesteps = (tensor.to(unet.device) for tensor in (clean, noise, (slices * 1000).long()))
    noisy, target = add_noise(build_scheduler(), clean, noise, timesteps)
    with torch.no_grad():
        text = bench.model.encode(bench.tokenizer, texts)
    with mixed_precision(unet.device):
        added = {} if shown is None else bench.control.residuals(shown, noisy, timesteps, text)
        made = unet(noisy, timesteps, text, **added).sample.float()
    masks, heads = (torch.from_numpy(part[pictures]).float() / 255 for part in (data.masks, data.heads))
    weight = people_weights(masks, heads, (clean.shape[2], clean.shape[3]), base.people_weight, base.head_weight)
    return weighted_mse(made, target, weight.to(made.device))


@torch.no_grad()
def validate(bench: PoseBench, pictures: int = _VALIDATED) -> dict[str, float]:
    """The loss without captions: with the pictures' own skeletons, with other pictures', and with none.

    Pictures, noise and timesteps are the same for all three and at every call.
    """
    chosen = list(range(min(pictures, len(bench.latents))))
    found: dict[str, list[float]] = {"right": [], "wrong": [], "none": []}
    for start in range(0, len(chosen), bench.plan.batch):
        part = chosen[start : start + bench.plan.batch]
        own = bench.control.shown(part)
        for kind, shown in {"right": own, "wrong": own.roll(1, 0), "none": None}.items():
            draw = torch.Generator().manual_seed(start)
            found[kind].append(float(loss_of(bench, part, [""] * len(part), shown, draw)))
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def train_controlnet(bench: PoseBench, folder: Path, held_out: PoseBench, vae: AutoencoderKL) -> None:
    """Trains `bench.control.net`, which has averaged weights in the end.

    `held_out` has the same net and other people. At every checkpoint its losses (`validate`) go to `validation.jsonl`
    and a sheet of skeletons with what is made of them to `samples/`.
    """
    plan, net = bench.plan, bench.control.net
    net.train().requires_grad_(True)
    average = Ema(net, plan.ema_decay)
    captioner = Captioner(bench.data)
    stage = Stage(
        name="controlnet",
        folder=folder,
        model=net,
        optimizer=torch.optim.AdamW(net.parameters(), lr=plan.learning_rate, weight_decay=0.01, fused=True),
        steps=plan.steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(bench.recipe.seed + 8),
        ema=average,
    )

    def compute(stage: Stage) -> Losses:
        draw = stage.generator
        pictures = torch.randint(len(bench.latents), (plan.batch,), generator=draw).tolist()
        dropped = (torch.rand(plan.batch, generator=draw) < plan.text_dropout).tolist()
        texts = [
            "" if drop else captioner(picture, stage.step).text for picture, drop in zip(pictures, dropped, strict=True)
        ]
        return {"loss": loss_of(bench, pictures, texts, bench.control.shown(pictures), draw)}

    def look(stage: Stage) -> None:
        live = {name: value.clone() for name, value in net.state_dict().items()}
        net.load_state_dict(average.shadow)
        with (folder / "validation.jsonl").open("a") as log:
            log.write(json.dumps({"step": stage.step} | validate(held_out)) + "\n")
        (folder / "samples").mkdir(exist_ok=True)
        sheet(held_out, vae).save(folder / "samples" / f"{stage.step:06d}.png")
        net.load_state_dict(live)

    run(stage, compute, look)
    net.load_state_dict(average.shadow)
    net.eval().requires_grad_(False)


@torch.inference_mode()
def sheet(bench: PoseBench, vae: AutoencoderKL) -> Image.Image:
    """A line of pictures, a line of their skeletons, and a line of what the captions and skeletons make."""
    step = bench.data.frames
    pictures = list(range(0, min(_SAMPLES * step, len(bench.latents)), step))
    captioner = Captioner(bench.data)
    shown = bench.control.shown(pictures)
    texts = [captioner(picture, 0).text for picture in pictures]
    latents = sample_latents(
        _Controlled(bench, shown), bench.model.encode(bench.tokenizer, texts).float(),
        bench.model.encode(bench.tokenizer, [""]).float(), (len(pictures), *bench.latents.shape[1:]),
        guidance=4.0, steps=_STEPS, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    with mixed_precision(vae.device):
        made = to_pictures(vae.decode(latents / vae.config.scaling_factor).sample)
    skeletons = (255 * shown.permute(0, 2, 3, 1)).byte().cpu().numpy()
    lines = (bench.data.pictures[pictures], skeletons, made)
    return Image.fromarray(np.concatenate([np.concatenate(list(line), axis=1) for line in lines]))


class _Controlled:
    """The UNet with a ControlNet that is shown the same pictures in both guidance branches."""

    def __init__(self, bench: PoseBench, shown: Tensor) -> None:
        self._bench = bench
        self._shown = shown.repeat(2, 1, 1, 1)

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Any:
        added = self._bench.control.residuals(self._shown, noisy, timesteps, text)
        return self._bench.model.unet(noisy, timesteps, text, **added)
