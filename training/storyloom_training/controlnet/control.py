"""A pose ControlNet beside a frozen UNet: shown the skeletons of pictures, it says what to add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from storyloom_model.controlnets.loading import load_controlnet
from storyloom_training.config import ControlNetRecipe
from storyloom_training.controlnet.keypoints import Keypoints, people_keypoints
from storyloom_training.controlnet.skeleton import draw_skeletons
from storyloom_training.storydb.dataset import StoryDB


@dataclass(frozen=True)
class PoseControl:
    """`keypoints` [pictures, people, joints, 2] are of the set that the pictures are numbers of; `size` in pixels."""

    net: ControlNetModel
    keypoints: Keypoints
    size: int

    @classmethod
    def load(cls, folder: Path, keypoints: Path, data: StoryDB) -> PoseControl:
        """A trained ControlNet, for a set.

        Args:
            folder: of the ControlNet.
            keypoints: file for those of the set, made if it is not there.
            data: the set.
        """
        return cls(load_controlnet(folder), people_keypoints(keypoints, data), data.size)

    def shown(self, pictures: list[int]) -> Tensor:
        """The skeletons of pictures, [n, 3, size, size] in [0, 1]."""
        drawn = np.stack([draw_skeletons(self.keypoints[picture], self.size) for picture in pictures])
        return torch.from_numpy(drawn).to(self.net.device).permute(0, 3, 1, 2).float() / 255

    def residuals(self, shown: Tensor, noisy: Tensor, timesteps: Tensor, text: Tensor) -> dict[str, Any]:
        """What is added to the UNet, as its keyword arguments.

        Args:
            shown: [n, 3, size, size].
            noisy: [n, c, h, w].
            timesteps: [n].
            text: [n, t, d].
        """
        down, middle = self.net(noisy, timesteps, text, shown, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def of(self, pictures: list[int], noisy: Tensor, timesteps: Tensor, text: Tensor) -> dict[str, Any]:
        """`residuals` of the pictures' own skeletons."""
        return self.residuals(self.shown(pictures), noisy, timesteps, text)


def new_controlnet(unet: UNet2DConditionModel, plan: ControlNetRecipe) -> ControlNetModel:
    """A copy of the UNet's encoder that adds nothing yet: its last layers are zero."""
    nets: Any = ControlNetModel
    copy = nets.from_unet(unet, conditioning_embedding_out_channels=plan.embedding)
    # from_unet leaves the heads that pool the text at their default.
    config = {key: value for key, value in copy.config.items() if not key.startswith("_")}
    config["addition_embed_type_num_heads"] = unet.config.addition_embed_type_num_heads
    net: ControlNetModel = nets(**config)
    net.load_state_dict(copy.state_dict())
    return net
