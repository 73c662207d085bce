"""PNG encoding, with the provenance of a generated picture written into the file.

It is there twice: as text chunks, which any viewer shows, and as XMP with IPTC's DigitalSourceType, which platforms
read to mark pictures as AI-generated. It is not signed (as C2PA is): whoever wants to can remove it.
"""

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from storyloom_server.messages import Pixels

SOFTWARE = "Storyloom"
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="{tool}"
    Iptc4xmpExt:DigitalSourceType="{source_type}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_XMP_KEYWORD = "XML:com.adobe.xmp"


def provenance(
    *, model: str, seed: int, settings: Mapping[str, Any], story_id: str, created: datetime | None = None
) -> dict[str, str]:
    """What ``encode_png`` writes into a picture so that it can be made again.

    Args:
        model: name of the model.
        seed: of this frame.
        settings: plain values that JSON can hold; no prompts.
        story_id: of the story.
        created: now, if not given.
    """
    return {
        "Model": model,
        "Seed": str(seed),
        "Settings": json.dumps(dict(settings), sort_keys=True),
        "Story": story_id,
        "Creation Time": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
    }


def encode_png(pixels: Pixels, provenance: Mapping[str, str]) -> bytes:
    """Encodes a picture as a complete PNG file.

    Args:
        pixels: uint8 RGB.
        provenance: written as text chunks beside ``Software``, ``Source`` (which says that the picture is
            AI-generated) and XMP; names are Latin-1 and at most 79 characters long.
    """
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    info = PngImagePlugin.PngInfo()
    for name, value in {"Software": SOFTWARE, "Source": "AI-generated", **provenance}.items():
        info.add_text(name, value)
    tool = f"{SOFTWARE} {provenance.get('Model', '')}".strip()
    info.add_itxt(_XMP_KEYWORD, _XMP.format(tool=escape(tool, {'"': "&quot;"}), source_type=_SOURCE_TYPE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
