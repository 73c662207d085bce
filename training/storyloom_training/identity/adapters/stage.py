"""The stage that trains an identity adapter on top of the frozen model, frames attending to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention
from storyloom_training.base import TextToImage
from storyloom_training.config import AdapterRecipe, Recipe
from storyloom_training.controlnet.control import PoseControl
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import add_noise, build_scheduler
from storyloom_training.identity.adapters.batches import BatchSource, IdentityBatch, References, of_others
from storyloom_training.identity.adapters.face_loss import FaceLoss
from storyloom_training.identity.adapters.faces import PeopleFaces
from storyloom_training.identity.adapters.said import said_plainly
from storyloom_training.identity.adapters.trainee import Trainee
from storyloom_training.loop import Ema, Losses, Stage, run
from storyloom_training.losses import mask_perceptual_loss, people_weights, weighted_mse

SAVE_EVERY, SAMPLE_EVERY = 50, 150
"""Steps between checkpoints and between contact sheets, which take as long as a dozen steps."""


@dataclass(frozen=True)
class Bench:
    """What is frozen and read: the model with story attention, its data as latents, and the recipe.

    `latents` [pictures, c, h, w] belong to `source.data`, and so do `poses`: with them the model is shown how the
    people of each picture stand, so that references need not say it (StoryMaker's pose decoupling). Without `face_loss`
    faces are not looked at. `faces` says where they are, for methods that are shown it; `image_encoder` is the
    package's, for those that begin with it.
    """

    recipe: Recipe
    plan: AdapterRecipe
    model: TextToImage
    tokenizer: CLIPTokenizer
    source: BatchSource
    latents: Tensor
    face_loss: FaceLoss | None = None
    poses: PoseControl | None = None
    faces: PeopleFaces | None = None
    image_encoder: Path | None = None

    def layout(self, rows: int) -> GroupLayout:
        """Which rows attend to each other."""
        frames = 1 if self.plan.alone else self.plan.frames
        return GroupLayout((frames,) * (rows // frames))


@dataclass(frozen=True)
class Noised:
    """Noise and timesteps of a batch's rows: [rows, c, h, w] and int64 [rows]."""

    noise: Tensor
    timesteps: Tensor

    @classmethod
    def draw(cls, bench: Bench, groups: int, draw: torch.Generator) -> Noised:
        """Frames of a story are at the same timestep; groups are spread over the schedule."""
        frames = bench.plan.frames
        slices = (torch.arange(groups) + torch.rand(groups, generator=draw)) / groups
        noise = torch.randn((groups * frames, *bench.latents.shape[1:]), generator=draw)
        return cls(noise, (slices * 1000).long().repeat_interleave(frames))


def losses_of(
    bench: Bench,
    trainee: Trainee,
    batch: IdentityBatch,
    references: References | None,
    noised: Noised,
    *,
    true_masks: bool,
) -> Losses:
    """The losses of one batch.

    Args:
        bench: what is frozen.
        trainee: makes the streams.
        batch: rows; its references are not looked at.
        references: of the rows; None: no identity streams.
        noised: noise and timesteps.
        true_masks: people are where they truly are, for regions and the first masks, as if maps were perfect.
    """
    unet, data = bench.model.unet, bench.source.data
    features = bench.source.features
    if references is None:
        said = said_plainly(bench.model, bench.tokenizer, batch)
    else:
        said = trainee.said(bench.model, bench.tokenizer, batch, features, references)
    text = said.text
    clean = bench.latents[batch.pictures].float()
    masks, heads = (torch.from_numpy(part[batch.pictures]).float() / 255 for part in (data.masks, data.heads))
    noisy, target = add_noise(build_scheduler(), clean, noised.noise, noised.timesteps)
    size = (clean.shape[-2], clean.shape[-1])
    with mixed_precision(unet.device):
        identity = None if references is None else trainee.streams(features, references)
        story = StoryAttention(
            bench.layout(len(batch.pictures)),
            latent_size=size,
            token_mask=said.masks,
            first_mask=masks.amax(1) if true_masks else None,
            identity=identity,
            region_masks=masks if true_masks else None,
        )
        posed = {} if bench.poses is None else bench.poses.of(batch.pictures, noisy, noised.timesteps, text)
        if references is not None:
            posed |= trainee.controls(bench.faces, batch.pictures, features, references, noisy, noised.timesteps)
        made = unet(noisy, noised.timesteps, text, cross_attention_kwargs={"story": story}, **posed).sample.float()
    base = bench.recipe.base
    weight = people_weights(masks, heads, size, base.people_weight, base.head_weight)
    diffusion = weighted_mse(made, target, weight)
    captioned = torch.tensor([caption is not None for caption in batch.captions]).view(-1, 1, 1, 1)
    dice = mask_perceptual_loss([(layer.values, layer.size) for layer in story.layer_maps], masks * captioned)
    extra = {} if references is None else trainee.regularise(story, masks, references)
    if bench.face_loss is not None and references is not None:
        faces = bench.face_loss(noisy, made, noised.timesteps, batch, references)
        extra |= {} if faces is None else {"faces": bench.plan.face_loss * faces}
    loss = diffusion + bench.plan.mask_loss * dice + sum(extra.values(), torch.zeros(()))
    parts = {"diffusion": diffusion, "dice": dice} | extra
    return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


@torch.no_grad()
def validate(bench: Bench, trainee: Trainee, groups: int = 8) -> dict[str, float]:
    """Diffusion loss of held-out people under generic captions: with their references, with other people's, with none.

    Rows, noise and captions are the same for all three and at every call.
    """
    source = replace(bench.source, plan=replace(bench.plan, full_odds=0.0, clothes_odds=0.0))
    found: dict[str, list[float]] = {"right": [], "wrong": [], "none": []}
    draw = torch.Generator().manual_seed(0)
    groups = min(groups, source.features.groups)
    for start in range(0, groups, bench.plan.groups):
        chosen = list(range(start, min(start + bench.plan.groups, groups)))
        batch = source.of_groups(chosen, draw, 0, drop=False)
        noised = Noised.draw(bench, len(chosen), draw)
        kinds = {"right": batch.references, "wrong": of_others(batch.references, bench.plan.frames), "none": None}
        for name, references in kinds.items():
            made = losses_of(bench, trainee, batch, references, noised, true_masks=False)
            found[name].append(float(made["diffusion"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def train_adapter(
    bench: Bench,
    folder: Path,
    trainee: Trainee,
    held_out: Bench,
    sample: Callable[[Trainee, Path], None] | None = None,
    parameters: list[torch.nn.Parameter] | None = None,
) -> dict[str, Tensor]:
    """Trains maker and layers; the model stays frozen. Returns averaged weights, named as in an adapter's file.

    At every checkpoint writes the losses of `validate` on `held_out` to `validation.jsonl`, and now and then with
    `sample` a picture to `samples/`.
    """
    plan = bench.plan
    bench.model.requires_grad_(False)
    average = Ema(trainee, plan.ema_decay)
    trained = parameters or list(trainee.parameters())
    stage = Stage(
        name=folder.name,
        folder=folder,
        model=trainee,
        optimizer=torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.01, fused=True),
        steps=plan.steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(bench.recipe.seed + 6),
        ema=average,
        save_every=SAVE_EVERY,
    )

    def compute(stage: Stage) -> Losses:
        batch = bench.source.draw(stage.generator, stage.step)
        noised = Noised.draw(bench, plan.groups, stage.generator)
        true_masks = bool(torch.rand((), generator=stage.generator) < plan.true_region_odds)
        return losses_of(bench, trainee, batch, batch.references, noised, true_masks=true_masks)

    def look(stage: Stage) -> None:
        live = {name: value.clone() for name, value in trainee.state_dict().items()}
        trainee.load_state_dict(average.shadow)
        with (folder / "validation.jsonl").open("a") as log:
            log.write(json.dumps({"step": stage.step} | validate(held_out, trainee)) + "\n")
        if sample and (stage.step % SAMPLE_EVERY == 0 or stage.step == stage.steps):
            (folder / "samples").mkdir(exist_ok=True)
            sample(trainee, folder / "samples" / f"{stage.step:06d}.png")
        trainee.load_state_dict(live)

    run(stage, compute, look)
    trainee.load_state_dict(average.shadow)
    return dict(average.shadow)
