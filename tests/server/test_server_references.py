"""References through a real server: which are taken, and which are refused and why."""

import io
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_pb2
from tests.server.casts import GREEN, PINK, cast_story, keep, made, picture, pictures_of, refusal
from tests.server.fuzzing import png_that_claims, random_picture
from tests.server.null_encoder import BLUE, RED, WHITE
from tests.server.serving import ServerProcess, generate, record, serving


@pytest.fixture(scope="module")
def server(identity_package: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Serves a model that takes references, and one that takes none."""
    folder = tmp_path_factory.mktemp("references")
    with serving(folder, identity_package, "--model", str(tiny_package)) as running:
        yield running


def test_references_change_the_pictures_and_nothing_else_does(channel: grpc.Channel) -> None:
    plain = made(channel, cast_story())
    green, pink = made(channel, cast_story(picture(GREEN))), made(channel, cast_story(picture(PINK)))
    assert len({plain[0], green[0], pink[0]}) == 3
    assert made(channel, cast_story(picture(GREEN))) == green
    aside = cast_story(picture(GREEN))
    aside.settings.identity_adapter = "none"
    assert made(channel, aside) == plain


def test_options_of_an_identity_reach_the_model(channel: grpc.Channel) -> None:
    other = keep(channel, picture(PINK))
    blend = story_pb2.IdentityBlend(character_id=other.character_id, weight=0.25)
    options = [
        story_pb2.IdentityOptions(),
        story_pb2.IdentityOptions(scale=0.5),
        story_pb2.IdentityOptions(keep=[story_pb2.IDENTITY_PART_FACE]),
        story_pb2.IdentityOptions(blend=blend),
    ]
    assert len({made(channel, cast_story(picture(), identity=each))[0] for each in options}) == len(options)
    masked = cast_story(picture())
    masked.characters[0].references[0].mask = picture(WHITE)
    clothes = cast_story(picture(), picture(PINK))
    clothes.characters[0].references[1].role = story_pb2.REFERENCE_ROLE_CLOTHES
    assert len({made(channel, each)[0] for each in (cast_story(picture()), masked, clothes)}) == 3


def test_every_bad_reference_is_told(channel: grpc.Channel) -> None:
    code, found = refusal(channel, cast_story(picture(), picture(RED), picture(BLUE), picture(RED)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.keys() == {"story.characters[0].references[1]", "story.characters[0].references[3]"}
    assert "no face was found" in found["story.characters[0].references[1]"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"hello", "is not a PNG, JPEG or WebP file"),
        (picture(form="GIF"), "is not a PNG, JPEG or WebP file"),
        (picture()[:60], "damaged or cut off"),
        (png_that_claims(20_000, 20_000), "far too many pixels"),
        (png_that_claims(5000, 5000), "16 megapixels are allowed"),
        (
            picture(form="PNG", save_all=True, append_images=[Image.new("RGB", (64, 48), RED)]),
            "is animated",
        ),
        (picture(size=(8, 8)), "16 are needed"),
        (picture(RED), "no face was found"),
    ],
    ids=["empty", "text", "gif", "cut", "bomb", "large", "animated", "tiny", "faceless"],
)
def test_bad_pictures_are_refused(channel: grpc.Channel, data: bytes, told: str) -> None:
    code, found = refusal(channel, cast_story(data))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert told in found["story.characters[0].references[0]"]


def test_odd_pictures_are_read_as_people_see_them(channel: grpc.Channel) -> None:
    """CMYK, 16 bits a channel, palettes and pictures that EXIF turns; the encoder sees upright RGB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    deep, palette, cmyk = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((48, 64), 40_000, np.uint16)).save(deep, "PNG")
    Image.new("RGB", (64, 48), GREEN).convert("P").save(palette, "PNG")
    Image.new("CMYK", (64, 48), (100, 0, 100, 50)).save(cmyk, "JPEG")
    for data in (deep.getvalue(), palette.getvalue(), cmyk.getvalue()):
        assert made(channel, cast_story(data)) != made(channel, cast_story())
    turned, upright = picture(form="JPEG", exif=exif), picture(size=(48, 64), form="JPEG")
    mask = picture(WHITE, size=(48, 64))
    asked = [cast_story(turned), cast_story(upright)]
    for each in asked:  # The mask fits what people see.
        each.characters[0].references[0].mask = mask
    assert made(channel, asked[0]) == made(channel, asked[1])


def test_bad_options_are_refused_all_at_once(channel: grpc.Channel) -> None:
    identity = story_pb2.IdentityOptions(
        scale=float("nan"),
        keep=[99],  # type: ignore[list-item]
        blend=story_pb2.IdentityBlend(character_id=keep(channel).character_id, weight=2),
    )
    asked = cast_story(b"hello", identity=identity)
    asked.characters[0].references[0].role = 77  # type: ignore[assignment]
    asked.characters.add(name="bo", description="a man", identity=story_pb2.IdentityOptions(scale=1))
    asked.characters.add(name="ann", description="a woman").references.extend([story_pb2.Reference()] * 9)
    code, found = refusal(channel, asked)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.keys() >= {
        "story.characters[0].references[0]",
        "story.characters[0].references[0].role",
        "story.characters[0].identity.scale",
        "story.characters[0].identity.keep[0]",
        "story.characters[0].identity.blend.weight",
        "story.characters[0].identity.blend.character_id",
        "story.characters[1].identity",
        "story.characters[2].references",
    }
    masked = cast_story(picture(), picture())
    masked.characters[0].references[0].mask = picture(WHITE, size=(32, 32))
    masked.characters[0].references[1].mask = picture((0, 0, 0))
    masked.settings.identity_adapter = "nobody"
    code, found = refusal(channel, masked)
    assert "make it the size of the picture" in found["story.characters[0].references[0].mask"]
    assert "black all over" in found["story.characters[0].references[1].mask"]
    assert "use one of storynizor, none" in found["story.settings.identity_adapter"]


def test_garments_alone_are_no_person(channel: grpc.Channel) -> None:
    asked = cast_story(picture())
    asked.characters[0].references[0].role = story_pb2.REFERENCE_ROLE_CLOTHES
    code, found = refusal(channel, asked)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "garments alone, and the face is needed; add a picture" in found["story.characters[0].references"]
    garments = [story_pb2.Reference(picture=picture(), role=story_pb2.REFERENCE_ROLE_CLOTHES)]
    kept = keep(channel, reference_pictures=garments)
    code, found = refusal(channel, cast_story(character_id=kept.character_id))
    assert "garments alone" in found["story.characters[0].character_id"]


def test_loras_reach_the_model_and_the_record(channel: grpc.Channel) -> None:
    inked, washed = cast_story(), cast_story()
    inked.settings.loras.add(name="ink", weight=0.5)
    inked.settings.loras.add(name="wash")
    washed.settings.loras.add(name="wash", weight=0.5)
    events = list(generate(channel, inked))
    assert len({pictures_of(events)[0], made(channel, washed)[0], made(channel, cast_story())[0]}) == 3
    expected = [("ink", 0.5), ("wash", 1.0)]
    assert [(each.name, each.weight) for each in events[0].accepted.settings.loras] == expected
    kept = record(channel, events[0].story_id).story.settings.loras
    assert [(each.name, each.weight) for each in kept] == expected


def test_models_without_encoders_name_those_that_have_them(channel: grpc.Channel) -> None:
    asked = cast_story(picture())
    asked.settings.model = "tiny"
    code, found = refusal(channel, asked)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "tiny takes no references; use identity" in found["story.characters[0].references"]
    asked.settings.identity_adapter = "none"
    assert made(channel, asked)


def test_models_tell_what_they_take(channel: grpc.Channel) -> None:
    stub: Any = model_service_pb2_grpc.ModelServiceStub(channel)
    takes, takes_not = stub.ListModels(model_service_pb2.ListModelsRequest(), timeout=30).models
    assert [adapter.name for adapter in takes.identity_adapters] == ["storynizor"]
    assert story_pb2.IDENTITY_PART_FACE in takes.identity_adapters[0].keeps
    assert takes.defaults.identity_adapter == "storynizor"
    assert list(takes.loras) == ["ink", "wash"]
    assert (takes.limits.max_references, takes.limits.max_request_bytes) == (8, 16 * 1024 * 1024)
    assert (list(takes_not.identity_adapters), takes_not.defaults.identity_adapter) == ([], "none")


def test_records_hold_no_pictures(channel: grpc.Channel) -> None:
    asked = cast_story(picture(), picture(BLUE))
    asked.characters[0].identity.scale = 0.5
    events = list(generate(channel, asked))
    assert list(events[0].accepted.reference_notes) == ["mia, reference 2: 3 faces; the largest was taken"]
    assert events[0].accepted.settings.identity_adapter == "storynizor"
    kept = record(channel, events[0].story_id).story.characters[0]
    assert [reference.picture for reference in kept.references] == [b"", b""]
    assert kept.identity.scale == 0.5


def test_random_references_get_well_formed_answers(server: ServerProcess, channel: grpc.Channel) -> None:
    draw = random.Random(20261122)  # noqa: S311 - no secrets here
    codes: Counter[str] = Counter()
    for _ in range(150):
        asked = cast_story(*(random_picture(draw) for _ in range(draw.randrange(1, 4))), steps=1, frames=1)
        for reference in asked.characters[0].references:
            reference.mask = draw.choice((b"", b"", random_picture(draw)))
            reference.role = draw.choice((0, 1, 2, 77))
        codes[answer(channel, asked)] += 1
    assert set(codes) == {"OK", "INVALID_ARGUMENT"}, codes
    assert server.log.count("engine process started") == 1


def answer(channel: grpc.Channel, asked: story_pb2.Story) -> str:
    """The code of a story's call, which has all details where it is refused."""
    try:
        list(generate(channel, asked))
    except grpc.RpcError:
        code, found = refusal(channel, asked)
        assert found, "each bad field is told"
        return code.name
    return "OK"
