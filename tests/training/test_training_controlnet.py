"""The pose ControlNet: where joints are, what is drawn of them, and that the stage makes one that the engine serves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import Control
from storyloom_model.package import ModelPackage
from storyloom_training.base import build_model
from storyloom_training.config import SMOKE
from storyloom_training.controlnet.__main__ import add_pose_controlnet
from storyloom_training.controlnet.control import PoseControl, new_controlnet
from storyloom_training.controlnet.keypoints import group_keypoints
from storyloom_training.controlnet.skeleton import COLOURS, LIMBS, draw_skeletons
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.storydb.picture import render
from storyloom_training.storydb.pose import KEYPOINTS
from storyloom_training.tokenizer import corpus, train_tokenizer
from tests.model.tiny import build_tiny_package, finish, tiny_job

# What the tiny package is made for: a VAE of four channels, pictures of 64 pixels.
RECIPE = SMOKE


def test_joints_are_where_the_pictures_have_them(tmp_path: Path) -> None:
    data = StoryDB(tmp_path, Split.TRAIN, 3, 2, 64, 8)
    for index in range(data.groups):
        found = group_keypoints(data, index)
        for frame in range(data.frames):
            people = render(data.group(index), frame, 64).people
            assert np.isnan(found[frame, len(people) :]).all()
            for joints, person in zip(found[frame], people, strict=False):
                for joint, name in zip(joints, KEYPOINTS, strict=True):
                    assert joint * 64 == pytest.approx(person.keypoints[name], abs=1e-3)


def test_a_skeleton_tells_its_limbs_apart() -> None:
    nobody = np.full((14, 2), np.nan, np.float32)
    joints = np.random.default_rng(3).uniform(0.1, 0.9, (14, 2)).astype(np.float32)
    picture = draw_skeletons(np.stack([joints, nobody]), 256)
    assert len(set(COLOURS)) == len(LIMBS)
    last = [joints[KEYPOINTS.index(name)] for name in LIMBS[-1]]
    x, y = (256 * (last[0] + last[1]) / 2).astype(int)
    red, green, blue = (int(part) for part in picture[y, x])
    assert red << 16 | green << 8 | blue == COLOURS[-1]
    assert not draw_skeletons(nobody[None], 64).any()
    assert 0.01 < picture.any(-1).mean() < 0.2


def test_a_fresh_one_adds_nothing_and_reads_as_its_model_does() -> None:
    tokenizer = train_tokenizer(corpus(50), SMOKE.base.vocabulary, SMOKE.base.tokens)
    unet = build_model(SMOKE, tokenizer).unet
    net = new_controlnet(unet, SMOKE.controlnet)
    assert net.config.addition_embed_type_num_heads == unet.config.addition_embed_type_num_heads
    joints = np.random.default_rng(0).uniform(size=(2, 3, 14, 2)).astype(np.float32)
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, SMOKE.base.text_width)
    added = PoseControl(net, joints, 64).of([0, 1], noisy, torch.tensor([3, 900]), text)
    values = [*added["down_block_additional_residuals"], added["mid_block_additional_residual"]]
    assert len(values) == 5
    assert not any(value.any() for value in values)


def test_a_stage_gives_a_package_poses(tmp_path: Path) -> None:
    """Through every part, and through the engine."""
    folder = build_tiny_package(tmp_path / "package")
    recipe = replace(RECIPE, controlnet=replace(RECIPE.controlnet, learning_rate=3e-2))
    before = finish(Denoiser.load(folder), tiny_job(1, steps=2)).latents
    package = add_pose_controlnet(recipe, ModelPackage.load(folder), tmp_path / "rendered", tmp_path / "run")
    (name,) = package.manifest.controlnets
    lines = (tmp_path / "run/pose/validation.jsonl").read_text().splitlines()
    assert set(json.loads(lines[-1])) == {"step", "right", "wrong", "none"}
    assert Image.open(tmp_path / "run/pose/samples/000003.png").size == (4 * 64, 3 * 64)
    keypoints = np.load(tmp_path / "run/keypoints/validation.npy")
    file = io.BytesIO()
    Image.fromarray(draw_skeletons(keypoints[0], 64)).save(file, "PNG")
    job = tiny_job(1, steps=2)
    denoiser = Denoiser.load(folder)
    assert torch.equal(finish(denoiser, job).latents, before)
    posed = replace(job, frames=(replace(job.frames[0], control=Control(name, file.getvalue())),))
    assert float((finish(denoiser, posed).latents - before).abs().max()) > 1e-4
