"""Pictures from outside: what is read is what people see, and what is hostile costs nothing and is told."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from storyloom_server.pictures import PictureLimits, read_picture
from storyloom_server.violations import Findings

LIMITS = PictureLimits(max_mib=2, max_megapixels=1)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(data: bytes, limits: PictureLimits = LIMITS) -> Any:
    found = Findings()
    picture = read_picture(found, "references[0]", data, limits)
    assert found.violations == []
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    return picture


def problem(data: bytes, limits: PictureLimits = LIMITS) -> str:
    found = Findings()
    assert read_picture(found, "references[0]", data, limits) is None
    assert [violation.path for violation in found.violations] == ["references[0]"]
    return found.violations[0].message


def two_colours(mode: str = "RGB") -> Image.Image:
    """32 wide, 16 high; red at the left, blue at the right."""
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    return image.convert(mode)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_format_is_read(form: str) -> None:
    picture = read(encoded(two_colours(), form))
    assert picture.shape == (16, 32, 3)
    assert np.abs(picture[8, 4].astype(int) - [255, 0, 0]).max() < 12
    assert np.abs(picture[8, 28].astype(int) - [0, 0, 255]).max() < 12


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_other_modes_keep_their_colours(mode: str) -> None:
    assert np.array_equal(read(encoded(two_colours(mode))), np.asarray(two_colours()))


def test_cmyk_is_read() -> None:
    picture = read(encoded(two_colours("CMYK"), "JPEG"))
    assert picture[8, 4].argmax() == 0
    assert picture[8, 28].argmax() == 2


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (read(encoded(clear)) == 255).all()
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert abs(int(read(encoded(half))[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert (read(encoded(palette, transparency=0)) == 255).all()
    rgb_key = Image.new("RGB", (16, 16), (1, 2, 3))
    assert (read(encoded(rgb_key, transparency=(1, 2, 3))) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16))
    picture = read(encoded(ramp))
    assert (picture[0, 0].tolist(), picture[-1, -1].tolist()) == ([0] * 3, [255] * 3)
    assert abs(int(picture[8, 0, 0]) - 128) <= 1


def test_pictures_are_turned_as_exif_says_and_lose_their_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn to the right.
    exif[0x010E] = "a secret description"
    picture = read(encoded(two_colours(), "JPEG", exif=exif, quality=95))
    assert picture.shape == (32, 16, 3)
    assert picture[4, 8].argmax() == 0
    assert picture[28, 8].argmax() == 2


def test_profiles_are_applied_and_broken_ones_left_aside() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(read(encoded(two_colours(), icc_profile=profile)).astype(int) - np.asarray(two_colours())).max() <= 1
    # In this colour space, red is what sRGB calls blue.
    crossed = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    picture = read(encoded(two_colours(), icc_profile=crossed))
    assert picture[8, 4].argmax() == 2
    assert picture[8, 28].argmax() == 0
    assert np.array_equal(read(encoded(two_colours(), icc_profile=b"nonsense")), np.asarray(two_colours()))


def test_animations_are_refused() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for form in ("PNG", "WEBP"):
        assert "is animated" in problem(encoded(frames[0], form, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"hello", "is not a PNG, JPEG or WebP file"),
        (encoded(two_colours(), "GIF"), "is not a PNG, JPEG or WebP file"),
        (encoded(two_colours(), "TIFF"), "is not a PNG, JPEG or WebP file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a PNG, JPEG or WebP file"),
        (encoded(Image.new("RGB", (1001, 1000))), "1 megapixels are allowed"),
        (encoded(Image.new("RGB", (600, 8))), "16 are needed on each side"),
        (bytes(3 << 20), "has 3.0 MiB; 2 are allowed"),
    ],
)
def test_what_is_not_read_is_told(data: bytes, told: str) -> None:
    assert told in problem(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_files_that_are_cut_off_are_told(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, form)
    assert "damaged or cut off" in problem(data[: len(data) // 2])


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be large, and compresses to little."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(5000, 5000), (12_000, 12_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_never_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(image: Image.Image) -> None:
        pytest.fail("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert "pixels" in problem(bomb(*size))


def test_compressed_text_in_a_picture_does_not_expand() -> None:
    """Pillow's own guard; a change there would be seen here."""
    data = encoded(two_colours())
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    assert "damaged" in problem(data[:33] + chunk + data[33:])


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_no_bytes_whatever_do_more_than_a_violation(junk: bytes, at: int, form: str) -> None:
    data = encoded(two_colours(), form)
    mutated = data[: at % len(data)] + junk + data[at % len(data) + len(junk) :]
    found = Findings()
    picture = read_picture(found, "p", mutated, LIMITS)
    assert (picture is None) == bool(found)
