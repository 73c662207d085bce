"""Segmenters of every kind, on tiny random models of the published forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.segmentation import (
    GroundedSegmenter,
    Parser,
    SemanticSegmenter,
    UniversalSegmenter,
    load_segmenter,
)
from tests.model.published_finder import save_grounding_dino, save_sam, swin

CLASSES = {0: "wall", 1: "person", 2: "tree"}
NAMES = {"id2label": CLASSES, "label2id": {name: index for index, name in CLASSES.items()}}
SIDE = {"height": 64, "width": 64}


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """Of another size and shape than models take."""
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def segformer(folder: Path, classes: dict[str, object] = NAMES) -> Path:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, **classes,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size=SIDE).save_pretrained(folder)
    return folder


def test_semantic_models_say_where_their_person_class_wins(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    segmenter = load_segmenter(segformer(tmp_path))
    assert isinstance(segmenter, SemanticSegmenter)
    mask = segmenter.people(picture)
    network = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    processor = SegformerImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        output = network(**processor(images=Image.fromarray(picture), return_tensors="pt"))
    (classes,) = processor.post_process_semantic_segmentation(output, target_sizes=[(60, 80)])
    assert mask.shape == (60, 80)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, (classes == 1).numpy())


def test_parsers_put_classes_together_to_parts(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    names = dict(enumerate(("Background", "Hair", "Upper-clothes", "Dress", "Left-shoe", "Right-shoe", "Bag", "Face")))
    folder = segformer(tmp_path / "parser", {"id2label": names, "label2id": {name: at for at, name in names.items()}})
    parser = Parser(folder)
    found, classes = parser.find(picture), parser._classes(picture)
    expected = {"face": [7], "hair": [1], "hat": [], "upper": [2, 3], "lower": [], "shoes": [4, 5]}
    assert list(found) == list(expected)
    for part, indices in expected.items():
        np.testing.assert_array_equal(found[part], np.isin(classes, indices))
    with pytest.raises(EncodersError, match="are no parts of people"):
        Parser(segformer(tmp_path / "rooms"))


def test_universal_models_are_told_by_their_architecture(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    torch.manual_seed(0)
    backbone = swin(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=4, num_labels=3,
        common_stride=4, **NAMES,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size=SIDE).save_pretrained(tmp_path)
    segmenter = load_segmenter(tmp_path)
    assert isinstance(segmenter, UniversalSegmenter)
    assert segmenter.people(picture).shape == (60, 80)


@pytest.fixture
def grounded(tmp_path: Path) -> Path:
    """A folder with a tiny Grounding DINO and a tiny SAM."""
    save_sam(tmp_path / "sam")
    save_grounding_dino(tmp_path / "grounding_dino")
    return tmp_path


def test_grounded_segmentation_finds_nobody_where_the_detector_finds_no_box(
    grounded: Path, picture: NDArray[np.uint8]
) -> None:
    segmenter = load_segmenter(grounded)
    assert isinstance(segmenter, GroundedSegmenter)
    assert segmenter.people(picture, least=1.1).sum() == 0


def test_grounded_segmentation_unites_the_masks_of_all_boxes(grounded: Path, picture: NDArray[np.uint8]) -> None:
    segmenter = load_segmenter(grounded)
    assert isinstance(segmenter, GroundedSegmenter)
    mask = segmenter.people(picture, least=0.0)
    boxes = np.array([[4.0, 4.0, 40.0, 50.0], [1.0, 1.0, 9.0, 9.0]], np.float32)
    both = segmenter.inside(picture, boxes)
    alone = [segmenter.inside(picture, boxes[index : index + 1]) for index in (0, 1)]
    assert mask.shape == both.shape == (60, 80)
    np.testing.assert_array_equal(both, alone[0] | alone[1])


def test_a_model_without_a_person_class_is_refused(tmp_path: Path) -> None:
    classes = {"id2label": {0: "wall", 1: "personal computer"}, "label2id": {"wall": 0, "personal computer": 1}}
    with pytest.raises(EncodersError, match="no person"):
        load_segmenter(segformer(tmp_path, classes))


def test_an_empty_folder_is_no_segmenter(tmp_path: Path) -> None:
    with pytest.raises(EncodersError, match=r"segmenter\.onnx"):
        load_segmenter(tmp_path)
