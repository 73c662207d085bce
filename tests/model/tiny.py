"""A model package with tiny random weights: every part is real, nothing is learnt, and it builds in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storyloom_model import AnchorFrame, ComposedPrompt, FrameJob, StoryJob, compose
from storyloom_model.components import Components, save_package
from storyloom_model.denoiser import Denoiser
from storyloom_model.manifest import Manifest
from storyloom_model.noise import frame_seed
from storyloom_model.state import StoryState

SIZE = 64
TOKENS = 77
_WORDS = (
    "a",
    "an",
    "and",
    "the",
    "in",
    "on",
    "with",
    "of",
    "girl",
    "boy",
    "man",
    "red",
    "blue",
    "coat",
    "hair",
    "walks",
)


def build_tiny_package(folder: Path, *, seed: int = 0) -> Path:
    """Builds the package and returns its folder. Pictures are 64 by 64 (8 by 8 latents); adapters: amsa-mask, amsa."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        components = Components(tiny_unet(), tiny_vae(), tiny_text_encoder(tokenizer), tokenizer, tiny_scheduler())
        adapters = {name: _random_adapter(components.unet) for name in ("amsa-mask", "amsa")}
        save_package(folder, tiny_manifest(), components, adapters)
    return folder


CAST = {"mia": "a girl with red hair", "bo": "an old man"}
PROMPTS = ("{mia} walks in the park", "{mia} and {bo} sit", "{bo} on the hill", "the {mia} and the {bo}")


def tiny_job(frames: int = 3, seed: int = 1, **settings: Any) -> StoryJob:
    """A job for the tiny package: Mia alone, both, Bo alone, both. ``settings`` are fields of ``StoryJob``."""
    prompts = [compose("", prompt, CAST, []) for prompt in PROMPTS[:frames]]
    made = [
        FrameJob(prompt, frame_seed(seed, index))
        for index, prompt in enumerate(prompts)
        if isinstance(prompt, ComposedPrompt)
    ]
    fields = {
        "negative_prompt": "the blue dog",
        "steps": 4,
        "guidance_scale": 4.0,
        "solver": "ddim",
        "width": SIZE,
        "height": SIZE,
        "adapter": "amsa-mask",
        "cross_frame": True,
    }
    return StoryJob(tuple(made), **(fields | settings))  # type: ignore[arg-type]


def tiny_anchors(denoiser: Denoiser, count: int, seed: int = 7) -> tuple[AnchorFrame, ...]:
    """The frames of a finished story, as anchors: Mia alone, both, Bo alone, both."""
    if count == 0:
        return ()
    state = finish(denoiser, tiny_job(count, seed=seed))
    return tuple(
        AnchorFrame(frame.prompt, frame.seed, latents)
        for frame, latents in zip(state.job.frames, denoiser.final_latents(state), strict=True)
    )


def finish(denoiser: Denoiser, job: StoryJob) -> StoryState:
    """Makes a story on its own."""
    state = denoiser.encode(job)
    while not state.done:
        denoiser.step([state])
    return state


def tiny_manifest() -> Manifest:
    return Manifest.model_validate(
        {
            "name": "tiny",
            "description": "Random weights for tests.",
            "sizes": [[SIZE, SIZE], [96, SIZE]],
            "defaults": {"steps": 4, "guidance_scale": 4.0, "width": SIZE, "height": SIZE, "adapter": "amsa-mask"},
            "limits": {"max_prompt_tokens": TOKENS},
            "adapters": {name: f"id_synchronizer/{name}.safetensors" for name in ("amsa-mask", "amsa")},
        }
    )


def tiny_unet() -> Any:
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=SIZE // 8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        # diffusers reads this as the number of heads: 16 channels each.
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
    )


def tiny_vae() -> Any:
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_tokenizer() -> CLIPTokenizer:
    """Every byte, and a word for each of a few; other words fall into letters."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    merges: Any = []
    for word in _WORDS:
        left = word[0]
        for position, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if position == len(word) else "")
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            left += right
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tiny_scheduler() -> Any:
    """Zero terminal signal-to-noise ratio and v-prediction, as the built-in model has."""
    return DDIMScheduler(  # type: ignore[no-untyped-call]
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def _random_adapter(unet: Any) -> dict[str, torch.Tensor]:
    names = [name for name in unet.state_dict() if ".attn1." in name or ".attn2.to_q" in name or ".attn2.to_k" in name]
    return {name: 0.1 * torch.randn_like(unet.state_dict()[name]) for name in names}
