"""The attribute reader on tiny data: it learns, keeps what it learnt on disk, and reads any size."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality import reader as training
from benchmarks.quality.attributes import HEADS, VISIBLE
from benchmarks.quality.network import AttributeNet, Reader
from storyloom_training.identity.blocks import to_input, whiten
from storyloom_training.muon import orthogonal
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split

SIZE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StoryDB:
    data = StoryDB(tmp_path_factory.mktemp("pictures"), Split.TRAIN, groups=8, frames=4, size=SIZE, mask_size=8)
    data.prepare()
    return data


def test_labels_are_those_of_the_one_person_groups(data: StoryDB) -> None:
    found = training.single_person(data)
    alone = [index for index in range(8) if len(data.group(index).cast) == 1]
    assert sorted({place // 4 for place in found.places.tolist()}) == alone
    assert found.labels.shape == (len(HEADS), 4 * len(alone))
    first = data.group(alone[0])
    scene = list(HEADS).index("scene")
    assert HEADS["scene"][found.labels[scene, 1]] == first.frames[1].scene


def test_a_set_without_one_person_groups_is_refused(data: StoryDB) -> None:
    with pytest.raises(ValueError, match="render more"):
        training.single_person(replace(data, groups=0))


def test_hidden_attributes_have_no_label() -> None:
    shown = {name: values[0] for name, values in HEADS.items()}
    for framing in VISIBLE:
        labels = training.label(shown | {"framing": framing})
        hidden = {name for name, value in zip(HEADS, labels, strict=True) if value == training.IGNORED}
        assert hidden == set(HEADS) - VISIBLE[framing]


def test_training_learns_the_pictures_it_sees(data: StoryDB) -> None:
    torch.set_num_threads(1)
    pictures = training.single_person(data)
    network = training.train(pictures, steps=30, batch=16, seed=1).eval()
    untrained = AttributeNet().eval()
    seen = to_input(torch.from_numpy(pictures.pictures[pictures.places]))
    with torch.inference_mode():
        after = training.loss_of(network(seen), pictures.labels)
        before = training.loss_of(untrained(seen), pictures.labels)
    assert after < 0.8 * before


def test_command_writes_weights_and_what_they_read(data: StoryDB, tmp_path: Path) -> None:
    output = tmp_path / "reader.safetensors"
    training.main(
        steps=2, batch=4, seed=0, groups=8, size=SIZE, data=tmp_path / "data", people=3, threads=1, output=output
    )  # fmt: skip
    record = json.loads(output.with_suffix(".json").read_text())
    assert output.stat().st_size < 4 * 2**20
    assert record["pictures"] == 24
    assert set(record["accuracy"]) <= set(VISIBLE)
    for framing, row in record["accuracy"].items():
        assert set(row) == VISIBLE[framing]
    values = [value for row in record["accuracy"].values() for value in row.values()]
    assert record["mean"] == pytest.approx(np.mean(values), abs=1e-4)


def test_saved_weights_read_the_same(tmp_path: Path) -> None:
    torch.manual_seed(2)
    reader = Reader(AttributeNet())
    reader.save(tmp_path / "r.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), np.uint8)
    again = Reader.load(tmp_path / "r.safetensors").read(pictures)
    ours = reader.read(pictures)
    assert len(again) == 70
    assert np.mean([a[name] == b[name] for a, b in zip(ours, again, strict=True) for name in HEADS]) > 0.97


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (256, 256)])
def test_any_size_is_read(size: tuple[int, int]) -> None:
    (reading,) = Reader(AttributeNet()).read(np.zeros((1, *size, 3), np.uint8))
    assert all(reading[name] in values for name, values in HEADS.items())
    assert list(reading) == list(HEADS)


def test_missing_weights_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the reader"):
        Reader.load(tmp_path / "none.safetensors")


def test_whitening_gives_the_stem_equal_variances(data: StoryDB) -> None:
    network, pictures = AttributeNet(), to_input(torch.from_numpy(np.array(data.pictures)))
    whiten(network.stem[0], pictures)
    made = network.stem[0](pictures).transpose(0, 1).flatten(1)
    spread = made.std(1)
    strong = spread[:8]
    assert strong.max() < 3 * strong.min()
    torch.testing.assert_close(made[:24], -made[24:])


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_orthogonal_levels_the_singular_values(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonal(matrix))
    assert after.max() < 1.6
    large = before > 0.3 * before.max()
    assert after[: int(large.sum())].min() > 0.4


def test_augmentation_is_gentle_and_seeded() -> None:
    pictures = to_input(torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)))
    smooth = torch.nn.functional.avg_pool2d(pictures, 9, 1, 4)
    for seed in range(8):
        made = training.augment(smooth, torch.Generator().manual_seed(seed))
        assert made.shape == smooth.shape
        assert torch.equal(made, training.augment(smooth, torch.Generator().manual_seed(seed)))
        assert (made - smooth).abs().mean() < 0.25
