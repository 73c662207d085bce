"""PhotoMaker's files against the method's formulas, written out over the files' weights, and stories made with them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor

from storyloom_model.adding.package import Wish, add_adapter, add_model
from storyloom_model.adding.record import Record
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter, WordMaker
from storyloom_model.identity.features import IdentityFeatures
from storyloom_model.identity.loading import load_identity_adapter
from storyloom_model.identity.published.adapters import read_adapter
from storyloom_model.identity.published.files import read_weights
from storyloom_model.identity.published.forms import detect
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.identity.wording import first_fused_step
from storyloom_model.jobs import Identity, Redenoising, StoryJob
from storyloom_model.low_rank import fuse
from storyloom_model.methods import injection
from storyloom_model.package import ModelPackage, PackageError
from tests.model.published_files import (
    DEPTH,
    adapter_shapes,
    full_size_unet,
    identity,
    meta_weights,
    nested,
    photomaker_shapes,
    published_unet,
    random_weights,
)
from tests.model.published_models import write_folder
from tests.model.test_model_redenoising import regions
from tests.model.tiny import finish, tiny_job

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
METHODS = {"photomaker": False, "photomaker-v2": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both versions for the tiny SDXL, as torch files."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for (method, second), name in zip(METHODS.items(), ("photomaker-v1.bin", "photomaker-v2.bin"), strict=True):
        torch.save(
            nested(random_weights(photomaker_shapes(attention_layers(published_unet(80)), second=second))),
            folder / name,
        )
        made[method] = folder / name
    return made


class Formula:
    """The published modules' arithmetic on the weights of a file."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = {name.removeprefix("id_encoder."): value for name, value in weights.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", torch.zeros(()))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
        heads = [
            torch.softmax(a @ b.T / width**0.5, dim=1) @ c
            for a, b, c in zip(q.split(width, 1), k.split(width, 1), v.split(width, 1), strict=True)
        ]
        return torch.cat(heads, dim=1)

    def clip(self, portrait: Any) -> tuple[Tensor, Tensor]:
        """The last states of a picture, and what is said of it as a whole."""
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        pixels = processor(portrait, return_tensors="pt").pixel_values[0]
        own = "vision_model."
        kernel = self._weights[f"{own}embeddings.patch_embedding.weight"]
        patches = F.conv2d(pixels[None], kernel, stride=kernel.shape[-1])[0].flatten(1).T
        x = torch.cat([self._weights[f"{own}embeddings.class_embedding"][None], patches])
        x = self.norm(f"{own}pre_layrnorm", x + self._weights[f"{own}embeddings.position_embedding.weight"])
        for layer in range(2):
            at = f"{own}encoder.layers.{layer}"
            seen = self.norm(f"{at}.layer_norm1", x)
            q, k, v = (self.linear(f"{at}.self_attn.{part}_proj", seen) for part in "qkv")
            x = x + self.linear(f"{at}.self_attn.out_proj", self.attend(q, k, v, 64))
            hidden = self.linear(f"{at}.mlp.fc1", self.norm(f"{at}.layer_norm2", x))
            x = x + self.linear(f"{at}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
        return x, self.norm(f"{own}post_layernorm", x[0])

    def identities(self, features: IdentityFeatures, *, second: bool) -> Tensor:
        made = []
        for reference in features.references:
            states, pooled = self.clip(reference.portrait)
            if second:
                made.append(self.qformer(512**0.5 * torch.tensor(reference.face), states))
            else:
                both = [self.linear("visual_projection", pooled), self.linear("visual_projection_2", pooled)]
                made.append(torch.cat(both)[None])
        return torch.cat(made)

    def qformer(self, face: Tensor, states: Tensor) -> Tensor:
        at = "qformer_perceiver"
        coarse = self.linear(f"{at}.token_proj.2", F.gelu(self.linear(f"{at}.token_proj.0", face))).reshape(2, -1)
        coarse = self.norm(f"{at}.token_norm", coarse)
        at += ".perceiver_resampler"
        x, queries = self.linear(f"{at}.proj_in", states), coarse
        for layer in range(DEPTH):
            attention, feed_forward = f"{at}.layers.{layer}.0", f"{at}.layers.{layer}.1"
            own = self.norm(f"{attention}.norm2", queries)
            seen = torch.cat([self.norm(f"{attention}.norm1", x), own])
            k, v = self.linear(f"{attention}.to_kv", seen).chunk(2, dim=1)
            attended = self.attend(self.linear(f"{attention}.to_q", own), k, v, 128)
            queries = queries + self.linear(f"{attention}.to_out", attended)
            hidden = F.gelu(self.linear(f"{feed_forward}.1", self.norm(f"{feed_forward}.0", queries)))
            queries = queries + self.linear(f"{feed_forward}.3", hidden)
        return coarse + self.norm(f"{at}.norm_out", self.linear(f"{at}.proj_out", queries))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        at = f"fuse_module.{name}"
        return self.linear(f"{at}.fc2", F.gelu(self.linear(f"{at}.fc1", self.norm(f"{at}.layernorm", x))))

    def fuse(self, words: Tensor, identities: Tensor) -> Tensor:
        x = self.mlp("mlp1", torch.cat([words, identities], dim=1)) + words
        return self.norm("fuse_module.layer_norm", self.mlp("mlp2", x) + x)


def person(*seeds: int) -> IdentityFeatures:
    """One person's references."""
    return IdentityFeatures("test", tuple(identity(seed).references[0] for seed in seeds))


def read(file: Path, method: str) -> tuple[dict[str, Tensor], IdentityAdapter, WordMaker]:
    weights = read_weights(file, allow_pickle=True)
    adapter = read_adapter(method, "test", weights, published_unet(80))
    assert adapter.words is not None
    return weights, adapter, adapter.words


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_embeddings_and_fused_words_are_those_of_the_formulas(files: dict[str, Path], method: str) -> None:
    weights, _, words = read(files[method], method)
    formula, second = Formula(weights), METHODS[method]
    expected = formula.identities(person(1, 2), second=second)
    found = words.identities("mia", CharacterIdentity(person(1, 2)))
    assert found.shape == (4 if second else 2, 80)
    torch.testing.assert_close(found, expected, **CLOSE)
    plain = torch.randn(len(found), 80)
    torch.testing.assert_close(words.fuse(plain, found), formula.fuse(plain, expected), **CLOSE)
    mixed = words.identities("mia", CharacterIdentity(person(1, 2), blend=person(3), blend_weight=0.25))
    each = len(found) // 2
    own, other = expected.view(2, each, 80).mean(0), formula.identities(person(3), second=second)
    torch.testing.assert_close(mixed, 0.75 * own + 0.25 * other, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_low_rank_changes_are_added_to_all_attention(files: dict[str, Path], method: str) -> None:
    weights, adapter, _ = read(files[method], method)
    unet = published_unet(80)
    fused = fuse(unet, [(adapter.low_rank, 1.0)])
    assert len(fused) == 4 * len(attention_layers(unet))
    layer = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
    for theirs, ours in (("to_k", "to_k"), ("to_out", "to_out.0")):
        down, up = (
            weights[f"lora_weights.unet.{layer}.processor.{theirs}_lora.{half}.weight"] for half in ("down", "up")
        )
        expected = unet.state_dict()[f"{layer}.{ours}.weight"] + up @ down
        torch.testing.assert_close(fused[f"{layer}.{ours}.weight"], expected)


@pytest.mark.parametrize("method", METHODS)
def test_full_size_files_fit_sdxl(method: str) -> None:
    sdxl = full_size_unet("SDXL")
    shapes = photomaker_shapes(attention_layers(sdxl), second=METHODS[method], rank=64)
    weights = meta_weights(shapes)
    assert detect(weights) == method
    adapter = read_adapter(method, "test", weights, sdxl)
    assert (len(adapter.low_rank), adapter.words_start) == (4 * 140, 0.2)
    small = full_size_unet("SD 1.5")
    with pytest.raises(PackageError, match=r"is for SDXL \(2048\), the package is SD 1.5 \(768\)"):
        read_adapter(method, "test", weights, small)
    lacking = {name: value for name, value in weights.items() if not name.endswith("fuse_module.mlp2.fc1.bias")}
    with pytest.raises(PackageError, match="does not have the weights of its form"):
        read_adapter(method, "test", lacking, sdxl)
    second = "id_encoder.visual_projection_2.weight"
    narrow = weights | {second: weights[second][:-1]}
    with pytest.raises(PackageError, match="embeddings of width 2047 for a text of 2048"):
        read_adapter(method, "test", narrow, sdxl)
    with pytest.raises(PackageError, match=r"is a file of the form photomaker(-v2)?, not ip-adapter"):
        read_adapter("ip-adapter", "test", weights, sdxl)


def test_the_step_of_the_merge_is_that_of_the_published_pipeline() -> None:
    """There, step i reads plain text while i <= start_merge_step, 10 of 50."""
    assert first_fused_step(0.2, 50) == 11
    assert [first_fused_step(start, 100) for start in (0.0, 0.29, 1.0)] == [1, 30, 101]


@pytest.fixture(scope="module")
def package(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL with both versions, made by the command's code."""
    folder = tmp_path_factory.mktemp("photomaker")
    write_folder(folder / "base", sdxl=True)
    wish = Wish(str(folder / "base"), adapters=(files["photomaker"],), allow_pickle=True)
    made = add_model(wish, folder / "package", Record())
    add_adapter(made.folder, files["photomaker-v2"], Record(), name="second", method=None, allow_pickle=True)
    return made.folder


@pytest.fixture(scope="module")
def denoiser(package: Path) -> Denoiser:
    return Denoiser.load(package)


def cast_job(*seeds: int, frames: int = 2, adapter: str = "photomaker-v1", **settings: Any) -> StoryJob:
    """Mia alone, then Mia and Bo; references of Mia."""
    who = (Identity("mia", person(*seeds).to_bytes()),)
    fields = {"steps": 4, "adapter": None, "identities": who, "identity_adapter": adapter} | settings
    return tiny_job(frames, **fields)


def test_the_command_adds_both(package: Path) -> None:
    adapters = ModelPackage.load(package).manifest.identity_adapters
    assert {name: (one.method, one.keeps) for name, one in adapters.items()} == {
        "photomaker-v1": ("photomaker", ("face", "hair")),
        "second": ("photomaker-v2", ("face", "hair")),
    }


def test_a_package_says_from_when_on_it_acts(package: Path, files: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "package")
    made = add_adapter(copy, files["photomaker"], Record(), name="at-once", start=0.0, allow_pickle=True)
    assert made.manifest.identity_adapters["at-once"].start == 0
    assert Denoiser.load(copy)._identity_adapters["at-once"].words_start == 0
    lora = tmp_path / "style.safetensors"
    save_file({"unet.conv_in.lora.down.weight": torch.zeros(1, 4, 3, 3)}, lora)
    with pytest.raises(PackageError, match="style writes nobody into the text, as PhotoMaker does; leave --start out"):
        add_adapter(copy, lora, Record(), start=0.0)


@pytest.mark.parametrize("adapter", ["photomaker-v1", "second"])
@torch.inference_mode()
def test_the_text_has_the_person_from_the_merge_on(denoiser: Denoiser, files: dict[str, Path], adapter: str) -> None:
    """The class word's token as often as there are embeddings, fused with them; all else as the encoders read it."""
    second = adapter == "second"
    job = cast_job(1, 2, adapter=adapter)
    state = denoiser.encode(job)
    encoder = denoiser._text_encoder
    texts = [frame.prompt.text for frame in job.frames]
    plain = encoder.embed(texts)
    torch.testing.assert_close(state.text[2:], plain.hidden)
    copies = 4 if second else 2
    repeated = [text.replace("girl", " ".join(["girl"] * copies)) for text in texts]
    read = encoder.embed(repeated)
    expected = read.hidden.clone()
    weights = read_weights(files["photomaker-v2" if second else "photomaker"], allow_pickle=True)
    formula = Formula(weights)
    word = slice(2, 2 + copies)  # <start> a girl
    for row in range(2):
        expected[row, word] = formula.fuse(expected[row, word], formula.identities(person(1, 2), second=second))
    negative, pooled, mask = state.text[:2], state.pooled_text, state.token_mask
    denoiser.step([state])
    torch.testing.assert_close(state.text[2:], plain.hidden)
    denoiser.step([state])
    torch.testing.assert_close(state.text[2:], expected, **CLOSE)
    assert torch.equal(state.text[:2], negative)
    assert pooled is not None
    assert state.pooled_text is not None
    torch.testing.assert_close(state.pooled_text[2:], read.pooled)
    assert torch.equal(state.pooled_text[:2], pooled[:2])
    mia, bo = mask[1].sum(dim=-1).tolist()
    assert state.token_mask[1].sum(dim=-1).tolist() == [mia + copies - 1, bo]
    assert state.token_mask[1, 1].nonzero().min() == mask[1, 1].nonzero().min() + copies - 1


def test_stories_differ_by_person_and_only_after_the_merge(denoiser: Denoiser) -> None:
    states = [denoiser.encode(cast_job(seed)) for seed in (1, 2)]
    denoiser.step(states)
    assert torch.equal(states[0].latents, states[1].latents)
    denoiser.step(states)
    assert not torch.allclose(states[0].latents, states[1].latents, atol=1e-3)
    nobody = denoiser.encode(dataclasses.replace(cast_job(1), identities=()))
    assert nobody.key != states[0].key
    assert nobody.later is None
    weak = Identity("mia", person(1).to_bytes(), scale=0.0)
    one, other = (
        finish(denoiser, cast_job(1, identities=(who,))) for who in (weak, Identity("mia", person(1).to_bytes()))
    )
    assert not torch.allclose(one.latents, other.latents, atol=1e-3)


def test_two_persons_stand_at_words_of_their_own(denoiser: Denoiser) -> None:
    """Other references of Bo change the text of the frame that he is in, at his word alone."""

    def job(bo: int) -> StoryJob:
        who = (Identity("mia", person(1, 2).to_bytes()), Identity("bo", person(bo).to_bytes()))
        return cast_job(1, identities=who, cross_frame=False)

    first, second = denoiser.encode(job(3)), denoiser.encode(job(4))
    assert first.later is not None
    assert second.later is not None
    changed = (first.later.text != second.later.text).any(dim=-1).nonzero().tolist()
    text = first.job.frames[1].prompt.text
    man = denoiser._text_encoder.last_token(text, (text.index("man"), text.index("man") + 3))
    # Rows 0 and 1 are the negative prompt's, row 2 is Mia's alone; she has one token more than words.
    assert changed == [[3, man + 1]]


def test_persons_do_not_mix_in_a_batch_and_stories_resume(package: Path, denoiser: Denoiser) -> None:
    jobs = [cast_job(1, seed=1), cast_job(2, 3, seed=2), cast_job(4, frames=1, seed=3, guidance_scale=1.0)]
    alone = [finish(denoiser, job).latents for job in jobs]
    states = [denoiser.encode(job) for job in jobs]
    denoiser.step(states[:1])
    denoiser.step(states[:2])
    kept = denoiser.save(states[1])
    states[1] = denoiser.restore(jobs[1], kept)
    while pending := [state for state in states if not state.done]:
        denoiser.step(pending)
    for state, expected in zip(states, alone, strict=True):
        assert torch.equal(state.latents, expected)
    late = denoiser.encode(jobs[1])
    for _ in range(3):
        denoiser.step([late])
    resumed = denoiser.restore(jobs[1], denoiser.save(late))
    denoiser.step([resumed])
    assert torch.equal(resumed.latents, alone[1])
    shared = Denoiser.load(package, one_call=True)
    together = [shared.encode(job) for job in jobs]
    while not together[0].done:
        shared.step(together)
    for state, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(state.latents, expected, atol=1e-3, rtol=1e-3)


def test_in_a_second_pass_the_person_is_in_the_text_of_the_region(denoiser: Denoiser) -> None:
    """From the step of the merge on; the first pass reads plain text, and the story goes on from a checkpoint."""
    job = dataclasses.replace(cast_job(1, 2), redenoising=Redenoising(1, regions("mia")))
    going, other = denoiser.encode(job), denoiser.encode(dataclasses.replace(job, identities=cast_job(3).identities))
    assert going.later is None
    assert going.second is not None
    (region,) = going.second.regions
    assert region.later is not None
    for _ in range(job.steps):
        denoiser.step([going, other])
    assert torch.equal(going.latents, other.latents)
    kept = []
    while not going.done:
        denoiser.step([going])
        kept.append(denoiser.save(going))
    assert region.later is None
    for data in kept[:-1]:
        resumed, beside = denoiser.restore(job, data), denoiser.encode(cast_job(4, frames=1, seed=3))
        while not resumed.done:
            denoiser.step([one for one in (resumed, beside) if not one.done])
        assert torch.equal(resumed.latents, going.latents)
    while not other.done:
        denoiser.step([other])
    assert not torch.allclose(going.latents, other.latents, atol=1e-4)


@torch.inference_mode()
def test_the_region_reads_the_person_from_the_merge_on(denoiser: Denoiser, files: dict[str, Path]) -> None:
    """Step 0 of the second pass reads the region prompt plain, step 1 with the person at the class word; both passes
    have the fused weights.
    """
    job = dataclasses.replace(cast_job(1, 2), redenoising=Redenoising(0, regions("mia")))
    state = denoiser.encode(job)
    assert state.second is not None
    (region,) = state.second.regions
    assert state.key == region.key
    assert state.key.variant.identity == "photomaker-v1"
    base = denoiser.encode(dataclasses.replace(job, identities=(), redenoising=None))
    for _ in range(job.steps):
        denoiser.step([state])
        denoiser.step([base])
    assert not torch.allclose(state.latents, base.latents, atol=1e-3)

    words = region.job.frames[0].prompt.text
    plain = denoiser._text_encoder.embed([words]).hidden[0]
    denoiser.step([state])
    torch.testing.assert_close(region.text[2], plain)
    denoiser.step([state])
    expected = denoiser._text_encoder.embed([words.replace("girl", "girl girl")]).hidden[0]
    formula = Formula(read_weights(files["photomaker"], allow_pickle=True))
    expected[2:4] = formula.fuse(expected[2:4], formula.identities(person(1, 2), second=False))
    torch.testing.assert_close(region.text[2], expected, **CLOSE)
    torch.testing.assert_close(region.text[3], expected, **CLOSE)  # The same in her second frame.


def test_the_manifest_may_say_when_to_merge(package: Path, tmp_path: Path) -> None:
    file, unet = package / "identity" / "photomaker-v1.safetensors", published_unet(80)
    assert load_identity_adapter(file, "late", "photomaker", unet, start=0.5).words_start == 0.5
    save_file(random_weights(adapter_shapes("ip-adapter", attention_layers(unet))), tmp_path / "plain.safetensors")
    with pytest.raises(PackageError, match="writes nobody into the text, so that its start means nothing"):
        load_identity_adapter(tmp_path / "plain.safetensors", "plain", "ip-adapter", unet, start=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"portrait": None}, "no reference of mia has a portrait, which this adapter needs"),
        ({"face": None}, "no reference of mia has a portrait"),
    ],
)
def test_what_references_lack_is_said(denoiser: Denoiser, change: dict[str, Any], words: str) -> None:
    features = identity(1, **change)
    with pytest.raises(JobError, match=words):
        denoiser.encode(cast_job(1, identities=(Identity("mia", features.to_bytes()),)))


def test_a_prompt_without_room_for_all_references_is_refused(denoiser: Denoiser) -> None:
    with pytest.raises(JobError, match=r"has 7 tokens|shorten the prompt by \d+ tokens, or give fewer references"):
        denoiser.encode(cast_job(*range(75)))


def test_portraits_go_through_bytes() -> None:
    (found,) = IdentityFeatures.from_bytes(person(5).to_bytes()).references
    assert found.portrait is not None
    assert found.portrait.dtype == np.uint8
    assert np.array_equal(found.portrait, person(5).references[0].portrait)


def test_a_second_run_reads_the_plain_text_again(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything to inject it ends where the first did, to the bit; also from a checkpoint of either."""
    monkeypatch.setattr(injection, "sources", lambda _, masks, *__: torch.arange(masks.numel()).view(len(masks), -1))
    job = cast_job(1, 2, method="consistory", feature_injection=True)
    once, state = finish(denoiser, dataclasses.replace(job, feature_injection=False)), denoiser.encode(job)
    kept = []
    while not state.done:
        denoiser.step([state])
        kept.append(denoiser.save(state))
    assert torch.equal(state.latents, once.latents)
    for data in (kept[2], kept[4]):
        again = denoiser.restore(job, data)
        while not again.done:
            denoiser.step([again])
        assert torch.equal(again.latents, once.latents)
