"""Identity adapters in training: whose references a frame gets, what captions say, and that the stages learn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storyloom_model.attention import install_story_attention
from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter
from storyloom_model.identity.encoders.image import load_image_network
from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.loading import load_identity_adapter
from storyloom_model.identity.streams import pack_streams
from storyloom_training.base import build_model
from storyloom_training.config import SMOKE, Recipe
from storyloom_training.controlnet.control import PoseControl, new_controlnet
from storyloom_training.controlnet.keypoints import people_keypoints
from storyloom_training.identity.adapters.batches import BatchSource, IdentityBatch, References, of_others
from storyloom_training.identity.adapters.captions import IdentityCaptioner
from storyloom_training.identity.adapters.crops import Crops, people_crops
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.identity.adapters.face_loss import FaceLoss
from storyloom_training.identity.adapters.faces import PeopleFaces, people_faces
from storyloom_training.identity.adapters.features import ARRAYS, PeopleFeatures, people_features
from storyloom_training.identity.adapters.injector import InjectorTrainee, injector_sizes
from storyloom_training.identity.adapters.instantid import InstantIdTrainee
from storyloom_training.identity.adapters.methods import METHODS
from storyloom_training.identity.adapters.photomaker import PhotoMakerTrainee, first_words
from storyloom_training.identity.adapters.references import (
    NOBODY,
    own_references,
    several_references,
    shuffled_references,
    stacked_references,
)
from storyloom_training.identity.adapters.said import Said, said_plainly
from storyloom_training.identity.adapters.sampling import one_reference, sample_stories
from storyloom_training.identity.adapters.stage import Bench, Noised, losses_of, train_adapter, validate
from storyloom_training.identity.adapters.storymaker import StoryMakerTrainee, storymaker_sizes
from storyloom_training.identity.adapters.trainee import Trainee
from storyloom_training.pipeline import Pipeline
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.vae import build_vae

# Groups of eight frames: with fewer, few people have a face in two of them at this size.
RECIPE = replace(SMOKE, data=replace(SMOKE.data, frames=8))
PLAN = RECIPE.injector
IMAGE_ENCODER = Path(__file__).parents[2] / "weights" / "storyloom-mini" / "image_encoder"

SEEN = st.integers(1, 8).flatmap(
    lambda frames: st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=frames, max_size=frames)
)


class Pixels:
    """Stands in for trained encoders: colours of a coarse grid."""

    fingerprint = "pixels"

    def faces(self, crops: Crops) -> NDArray[np.float32]:
        values = np.tile(self._grid(crops).reshape(len(crops), -1), (1, 2))[:, :512]
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def states(self, crops: Crops) -> NDArray[np.float32]:
        return self._grid(crops).reshape(len(crops), 16, 24)

    def _grid(self, crops: Crops) -> NDArray[np.float32]:
        count, size = len(crops), crops.shape[1] // 8 * 8
        cells = crops[:, :size, :size].reshape(count, 8, size // 8, 8, size // 8, 3).mean((2, 4))
        return np.concatenate([cells, cells**2 / 255], -1).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("identity")
    torch.manual_seed(0)
    pipeline = Pipeline(RECIPE, folder)
    model = build_model(RECIPE, pipeline.tokenizer).requires_grad_(False).eval()
    install_story_attention(model.unet)
    crops = people_crops(folder / "crops", pipeline.data, PLAN.feature_groups)
    source = BatchSource(pipeline.data, people_features(folder / "features", crops, Pixels()), PLAN)
    side, channels = RECIPE.data.size // 8, RECIPE.vae.latent_channels
    latents = torch.randn(len(pipeline.data.pictures), channels, side, side).half()
    faces = _faces(folder, pipeline.data, source.features)
    return Bench(RECIPE, PLAN, model, pipeline.tokenizer, source, latents, faces=faces, image_encoder=IMAGE_ENCODER)


def _faces(folder: Path, data: StoryDB, features: PeopleFeatures) -> PeopleFaces:
    faces = people_faces(folder / "faces.npy", data, features.groups)
    faces.portraits(features.folder / "portrait.npy", features.table, 112)
    return faces


class Table(PeopleFeatures):
    """Says who is seen where, and nothing of how they look."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(Path())
        vars(self)["table"] = table


def _trainee(bench: Bench) -> InjectorTrainee:
    torch.manual_seed(0)
    return InjectorTrainee(injector_sizes(bench.plan, bench.source.features, bench.model.unet), bench.model.unet)


@given(SEEN, st.integers(0, 2**32), st.data())
def test_no_frame_is_its_own_reference(seen: list[list[bool]], seed: int, data: st.DataObject) -> None:
    visible = torch.tensor(seen)
    frames = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, unique=True))
    chosen = shuffled_references(visible, frames, torch.Generator().manual_seed(seed))
    assert chosen.shape == (len(frames), 3, 1)
    for row, frame in enumerate(frames):
        for person in range(3):
            reference = int(chosen[row, person, 0])
            others = [other for other in range(len(seen)) if seen[other][person] and other != frame]
            assert (reference == NOBODY) if not others else (reference in others)


@given(SEEN, st.data())
def test_stacked_references_are_all_the_faces_there_are(seen: list[list[bool]], data: st.DataObject) -> None:
    visible = torch.tensor(seen)
    frames = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, unique=True))
    chosen = stacked_references(visible, frames)
    assert chosen.shape == (len(frames), 3, len(frames))
    for person in range(3):
        expected = {frame for frame in frames if seen[frame][person]} or {NOBODY}
        assert all(set(chosen[row, person].tolist()) == expected for row in range(len(frames)))


@given(SEEN, st.data())
def test_own_references_are_the_frames_themselves(seen: list[list[bool]], data: st.DataObject) -> None:
    visible = torch.tensor(seen)
    frames = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, unique=True))
    expected = [[[frame if seen[frame][person] else NOBODY] for person in range(3)] for frame in frames]
    assert own_references(visible, frames).tolist() == expected


def test_half_of_the_groups_show_several_people(bench: Bench) -> None:
    table = torch.full((40, 8, 3), NOBODY)
    table[:, :, 0] = 0
    table[:4, 2, 1] = 0
    source = replace(bench.source, features=Table(table), plan=replace(PLAN, groups=4))
    drawn = Counter[int]()
    first = 0
    for seed in range(12):
        batch = source.draw(torch.Generator().manual_seed(seed), 0)
        groups = [picture // RECIPE.data.frames for picture in batch.pictures[:: PLAN.frames]]
        assert sum(group < 4 for group in groups) == 2
        first += groups[0] < 4
        drawn.update(groups)
    assert len(drawn) > 15
    assert 0 < first < 12  # timesteps follow the places in a batch


def test_references_show_the_same_person_in_another_frame(bench: Bench) -> None:
    table = bench.source.features.table
    where = {int(entry): place for entry, place in zip(table[table >= 0], (table >= 0).nonzero().tolist(), strict=True)}
    checked = 0
    for seed in range(4):
        batch = bench.source.draw(torch.Generator().manual_seed(seed), seed)
        for picture, row in zip(batch.pictures, batch.references.entries, strict=True):
            for person, entry in enumerate(row[:, 0].tolist()):
                if entry != NOBODY:
                    group, frame, place = where[entry]
                    assert (group, place) == (picture // RECIPE.data.frames, person)
                    assert frame != picture % RECIPE.data.frames
                    checked += 1
    assert checked > 20


def test_other_peoples_references_are_of_others(bench: Bench) -> None:
    batch = bench.source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    others = of_others(batch.references, PLAN.frames)
    kept = others.entries != NOBODY
    assert kept.any()
    assert not (others.entries == batch.references.entries)[kept].any()


def test_most_captions_say_nothing_of_hair_and_glasses(bench: Bench) -> None:
    hair = {word for style in words.HAIR_STYLE.values() for text in style for word in text.format(colour="").split()}
    telling = (hair | {"glasses", "sunglasses", "beard", "mustache"}) - {"a", "in", "two", "long,", "short,", "long"}
    captioner = IdentityCaptioner(bench.source.data, 0.0, 0.5)
    for draw in range(20):
        for caption in captioner(draw % 4, [0, 3], draw):
            described = " ".join(caption.text[first:last] for first, last in caption.spans)
            assert not telling & set(described.replace(",", "").split()), described


def test_groups_go_without_captions_and_references_as_often_as_the_recipe_says(bench: Bench) -> None:
    always = replace(bench.source, plan=replace(PLAN, text_dropout=0.0, both_dropout=1.0))
    batch = always.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=True)
    assert batch.captions == [None] * len(batch.pictures)
    assert batch.references.zeroed.all()
    kept = always.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    assert None not in kept.captions
    assert not kept.references.zeroed.any()


def test_dropped_references_leave_no_trace(bench: Bench) -> None:
    trainee = _trainee(bench)
    batch = bench.source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    dropped = replace(batch.references, zeroed=torch.ones_like(batch.references.zeroed))
    others = replace(dropped, entries=of_others(batch.references, PLAN.frames).entries)
    with torch.no_grad():
        one, two = (trainee.streams(bench.source.features, references) for references in (dropped, others))
    for (keys, values), (other_keys, other_values) in zip(one.keys_values, two.keys_values, strict=True):
        torch.testing.assert_close(keys, other_keys)
        torch.testing.assert_close(values, other_values)


def test_stacked_streams_hold_the_tokens_of_all_frames(bench: Bench) -> None:
    plan = replace(PLAN, references="stacked")
    stacked = replace(bench, plan=plan, source=replace(bench.source, plan=plan))
    batch = stacked.source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    streams = _trainee(stacked).streams(stacked.source.features, batch.references)
    assert streams.ends[0].tolist() == [PLAN.tokens * PLAN.frames * (place + 1) for place in range(3)]


def test_one_batch_can_be_learnt(bench: Bench) -> None:
    trainee = _trainee(bench)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    batch = bench.source.of_groups([0, 1], draw, 0, drop=False)
    noised = Noised.draw(bench, 2, draw)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    losses = []
    for _ in range(25):
        loss = losses_of(bench, trainee, batch, batch.references, noised, true_masks=True)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in bench.model.state_dict().items())


def test_poses_are_shown_beside_references(bench: Bench) -> None:
    """StoryMaker's pose decoupling: the model is told how the people of each picture stand, and stays frozen."""
    torch.manual_seed(0)
    plan = RECIPE.storymaker
    net = new_controlnet(bench.model.unet, RECIPE.controlnet).requires_grad_(False)
    for name, value in net.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(value, std=0.3)
    keypoints = people_keypoints(bench.source.data.folder.parent / "keypoints.npy", bench.source.data)
    posed = replace(bench, plan=plan, poses=PoseControl(net, keypoints, bench.source.data.size))
    trainee = StoryMakerTrainee(storymaker_sizes(plan, bench.source.features, bench.model.unet), plan, bench.model.unet)
    batch = bench.source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    noised = Noised.draw(posed, 2, torch.Generator().manual_seed(0))

    def loss(on: Bench) -> torch.Tensor:
        return losses_of(on, trainee, batch, batch.references, noised, true_masks=True)["loss"]

    with_poses = loss(posed)
    assert abs(with_poses.item() - loss(replace(posed, poses=None)).item()) > 1e-3
    moved = np.asarray(keypoints).copy()
    moved[batch.pictures[0]] += 0.3
    assert loss(replace(posed, poses=PoseControl(net, moved, 64))).item() != with_poses.item()
    with_poses.backward()
    assert trainee.layers[0].to_k.grad is not None


@pytest.fixture(scope="module")
def held_out(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("held out")
    plan = RECIPE.data
    data = StoryDB(folder / "data", Split.VALIDATION, 4, plan.frames, plan.size, plan.mask_size)
    data.prepare()
    features = people_features(folder / "features", people_crops(folder / "crops", data, 4), Pixels())
    faces = _faces(folder, data, features)
    latents = bench.latents[: 4 * plan.frames]
    return replace(bench, source=BatchSource(data, features, PLAN), latents=latents, faces=faces)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_runs_from_start_to_file(name: str, bench: Bench, held_out: Bench, tmp_path: Path) -> None:
    method = METHODS[name]
    plan = method.plan(RECIPE)
    here, there = (replace(one, plan=plan, source=replace(one.source, plan=plan)) for one in (bench, held_out))
    trainee = method.prepare(here, tmp_path)
    train_adapter(here, tmp_path / "adapter", trainee, there)
    assert len((tmp_path / "adapter" / "validation.jsonl").read_text().splitlines()) == 1
    found = validate(there, trainee, 4)
    assert len(set(found.values())) == 3, found
    file = tmp_path / "adapter.safetensors"
    method.save(file, trainee, here)
    loaded = load_identity_adapter(file, name, method.name, bench.model.unet)
    assert loaded.encoders == "pixels"
    if isinstance(trainee, PhotoMakerTrainee):
        _check_the_engine_writes_the_same(loaded, trainee, here.source.features)
    else:
        _check_the_engine_makes_the_same(loaded, trainee, here.source.features)


@torch.no_grad()
def _check_the_engine_makes_the_same(adapter: IdentityAdapter, trainee: Trainee, features: PeopleFeatures) -> None:
    """The keys and values of a frame with everybody of the group that shows the most people."""
    table = features.table.flatten(0, 1)
    entries = table[(table != NOBODY).sum(1).argmax()]
    cast = {}
    for place, entry in enumerate(entries.tolist()):
        if entry != NOBODY:
            arrays = {name: features.take(name, torch.tensor([entry]))[0].numpy() for name in ARRAYS}
            cast[f"person-{place}"] = CharacterIdentity(IdentityFeatures("pixels", (ReferenceFeatures(**arrays),)))
    assert cast
    served = pack_streams([adapter.maker.streams(cast)], list(cast)).project(adapter.layers)
    trained = trainee.streams(features, References.whole(entries[None, :, None]))
    length = int(served.ends[0, -1])
    for (keys, values), (other_keys, other_values) in zip(served.keys_values, trained.keys_values, strict=True):
        torch.testing.assert_close(keys, other_keys[:, :length], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(values, other_values[:, :length], rtol=2e-2, atol=2e-2)


@torch.no_grad()
def _check_the_engine_writes_the_same(
    adapter: IdentityAdapter, trainee: PhotoMakerTrainee, features: PeopleFeatures
) -> None:
    assert adapter.words is not None
    entries = torch.tensor([0, 1])
    shown = tuple(
        ReferenceFeatures(portrait=features.portrait[entry], face=features.take("face", entries)[0].numpy())
        for entry in entries.tolist()
    )
    served = adapter.words.identities("anybody", CharacterIdentity(IdentityFeatures("pixels", shown)))
    trained = trainee.embeddings_of(features, entries)
    torch.testing.assert_close(served, trained, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(
        adapter.words.fuse(trained, served), trainee.words.fuse(trained, trained), rtol=2e-2, atol=2e-2
    )
    for name, change in trainee.low_rank.items():
        torch.testing.assert_close(adapter.low_rank[name].up.float(), change.up, rtol=1e-2, atol=1e-3)


def _written(bench: Bench) -> tuple[PhotoMakerTrainee, IdentityBatch, Said, Said]:
    """A batch whose first row is written into the text, and whose second has lost its references."""
    torch.manual_seed(0)
    plan = replace(RECIPE.photomaker, full_odds=0.0)
    source = replace(bench.source, plan=plan)
    trainee = PhotoMakerTrainee(first_words(IMAGE_ENCODER, RECIPE.base.text_width), plan, bench.model.unet)
    batch = source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    zeroed = torch.zeros(len(batch.pictures), dtype=torch.bool)
    zeroed[1] = True
    batch = replace(batch, references=replace(batch.references, zeroed=zeroed))
    written = trainee.said(bench.model, bench.tokenizer, batch, source.features, batch.references)
    return trainee, batch, written, said_plainly(bench.model, bench.tokenizer, batch)


def test_persons_stand_in_the_text_as_often_as_they_have_references(bench: Bench) -> None:
    trainee, batch, written, plain = _written(bench)
    references = (batch.references.entries != NOBODY).sum(2)
    for row, (people, caption) in enumerate(zip(references.tolist(), batch.captions, strict=True)):
        more = written.masks[row].sum(1) - plain.masks[row].sum(1)
        kept = row == 1
        assert more.tolist() == [0 if kept else max(count - 1, 0) for count in people], caption
        assert torch.equal(written.text[row], plain.text[row]) == (kept or not any(people))
    written.text.square().mean().backward()
    for part in ("vision_model.embeddings.patch_embedding", "visual_projection", "fuse_module.mlp1.fc1"):
        assert trainee.words.get_submodule(part).weight.grad.any(), part


def test_an_encoder_of_other_pictures_reads_those_of_clip() -> None:
    """What changes is how many heads there are; without layers nothing does."""
    network, mean, std = load_image_network(IMAGE_ENCODER)
    words = first_words(IMAGE_ENCODER, 32)
    picture = np.random.default_rng(0).integers(0, 255, (1, 112, 112, 3), np.uint8)
    pixels = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    theirs = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = network.float().vision_model.embeddings(theirs)
        found = words.vision_model.embeddings(words.pixels(torch.from_numpy(picture)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_identitynet_acts_in_frames_of_one_person(bench: Bench) -> None:
    torch.manual_seed(0)
    features = bench.source.features
    trainee = InstantIdTrainee(RECIPE.instantid, RECIPE.controlnet, features, bench.model.unet)
    for name, value in trainee.net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(value, std=0.3)
    source = replace(bench.source, plan=RECIPE.instantid)
    batch = source.of_groups([0, 1, 2, 3], torch.Generator().manual_seed(0), 0, drop=False)
    alone = batch.references.present.sum(1) == 1
    assert alone.any()
    assert not alone.all()
    noisy = torch.randn(len(batch.pictures), *bench.latents.shape[1:])
    added = trainee.controls(
        bench.faces, batch.pictures, features, batch.references, noisy, torch.full((len(noisy),), 500)
    )
    middle = added["mid_block_additional_residual"]
    assert torch.equal(middle.flatten(1).any(1), alone)
    middle.sum().backward()
    assert trainee.maker.projection.latents.grad.any()


@given(SEEN, st.integers(0, 2**32), st.data())
def test_several_references_are_of_other_frames(seen: list[list[bool]], seed: int, data: st.DataObject) -> None:
    visible = torch.tensor(seen)
    frames = data.draw(st.lists(st.integers(0, len(seen) - 1), min_size=1, unique=True))
    chosen = several_references(visible, frames, torch.Generator().manual_seed(seed))
    for row, frame in enumerate(frames):
        for person in range(3):
            found = [one for one in chosen[row, person].tolist() if one != NOBODY]
            others = {other for other in frames if seen[other][person] and other != frame}
            assert len(found) == len(set(found))
            assert set(found) <= others
            assert bool(found) == bool(others) == (chosen[row, person, 0].item() != NOBODY)


def test_storymaker_looks_at_the_faces_that_it_makes(bench: Bench) -> None:
    method = METHODS["storymaker"]
    plan = replace(method.plan(RECIPE), identity_dropout=0.0, both_dropout=0.0)
    torch.manual_seed(0)
    vae = build_vae(RECIPE)
    faces = FaceLoss(vae, 1.0, lambda crops: crops.mean((2, 3)).repeat(1, 171)[:, :512], bench.source.data,
                     bench.source.features, rows=1, below=1000)  # fmt: skip
    here = replace(bench, plan=plan, source=replace(bench.source, plan=plan), face_loss=faces)
    trainee = StoryMakerTrainee(storymaker_sizes(plan, bench.source.features, bench.model.unet), plan, bench.model.unet)
    batch = here.source.of_groups([0, 1], torch.Generator().manual_seed(0), 0, drop=False)
    noised = Noised.draw(here, 2, torch.Generator().manual_seed(0))
    with_faces, without = (
        losses_of(one, trainee, batch, batch.references, noised, true_masks=True)
        for one in (here, replace(here, face_loss=None))
    )
    assert "faces" not in without
    torch.testing.assert_close(with_faces["loss"] - without["loss"], with_faces["faces"])
    assert with_faces["faces"] > 0


def test_references_change_what_is_drawn(bench: Bench) -> None:
    trainee = _trainee(bench)
    batch = bench.source.of_groups([0], torch.Generator().manual_seed(0), 0, drop=False)
    with_references, without = (
        sample_stories(bench, trainee, batch, references, PLAN.frames, steps=2)
        for references in (one_reference(bench, [0], PLAN.frames), None)
    )
    assert with_references.shape == without.shape == (PLAN.frames, *bench.latents.shape[1:])
    assert not torch.allclose(with_references, without)
    assert torch.isfinite(with_references).all()


def test_features_of_other_encoders_are_refused(bench: Bench) -> None:
    folder = bench.source.features.folder
    crops = people_crops(folder.parent / "crops", bench.source.data, PLAN.feature_groups)
    other = Pixels()
    other.fingerprint = "another"  # type: ignore[misc]
    with pytest.raises(ValueError, match="other features"):
        people_features(folder, crops, other)


def test_the_packages_encoders_read_crops() -> None:
    package = Path(__file__).parents[2] / "weights" / "storyloom-mini"
    encoder = PackageEncoder(package / "faces", package / "image_encoder")
    crops = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), np.uint8)
    faces, states = encoder.faces(crops), encoder.states(crops)
    assert faces.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(faces, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(encoder.faces(crops[1:2])[0], faces[1], atol=1e-4)
    np.testing.assert_allclose(encoder.states(crops[1:2])[0], states[1], atol=2e-2)
    assert encoder.fingerprint == PackageEncoder(package / "faces", package / "image_encoder").fingerprint


def test_the_recipe_has_the_papers_dropout() -> None:
    recipe = Recipe("any").injector
    assert (recipe.text_dropout, recipe.identity_dropout) == (0.05, 0.05)
