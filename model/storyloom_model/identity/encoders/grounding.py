"""Boxes by words, and masks by boxes: Grounding DINO and Segment Anything, as transformers publishes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from storyloom_model.identity.encoders.crops import Pixels
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.pretrained import load_network, load_processor

DETECTOR_TYPE, MASKS_TYPE = "grounding-dino", "sam"
"""What the config.json of each calls itself."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundBoxes:
    """All boxes that a detector thinks of, of n queries and W phrases.

    ``boxes`` are float32 [n, 4]: left, top, right, bottom, in pixels. ``scores`` are [n], of the token that fits best,
    whichever it is; ``phrases`` [n, W], of the best token of each phrase. Both in [0, 1].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    phrases: NDArray[np.float32]


class WordDetector:
    """Grounding DINO: where a picture shows what words say.

    Args:
        folder: of a GroundingDinoForObjectDetection and its processor.
        device: where it runs, in float32.

    Raises:
        EncodersError: the folder is not usable.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        check_type(folder, DETECTOR_TYPE, "Grounding DINO")
        self._network = load_network(GroundingDinoForObjectDetection, folder).to(device)
        self._processor = load_processor(AutoProcessor, folder)
        tokenizer = self._processor.tokenizer
        self._stop = tokenizer.convert_tokens_to_ids(".")
        self._special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
        if self._stop in (None, tokenizer.unk_token_id):
            raise EncodersError(f"{folder} has no tokenizer that knows a full stop; download its vocabulary, too")

    @torch.inference_mode()
    def find(self, picture: Pixels, phrases: Sequence[str]) -> FoundBoxes:
        """What it thinks of, unsorted, of a picture uint8 [h, w, 3] RGB. Phrases have no full stops."""
        height, width = picture.shape[:2]
        text = " ".join(f"{phrase.lower()}." for phrase in phrases)
        inputs = self._processor(images=Image.fromarray(picture), text=text, return_tensors="pt")
        output = self._network(**inputs.to(self._network.device))
        of_tokens = output.logits[0].float().sigmoid()
        best = [of_tokens[:, places].amax(dim=1) for places in self._places(inputs["input_ids"][0], len(phrases))]
        x, y, wide, high = output.pred_boxes[0].float().unbind(-1)
        corners = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], dim=-1)
        boxes = corners.cpu() * torch.tensor([width, height, width, height], dtype=torch.float32)
        return FoundBoxes(boxes.numpy(), of_tokens.amax(dim=1).cpu().numpy(), torch.stack(best, dim=1).cpu().numpy())

    def _places(self, tokens: Tensor, phrases: int) -> list[list[int]]:
        """Where the tokens of each phrase are: a full stop ends it."""
        places: list[list[int]] = [[]]
        for place, token in enumerate(tokens.tolist()):
            if token == self._stop:
                places.append([])
            elif token not in self._special:
                places[-1].append(place)
        return places[:phrases]


class BoxSegmenter:
    """Segment Anything, prompted with boxes.

    Args:
        folder: of a SamModel and its processor.
        device: where it runs, in float32.

    Raises:
        EncodersError: the folder is not usable.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import SamModel, SamProcessor

        check_type(folder, MASKS_TYPE, "Segment Anything")
        self._network = load_network(SamModel, folder).to(device)
        self._processor = load_processor(SamProcessor, folder)

    @torch.inference_mode()
    def inside(self, picture: Pixels, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        """What it takes for the thing in each box [n, 4] (left, top, right, bottom) of a picture uint8 [h, w, 3] RGB:
        bool [n, h, w].
        """
        if not len(boxes):
            return np.zeros((0, *picture.shape[:2]), np.bool_)
        image = Image.fromarray(picture)
        inputs = self._processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(self._network.device)
        output = self._network(**inputs, multimask_output=False)
        (masks,) = self._processor.image_processor.post_process_masks(
            output.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        found: NDArray[np.bool_] = masks[:, 0].numpy()
        return found


def check_type(folder: Path, wanted: str, name: str) -> None:
    """Refuses a folder of another model.

    Raises:
        EncodersError: as said.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncodersError(f"{folder} is no folder of {name}: its config.json cannot be read") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != wanted:
        raise EncodersError(f"{folder} holds a model of type {found}; it has to be {name} ({wanted}) of transformers")
