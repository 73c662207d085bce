"""Character-Adapter: words for parts, a stream for each part, and where each acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model import ComposedPrompt, FrameJob, StoryJob, compose
from storyloom_model.adding.package import Wish, add_adapter, add_model
from storyloom_model.adding.record import Record
from storyloom_model.attention import AttentionPass
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.identity.adapter import CharacterIdentity, LayerProjections, Stream
from storyloom_model.identity.character_adapter import placed
from storyloom_model.identity.features import IdentityFeatures, PartFeatures, ReferenceFeatures
from storyloom_model.identity.part_maps import MapPartFinder
from storyloom_model.identity.parts import PARTS, part_spans
from storyloom_model.identity.published.adapters import read_adapter
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.identity.regions import part_shares, shares
from storyloom_model.identity.streams import pack_streams
from storyloom_model.jobs import Identity
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import PackageError
from tests.model.published_files import EMBEDDING, STATES, adapter_shapes, identity, published_unet, random_weights
from tests.model.published_models import write_folder
from tests.model.tiny import finish, tiny_job

CAST = {"mia": "a girl with red hair in a blue coat", "bo": "an old man in a red coat"}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def somebody(seed: int, *parts: str, references: int = 1) -> IdentityFeatures:
    """Random looks of some parts."""
    draw = np.random.default_rng(seed)

    def part() -> PartFeatures:
        states, embedding = draw.standard_normal((5, STATES)), draw.standard_normal(EMBEDDING)
        return PartFeatures(states.astype(np.float32), embedding.astype(np.float32))

    found = tuple(ReferenceFeatures(parts={name: part() for name in parts}) for _ in range(references))
    return IdentityFeatures("test", found)


def prompt_of(text: str, cast: dict[str, str] = CAST) -> ComposedPrompt:
    prompt = compose("", text, cast, [])
    assert isinstance(prompt, ComposedPrompt)
    return prompt


def test_words_for_parts_count_in_descriptions_alone() -> None:
    prompt = prompt_of("the hat of {mia}, and {bo} in boots", {"mia": "a Red-haired girl in a COAT", "bo": "a coat"})
    found = {
        name: {part: [prompt.text[slice(*span)] for span in spans] for part, spans in part_spans(prompt, name).items()}
        for name in ("mia", "bo", "zoe")
    }
    assert found == {"mia": {"hair": ["Red-haired"], "upper": ["COAT"]}, "bo": {"upper": ["coat"]}, "zoe": {}}


def test_parts_go_through_bytes() -> None:
    made = somebody(1, "face", "upper", references=2)
    found = IdentityFeatures.from_bytes(made.to_bytes())
    for one, other in zip(found.references, made.references, strict=True):
        assert one.parts.keys() == other.parts.keys()
        assert np.array_equal(one.parts["upper"].states, other.parts["upper"].states)
        assert np.array_equal(one.parts["face"].embedding, other.parts["face"].embedding)


def by_hand(maps: NDArray[Any], present: NDArray[Any], part_of: list[int]) -> NDArray[Any]:
    """One row, position by position: [K, N]."""
    cast, positions = maps.shape
    found = np.zeros((cast, positions))
    characters = [k for k in range(cast) if part_of[k] < 0 and present[k]]
    holder = [max(characters, key=lambda k: maps[k, n]) for n in range(positions)]
    for k in characters:
        own = [n for n in range(positions) if holder[n] == k]
        parts = [j for j in range(cast) if part_of[j] == k and present[j]]
        peak = {j: max((maps[j, n] for n in own), default=0.0) for j in parts}
        for n in own:
            strength = {j: maps[j, n] / peak[j] if peak[j] else 0.0 for j in parts}
            together = sum(one**2 for one in strength.values())
            for j in parts:
                found[j, n] = strength[j] ** 3 / together if together else 0.0
            found[k, n] = 1 - sum(found[j, n] for j in parts)
    return found


rows = st.integers(0, 10_000)


@settings(deadline=None, max_examples=25)
@given(rows, st.lists(st.booleans(), min_size=5, max_size=5))
def test_shares_of_parts_are_those_of_the_formula(seed: int, there: list[bool]) -> None:
    """Two characters, of whom the first has two parts and the second one."""
    maps = torch.rand(1, 5, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    present = torch.tensor([[True, True, *there[2:]]])
    part_of = [-1, -1, 0, 0, 1]
    found = part_shares(maps, present, torch.tensor([part_of]))[0]
    torch.testing.assert_close(found, torch.tensor(by_hand(maps[0].numpy(), present[0].numpy(), part_of)))
    mias, bos = found[[0, 2, 3]], found[[1, 4]]
    torch.testing.assert_close(mias.sum(0) + bos.sum(0), torch.ones(12, dtype=torch.float64))
    assert not ((mias > 0).any(0) & (bos > 0).any(0)).any()


def test_rows_without_parts_share_as_ever() -> None:
    maps, present = torch.rand(2, 3, 9), torch.tensor([[True, True, False], [True, False, True]])
    part_of = torch.tensor([[-1, -1, -1], [-1, -1, 0]])
    assert torch.equal(part_shares(maps, present, part_of)[0], shares(maps, present)[0])


def test_before_any_map_everybody_shares_alike_and_parts_have_nothing() -> None:
    found = part_shares(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[-1, -1, 0]]))
    assert found.tolist() == [[[0.5] * 4, [0.5] * 4, [0.0] * 4]]


def test_a_pass_says_where_each_stream_acts() -> None:
    """By the maps of the step before: parts within their characters, the rest where no part is."""
    maps = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    streams = [
        Stream(torch.zeros(1, 4), "mia", part="hair"),
        Stream(torch.zeros(1, 4), "bo"),
        Stream(torch.zeros(1, 4), "mia"),
    ]
    packed = pack_streams([streams], ["mia", "bo", ("mia", "hair")])
    layers = [LayerProjections(torch.zeros(4, 4), torch.zeros(4, 4))]
    seen = AttentionPass(
        GroupLayout((1,)), (2, 2), torch.ones(1, 3, 5), torch.tensor([0]), None, previous_maps=maps,
        identity=packed.project(layers), part_of=torch.tensor([[-1, -1, 0]]),
    )  # fmt: skip
    expected = by_hand(maps[0].flatten(1).numpy(), np.ones(3, bool), [-1, -1, 0])
    found = seen.regions(4)
    assert found is not None
    torch.testing.assert_close(found[0], torch.tensor(expected[[2, 1, 0]], dtype=torch.float32))


@pytest.mark.parametrize("form", ["ip-adapter", "ip-adapter-plus"])
@torch.inference_mode()
def test_tokens_of_a_part_are_those_of_its_crop(form: str) -> None:
    """What the IP-Adapter itself makes of a character that is nothing but the part."""
    unet = published_unet()
    weights = random_weights(adapter_shapes(form, attention_layers(unet)))
    adapter = read_adapter("character-adapter", "test", weights, unet)
    plain = read_adapter(form, "test", weights, unet).maker
    features = somebody(1, "hair", "upper", references=2)
    found = adapter.maker.streams({"mia": CharacterIdentity(features, scale=0.5)})
    assert [(one.owner, one.part, one.scale) for one in found] == [("mia", "hair", 0.5), ("mia", "upper", 0.5)]
    for one in found:
        assert one.part is not None
        crops = tuple(
            ReferenceFeatures(
                character_states=reference.parts[one.part].states,
                character_embedding=reference.parts[one.part].embedding,
            )
            for reference in features.references
        )
        cast = {"mia": CharacterIdentity(IdentityFeatures("test", crops))}
        torch.testing.assert_close(one.tokens, plain.streams(cast)[0].tokens, **CLOSE)
        (negative,) = [other for other in adapter.maker.negative_streams(cast_of(features)) if other.part == one.part]
        torch.testing.assert_close(negative.tokens, plain.negative_streams(cast)[0].tokens, **CLOSE)
    kept = adapter.maker.streams({"mia": CharacterIdentity(features, keep=frozenset({"clothes"}))})
    assert [one.part for one in kept] == ["upper"]
    blend = CharacterIdentity(features, blend=somebody(2, "upper", "hat"), blend_weight=0.25)
    mixed = {one.part: one.tokens for one in adapter.maker.streams({"mia": blend})}
    other = {one.part: one.tokens for one in adapter.maker.streams(cast_of(somebody(2, "upper", "hat")))}
    own = found[1].tokens.view(2, -1, 64).mean(0)
    torch.testing.assert_close(mixed["upper"], 0.75 * own + 0.25 * other["upper"], **CLOSE)
    torch.testing.assert_close(mixed["hat"], other["hat"], **CLOSE)


def cast_of(features: IdentityFeatures) -> dict[str, CharacterIdentity]:
    return {"mia": CharacterIdentity(features)}


def test_parts_without_a_word_are_one_stream_of_the_character() -> None:
    streams = [
        Stream(torch.full((2, 3), float(place)), "mia", 0.5, part)
        for place, part in enumerate(("face", "hair", "upper"))
    ]
    shared = Stream(torch.zeros(1, 3), None)
    found = placed([*streams, shared], {("mia", "hair"), ("bo", "face")})
    assert [(one.owner, one.part, len(one.tokens)) for one in found] == [
        ("mia", "hair", 2), (None, None, 1), ("mia", None, 4)
    ]  # fmt: skip
    assert found[2].tokens[:, 0].tolist() == [0.0, 0.0, 2.0, 2.0]


def test_files_that_read_faces_are_refused() -> None:
    unet = published_unet()
    weights = random_weights(adapter_shapes("ip-adapter-faceid", attention_layers(unet)))
    with pytest.raises(PackageError, match="needs one of the form ip-adapter or ip-adapter-plus"):
        read_adapter("character-adapter", "test", weights, unet)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an IP-Adapter that is used as such and by parts."""
    folder = tmp_path_factory.mktemp("parts")
    write_folder(folder / "base")
    file = folder / "ip-adapter-plus_sd15.safetensors"
    save_file(random_weights(adapter_shapes("ip-adapter-plus", attention_layers(published_unet(32)))), file)
    made = add_model(Wish(str(folder / "base"), adapters=(file,)), folder / "package", Record())
    add_adapter(made.folder, file, Record(), name="parts", method="character-adapter", allow_pickle=False)
    return made.folder


@pytest.fixture(scope="module")
def denoiser(package: Path) -> Denoiser:
    return Denoiser.load(package)


def parts_job(mia: int, bo: int | None = None, seed: int = 1, **changes: Any) -> StoryJob:
    """Mia alone, then both."""
    frames = tuple(
        FrameJob(prompt_of(text), seed + place) for place, text in enumerate(("{mia} walks", "{mia} and {bo} sit"))
    )
    who = [Identity("mia", somebody(mia, "face", "hair", "upper").to_bytes())]
    if bo is not None:
        who.append(Identity("bo", somebody(bo, "face", "upper", "shoes").to_bytes(), scale=0.5))
    fields = {"adapter": None, "steps": 3, "identities": tuple(who), "identity_adapter": "parts"} | changes
    job = tiny_job(2, **fields)
    return type(job)(**{field: getattr(job, field) for field in job.__dataclass_fields__} | {"frames": frames})


@torch.inference_mode()
def test_a_story_has_maps_and_streams_of_parts(denoiser: Denoiser) -> None:
    limits = denoiser.manifest.limits
    assert limits.max_identity_tokens == 3 * len(PARTS) * 16
    state = denoiser.encode(parts_job(1, 2))
    assert state.part_of is not None
    # Mia, Bo, Mia's hair, Mia's coat, Bo's coat.
    assert state.part_of.tolist() == [-1, -1, 0, 0, 1]
    assert state.token_mask.any(dim=-1).tolist() == [[True, False, True, True, False], [True] * 5]
    assert not (state.token_mask[:, 2:].any(dim=1) & ~state.token_mask[:, :2].any(dim=1)).any()
    assert state.identity is not None
    assert state.identity.owner[2:].tolist() == [[2, 3, 0, -1, -1], [2, 3, 4, 0, 1]]
    assert state.identity.ends[3].tolist() == [16, 32, 48, 64, 96]
    denoiser.step([state])
    assert state.previous_maps is not None
    assert state.previous_maps.shape[1] == 5
    assert set(denoiser.looks(state, 1, np.zeros((64, 64, 3), np.uint8))) <= {"mia", "bo"}


def test_other_looks_of_one_character_leave_the_other_frames_alone(denoiser: Denoiser) -> None:
    """Bo's references act in his frame; with attention across frames off, Mia's own frame is bitwise the same."""
    one, other = (finish(denoiser, parts_job(1, bo, cross_frame=False)).latents for bo in (2, 3))
    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1], atol=1e-3)
    assert not torch.allclose(one, finish(denoiser, parts_job(4, 2, cross_frame=False)).latents, atol=1e-3)


def test_stories_with_and_without_parts_share_calls_and_resume(package: Path, denoiser: Denoiser) -> None:
    whole = (Identity("mia", identity(1).to_bytes()),)
    jobs = [
        parts_job(1, 2),
        tiny_job(2, seed=3, adapter=None, steps=3, identities=whole, identity_adapter="ip-adapter-plus_sd15"),
        parts_job(3, seed=5, guidance_scale=1.0),
        tiny_job(1, seed=4, adapter=None, steps=3),
    ]
    alone = [finish(denoiser, job).latents for job in jobs]
    halfway = denoiser.encode(jobs[0])
    denoiser.step([halfway])
    resumed = denoiser.restore(jobs[0], denoiser.save(halfway))
    while not resumed.done:
        denoiser.step([resumed])
    assert torch.equal(resumed.latents, alone[0])
    shared = Denoiser.load(package, one_call=True)
    states = [shared.encode(job) for job in jobs]
    while not states[0].done:
        shared.step(states)
    for state, expected in zip(states, alone, strict=True):
        torch.testing.assert_close(state.latents, expected, atol=1e-3, rtol=1e-3)


def test_references_without_parts_are_refused(denoiser: Denoiser) -> None:
    with pytest.raises(JobError, match="the references of mia have none of the parts that this adapter takes over"):
        denoiser.encode(parts_job(1, identities=(Identity("mia", identity(1).to_bytes()),)))


class Drawn(MapPartFinder):
    """A finder whose maps are drawn: each part in a stripe of the canvas."""

    def maps(self, canvas: NDArray[np.uint8]) -> Tensor:
        maps = torch.zeros(len(PARTS), 12, 12)
        for place in range(len(PARTS)):
            maps[place, 2 * place : 2 * place + 2] = 1.0
        return maps


def test_masks_of_parts_lie_where_the_maps_are(denoiser: Denoiser) -> None:
    """In a wide picture, which fills the middle half of the canvas: the outer stripes are beside it."""
    options: Any = (
        denoiser._unet,
        denoiser._decoder,
        denoiser._text_encoder,
        denoiser._schedule,
        ForegroundRule(),
        (96, 96),
    )
    masks = Drawn(*options).find(np.zeros((40, 80, 3), np.uint8))
    assert list(masks) == list(PARTS)
    assert all(mask.shape == (40, 80) for mask in masks.values())
    filled = {part: sorted(set(mask.nonzero()[0].tolist())) for part, mask in masks.items()}
    assert not filled["face"]
    assert not filled["shoes"]
    assert (filled["hat"][0], filled["hat"][-1]) == pytest.approx((7, 19), abs=1)
    assert sum(mask.sum() for mask in masks.values()) == 40 * 80


def test_a_model_finds_parts_by_its_own_maps(denoiser: Denoiser) -> None:
    """The tiny model has learnt nothing: what can be seen is that it looks at the picture, twice alike."""
    finder = denoiser._part_finder()
    draw = np.random.default_rng(1)
    canvas = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    maps = finder.maps(canvas)
    assert maps.shape == (len(PARTS), 8, 8)
    assert torch.equal(maps, finder.maps(canvas))
    assert not torch.equal(maps, finder.maps(255 - canvas))
    masks = finder.find(draw.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert np.stack(list(masks.values())).sum(axis=0).max() <= 1
