"""Tiny random Grounding DINO and Segment Anything in the folders that transformers publishes them in."""

from __future__ import annotations

from pathlib import Path

import torch

SIDE = 64
WORDS = ("a", "person", "girl", "man", ".", "?")


def swin(**settings: object) -> object:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=SIDE, **settings
    )  # fmt: skip


def save_sam(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    vision = t.SamVisionConfig(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=16,
        mlp_dim=32, global_attn_indexes=[1], window_size=2, num_pos_feats=4,
    )  # fmt: skip
    prompts = t.SamPromptEncoderConfig(hidden_size=8, image_size=SIDE, patch_size=16, mask_input_channels=4)
    masks = t.SamMaskDecoderConfig(
        hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8
    )
    config = t.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(), mask_decoder_config=masks.to_dict()
    )
    t.SamModel(config).save_pretrained(folder)
    images = t.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}, mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    t.SamProcessor(images).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = t.BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})
    text = t.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = t.GroundingDinoConfig(
        backbone_config=swin(out_features=["stage2", "stage3", "stage4"], out_indices=[2, 3, 4]), text_config=text,
        num_queries=6, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, d_model=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=4, max_text_len=16,
    )  # fmt: skip
    t.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = t.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 144})
    t.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder
