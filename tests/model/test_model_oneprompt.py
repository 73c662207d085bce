"""1Prompt1Story: the long text, its reweighting, cross-attention that keeps the identity, against plain formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyloom_kernels import reference
from storyloom_model import compose
from storyloom_model.denoiser import Denoiser
from storyloom_model.methods.oneprompt import LongPrompt, long_prompts, reweighted
from storyloom_model.partial_text import attend_partly_with_identity
from storyloom_model.prompts import ComposedPrompt
from tests.model.tiny import TOKENS, tiny_job

CAST = {"mia": "a girl", "bo": "an old man"}


def frames(*prompts: str, style: str = "") -> list[ComposedPrompt]:
    made = [compose(style, prompt, CAST, []) for prompt in prompts]
    return [one for one in made if isinstance(one, ComposedPrompt)]


def told(row: LongPrompt) -> tuple[str, str, list[str]]:
    """A text, what of it is the frame's own, and the others'."""
    text = row.prompt.text
    return text, text[slice(*row.own)], [text[slice(*span)] for span in row.others]


def test_frames_with_the_same_characters_are_one_text() -> None:
    prompts = frames(
        "{mia} walks in a park", "{mia} and {bo} sit", "a hill", "a chair, {mia} waves", style="watercolour,"
    )
    rows = long_prompts(prompts, lambda _: True)
    text = "a girl watercolour walks in a park watercolour, a chair waves"
    first, last = "watercolour walks in a park", "watercolour, a chair waves"
    assert told(rows[0]) == (text, first, [last])
    assert told(rows[3]) == (text, last, [first])
    assert told(rows[1]) == ("watercolour, a girl and an old man sit", "sit", [])
    assert rows[1].prompt.spans == {"mia": ((13, 19),), "bo": ((24, 34),)}
    assert told(rows[2]) == ("watercolour, a hill", "watercolour, a hill", [])
    assert rows[2].identity.text == ""


def test_the_style_that_all_begin_with_is_told_once() -> None:
    rows = long_prompts(frames("{mia} walks", "{mia} sits", style="watercolour,"), lambda _: True)
    assert {row.prompt.text for row in rows} == {"watercolour, a girl walks sits"}
    assert {row.identity.text for row in rows} == {"watercolour, a girl"}


@pytest.mark.parametrize(("words", "shown"), [(5, 3), (4, 2), (3, 1), (1, 1)])
def test_of_what_does_not_fit_each_frame_tells_of_the_next_ones(words: int, shown: int) -> None:
    """The identity is two words, each frame one."""
    prompts = frames("{mia} walks", "{mia} sits", "{mia} runs")
    rows = long_prompts(prompts, lambda text: len(text.split()) <= words)
    order = ["walks", "sits", "runs"]
    for place, row in enumerate(rows):
        around = order if shown == 3 else [order[(place + step) % 3] for step in range(shown)]
        assert told(row) == (
            " ".join(["a girl", *around]), order[place], [one for one in around if one != order[place]]
        )  # fmt: skip


def scaled(values: NDArray[np.float64], alpha: float, beta: float) -> NDArray[np.float64]:
    left, singular, right = np.linalg.svd(values, full_matrices=False)
    made: NDArray[np.float64] = left @ np.diag(beta * np.exp(-alpha * singular) * singular) @ right
    return made


def test_singular_values_of_a_frame_rise_and_of_others_fall() -> None:
    hidden = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    own, others, ends = [1, 2], ([3], [4, 5, 6]), [7, 8]
    expected = hidden.double().numpy().copy()
    for other in others:
        at = [*other, *ends]
        expected[at] = scaled(expected[at], 0.01, 0.05)
    at = [*own, *ends]
    expected[at] = scaled(expected[at], -0.01, 1.0)

    def flags(at: Any) -> Tensor:
        return torch.zeros(9, dtype=torch.bool).index_fill(0, torch.tensor(at), True)

    found = reweighted(hidden, flags(own), [flags(one) for one in others], flags(ends))
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    assert torch.equal(found[0], hidden[0])
    assert float(found[3].norm()) < 0.1 * float(hidden[3].norm()) < float(found[1].norm())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.inference_mode()
def test_layers_attend_to_the_reweighted_text_and_the_identity(denoiser: Denoiser, guidance: float) -> None:
    """Mia alone, then with Bo: no frame has another with the same characters, so that none is weakened."""
    job = tiny_job(2, method="oneprompt", guidance_scale=guidance, steps=2)
    state = denoiser.encode(job)
    encoder, tokenizer = denoiser._text_encoder, denoiser._text_encoder._tokenizer
    rows = long_prompts([frame.prompt for frame in job.frames], encoder.fits)
    texts = []
    for row in rows:
        values = encoder.embed([row.prompt.text]).hidden[0].double().numpy().copy()
        before = len(tokenizer(row.prompt.text[: row.own[0]])["input_ids"]) - 1
        until = len(tokenizer(row.prompt.text)["input_ids"]) - 1
        at = [*range(before, until), *range(until, TOKENS)]
        values[at] = scaled(values[at], -0.01, 1.0)
        identity = encoder.embed([row.identity.text]).hidden[0]
        words = len(tokenizer(row.identity.text)["input_ids"]) - 1  # With the start token.
        texts.append(torch.cat([torch.from_numpy(values).float(), identity[:words]]))
    if job.guided:
        texts = [encoder.embed([job.negative_prompt]).hidden[0]] * 2 + texts
    seen: list[tuple[Any, Tensor, Tensor]] = []
    unet = denoiser._unets["amsa-mask"]
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    hooks = [
        one.register_forward_hook(lambda module, given, out: seen.append((module, given[0], out))) for one in attentions
    ]
    denoiser.step([state])
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(attentions)
    for attn, hidden, out in seen:
        for place, text in enumerate(texts):
            q, k, v = (
                one.unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                for one in (attn.to_q(hidden[place]), attn.to_k(text), attn.to_v(text))
            )
            weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
            expected = attn.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
            torch.testing.assert_close(out[place], expected, atol=1e-4, rtol=0)


def test_what_is_left_out_might_as_well_not_be_there() -> None:
    """Text, identity streams and maps, with the last tokens of the second row left out."""
    generator = torch.Generator().manual_seed(1)
    q, id_k, id_v = (torch.randn(2, 2, size, 16, generator=generator) for size in (6, 3, 3))
    k, v = (torch.randn(2, 2, 5, 16, generator=generator) for _ in range(2))
    unseen = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    ends, scale = torch.tensor([[1, 3]] * 2), torch.rand(2, 2, generator=generator)
    region, tokens = torch.rand(2, 2, 6, generator=generator), torch.rand(2, 1, 5, generator=generator) > 0.5
    tokens[1, :, 3:] = False
    out, maps = attend_partly_with_identity(q, k, v, unseen, id_k, id_v, ends, scale, region, tokens)
    for row, count in enumerate((5, 3)):
        own = slice(row, row + 1)
        expected, expected_maps = reference.identity_cross_attention(
            q[own], k[own, :, :count], v[own, :, :count], id_k[own], id_v[own], ends[own], scale[own], region[own],
            tokens[own, :, :count],
        )  # fmt: skip
        torch.testing.assert_close(out[own], expected)
        torch.testing.assert_close(maps[own], expected_maps)
