"""The ID-Injector as a maker of streams: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from storyloom_model.identity.adapter import CharacterIdentity
from storyloom_model.identity.features import FeaturesError, IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.storynizor import InjectorSizes, StorynizorInjector

SIZES = InjectorSizes(state_dim=12, dim=16, tokens=3, face_dim=8, depth=2, heads=2, head_dim=8)


@pytest.fixture(scope="module")
def injector() -> StorynizorInjector:
    torch.manual_seed(0)
    return StorynizorInjector(SIZES).eval()


def _reference(seed: int) -> ReferenceFeatures:
    draw = np.random.default_rng(seed)
    face = draw.normal(size=8).astype(np.float32)
    return ReferenceFeatures(face=face / np.linalg.norm(face), face_states=draw.normal(size=(5, 12)).astype(np.float16))


def _identity(*seeds: int) -> CharacterIdentity:
    return CharacterIdentity(IdentityFeatures("test", tuple(_reference(seed) for seed in seeds)))


def test_each_character_gets_a_stream_of_its_own(injector: StorynizorInjector) -> None:
    cast = {"ann": replace(_identity(1), scale=0.5), "bob": _identity(2, 3)}
    streams = injector.streams(cast)
    assert [stream.owner for stream in streams] == ["ann", "bob"]
    assert [stream.scale for stream in streams] == [0.5, 1.0]
    assert all(stream.tokens.shape == (3, 16) for stream in streams)
    assert not torch.allclose(streams[0].tokens, streams[1].tokens)


def test_several_references_are_averaged_whatever_their_order(injector: StorynizorInjector) -> None:
    (both,) = injector.streams({"a": _identity(1, 2)})
    (turned,) = injector.streams({"a": _identity(2, 1)})
    (first,), (second,) = (injector.streams({"a": _identity(seed)}) for seed in (1, 2))
    torch.testing.assert_close(both.tokens, (first.tokens + second.tokens) / 2)
    torch.testing.assert_close(both.tokens, turned.tokens)


def test_the_same_features_give_the_same_tokens_in_any_cast(injector: StorynizorInjector) -> None:
    (alone,) = injector.streams({"a": _identity(1)})
    beside = injector.streams({"b": _identity(2), "a": _identity(1)})[1]
    torch.testing.assert_close(alone.tokens, beside.tokens)


def test_stacked_references_lie_side_by_side(injector: StorynizorInjector) -> None:
    stacked = StorynizorInjector(replace(SIZES, stacked=True)).eval()
    stacked.load_state_dict(injector.state_dict())
    (both,) = stacked.streams({"a": _identity(1, 2)})
    (first,) = injector.streams({"a": _identity(1)})
    assert both.tokens.shape == (6, 16)
    torch.testing.assert_close(both.tokens[:3], first.tokens)


def test_negatives_know_nothing_of_the_references(injector: StorynizorInjector) -> None:
    one, other = (injector.negative_streams({"a": _identity(seed)}) for seed in (1, 2))
    torch.testing.assert_close(one[0].tokens, other[0].tokens)
    zeros = injector(torch.zeros(1, 8), torch.zeros(1, 5, 12))[0]
    torch.testing.assert_close(one[0].tokens, zeros)
    assert one[0].owner == "a"


@pytest.mark.parametrize("stacked", [False, True])
def test_negatives_are_as_long_as_the_streams(injector: StorynizorInjector, stacked: bool) -> None:
    maker = StorynizorInjector(replace(SIZES, stacked=stacked)).eval()
    cast = {"a": _identity(1, 2), "b": _identity(3)}
    lengths = [[len(s.tokens) for s in streams] for streams in (maker.streams(cast), maker.negative_streams(cast))]
    assert lengths[0] == lengths[1]


def test_blending_goes_from_one_character_to_the_other(injector: StorynizorInjector) -> None:
    one, other = _identity(1), _identity(2)
    ends = [injector.streams({"a": identity})[0].tokens for identity in (one, other)]
    for weight in (0.0, 0.25, 1.0):
        blend = replace(one, blend=other.features, blend_weight=weight)
        (made,) = injector.streams({"a": blend})
        torch.testing.assert_close(made.tokens, torch.lerp(*ends, weight))


def test_pictures_of_clothes_and_pictures_without_faces_do_not_count(injector: StorynizorInjector) -> None:
    references = (_reference(1), replace(_reference(2), role="clothes"), ReferenceFeatures())
    (made,) = injector.streams({"a": CharacterIdentity(IdentityFeatures("test", references))})
    (alone,) = injector.streams({"a": _identity(1)})
    torch.testing.assert_close(made.tokens, alone.tokens)


def test_a_character_without_a_face_is_named(injector: StorynizorInjector) -> None:
    nobody = CharacterIdentity(IdentityFeatures("test", (ReferenceFeatures(),)))
    with pytest.raises(FeaturesError, match="mia shows a face"):
        injector.streams({"mia": nobody})


def test_keeping_clothes_alone_is_refused(injector: StorynizorInjector) -> None:
    with pytest.raises(FeaturesError, match="face"):
        injector.streams({"a": replace(_identity(1), keep=frozenset({"clothes"}))})
    assert injector.streams({"a": replace(_identity(1), keep=frozenset({"face", "clothes"}))})


def test_a_configuration_makes_an_equal_module(injector: StorynizorInjector) -> None:
    again = StorynizorInjector.from_config(json.loads(json.dumps(injector.config))).eval()
    again.load_state_dict(injector.state_dict())
    one, other = (maker.streams({"a": _identity(1)})[0].tokens for maker in (injector, again))
    assert torch.equal(one, other)
