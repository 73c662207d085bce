"""What a generated picture says about itself: read by Pillow, and chunk by chunk without it."""

import io
import json
import struct
import zlib
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from PIL import Image

from storyloom_server.images import encode_png, provenance
from storyloom_server.messages import Pixels

PIXELS = Pixels(width=3, height=2, rgb=bytes(range(18)))


def made(model: str = "mini", **settings: object) -> bytes:
    told = provenance(
        model=model,
        seed=2**63,
        settings=settings or {"steps": 20, "solver": "ddim"},
        story_id="story-1",
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    return encode_png(PIXELS, told)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Chunks of a PNG file, checksums checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + data)
        found.append((name, data))
        at += 12 + size
    return found


def test_pixels_are_kept() -> None:
    with Image.open(io.BytesIO(made())) as image:
        assert (image.mode, image.size) == ("RGB", (3, 2))
        assert image.tobytes() == PIXELS.rgb


def test_pillow_reads_the_texts() -> None:
    with Image.open(io.BytesIO(made())) as image:
        texts = dict(image.text)  # type: ignore[attr-defined]
    assert json.loads(texts.pop("Settings")) == {"steps": 20, "solver": "ddim"}
    xmp = texts.pop("XML:com.adobe.xmp")
    assert texts == {
        "Software": "Storyloom",
        "Source": "AI-generated",
        "Model": "mini",
        "Seed": str(2**63),
        "Story": "story-1",
        "Creation Time": "2026-01-02T03:04:05+00:00",
    }
    assert "trainedAlgorithmicMedia" in xmp


@pytest.mark.parametrize("model", ["mini", 'a "quoted" <model> & more', "modèle 模型"])
def test_chunks_are_what_the_standards_say(model: str) -> None:
    found = chunks(made(model))
    assert (found[0][0], found[-1][0]) == (b"IHDR", b"IEND")
    texts = [data for name, data in found if name == b"tEXt"]
    assert b"Source\0AI-generated" in texts
    (packet,) = (data for name, data in found if name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0"))
    keyword, flags, xmp = packet.partition(b"\0")[0], packet[18:22], packet[22:].decode()
    assert (keyword, flags) == (b"XML:com.adobe.xmp", b"\0\0\0\0")  # Not compressed, no language.
    described = next(ElementTree.fromstring(xmp).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"))  # noqa: S314
    assert (
        described.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
        == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    assert described.get("{http://ns.adobe.com/xap/1.0/}CreatorTool") == f"Storyloom {model}"
