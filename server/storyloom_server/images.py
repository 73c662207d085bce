"""PNG encoding, with the provenance of a generated picture written into the file."""

import io
from collections.abc import Mapping

from PIL import Image, PngImagePlugin

from storyloom_server.messages import Pixels

SOFTWARE = "Storyloom"


def encode_png(pixels: Pixels, provenance: Mapping[str, str]) -> bytes:
    """Encodes a picture as a complete PNG file.

    Args:
        pixels: uint8 RGB.
        provenance: written as text chunks beside ``Software`` and ``Source`` (which says that the picture is
            AI-generated); names are Latin-1 and at most 79 characters long.
    """
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    info = PngImagePlugin.PngInfo()
    for name, value in {"Software": SOFTWARE, "Source": "AI-generated", **provenance}.items():
        info.add_text(name, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
