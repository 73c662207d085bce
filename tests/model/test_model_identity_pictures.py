"""Reference files of every kind: what becomes of them, and what is said of those that are of no use."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from storyloom_model.identity.encoders.pictures import (
    LARGEST_SIDE,
    DecodedPicture,
    ReferenceProblem,
    decode_mask,
    decode_picture,
)

RED, GREEN = (220, 30, 40), (20, 200, 60)


def halves(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colours(picture: DecodedPicture) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the middle of the left and of the right half."""
    height, width = picture.pixels.shape[:2]
    row = picture.pixels[height // 2]
    return tuple(row[width // 4].tolist()), tuple(row[3 * width // 4].tolist())


def near(found: tuple[int, ...], wanted: tuple[int, ...], slack: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= slack


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "CMYK"),
     ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB")],
)  # fmt: skip
def test_pictures_of_every_form_become_rgb(form: str, mode: str) -> None:
    image = halves().quantize() if mode == "P" else halves().convert(mode)
    picture = decode_picture(encoded(image, form))
    left, right = colours(picture)
    assert picture.pixels.shape == (30, 40, 3)
    assert picture.pixels.dtype == np.uint8
    assert near(left, RED, 30)
    assert near(right, GREEN, 30)
    assert picture.notes == ()


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    lying = halves().transpose(Image.Transpose.ROTATE_90)
    picture = decode_picture(encoded(lying, "JPEG", exif=exif, quality=95))
    assert picture.size == (40, 30)
    assert near(colours(picture)[0], RED)
    assert near(colours(picture)[1], GREEN)


def test_deep_pictures_keep_their_range() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 20, 0)
    picture = decode_picture(encoded(Image.fromarray(ramp)))
    assert picture.pixels[0, 0].tolist() == [0, 0, 0]
    assert picture.pixels[0, -1].tolist() == [255, 255, 255]
    assert abs(int(picture.pixels[0, 32, 0]) - 130) < 4


def test_what_is_transparent_becomes_white() -> None:
    clear = halves().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert colours(decode_picture(encoded(clear))) == ((255, 255, 255), (255, 255, 255))


def test_of_an_animation_the_first_frame_is_taken_and_told() -> None:
    frames = [Image.new("RGB", (30, 30), colour) for colour in (RED, GREEN)]
    picture = decode_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(colours(picture)[0], RED, 30)
    assert picture.notes == ("the picture is animated: its first frame was taken",)


def test_large_pictures_are_reduced() -> None:
    picture = decode_picture(encoded(Image.new("L", (4000, 1000))))
    assert picture.pixels.shape == (512, LARGEST_SIDE, 3)
    assert picture.size == (4000, 1000)


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""
    chunks = b""
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(20_000, 20_000), (5000, 5000)])
def test_pictures_with_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ReferenceProblem, match="send at most 16 megapixels"):
        decode_picture(claimed(*size))


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ReferenceProblem, match="not an image file"):
        decode_picture(b"a text")
    with pytest.raises(ReferenceProblem, match="damaged"):
        decode_picture(encoded(halves(), "JPEG")[:400])
    with pytest.raises(ReferenceProblem, match="MiB"):
        decode_picture(bytes((1 << 25) + 1))


@given(st.binary(max_size=300), st.integers(0, 200), st.sampled_from(("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")))
def test_damage_is_a_problem_or_a_picture_and_nothing_else(noise: bytes, start: int, form: str) -> None:
    data = bytearray(encoded(halves(16, 12), form))
    data[start : start + len(noise)] = noise
    try:
        picture = decode_picture(bytes(data))
    except ReferenceProblem:
        return
    assert picture.pixels.ndim == 3


def test_masks_are_white_where_the_character_is() -> None:
    picture = decode_picture(encoded(halves()))
    mask = Image.new("L", (40, 30), 0)
    mask.paste(255, (20, 0, 40, 30))
    found = decode_mask(encoded(mask), picture)
    assert found.dtype == np.bool_
    assert not found[:, :20].any()
    assert found[:, 20:].all()


def test_masks_of_reduced_and_of_turned_pictures_fit() -> None:
    large = decode_picture(encoded(Image.new("RGB", (4000, 1000))))
    assert decode_mask(encoded(Image.new("1", (4000, 1000), 1)), large).shape == (512, LARGEST_SIDE)


def test_masks_of_another_size_and_black_ones_are_refused() -> None:
    picture = decode_picture(encoded(halves()))
    with pytest.raises(ReferenceProblem, match="the mask is 10x10 pixels and its picture 40x30"):
        decode_mask(encoded(Image.new("L", (10, 10), 255)), picture)
    with pytest.raises(ReferenceProblem, match="black everywhere"):
        decode_mask(encoded(Image.new("L", (40, 30), 0)), picture)
    with pytest.raises(ReferenceProblem, match="the mask is not an image file"):
        decode_mask(b"", picture)
