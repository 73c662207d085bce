"""Requests that no client would send: random messages, mutated ones, and bytes that only look like a message.

Everything comes from one ``random.Random``, so that a seed gives the same requests again.
"""

import io
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from PIL import Image

_NUMBERS: Sequence[int] = (0, 1, 2, 3, 7, 100, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 7.5, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_TEXTS: Sequence[str] = (
    "", " ", "a dog", "{mia} walks", "{nobody}", "{", "}", "{{mia}}", "mia", "a" * 3000, "\0", "\u202e\ufeff",
    "\U0001f409" * 20, "%s%n{0}", "../../etc/passwd", "'; drop table story; --", "\r\n\r\n", "tiny", "word " * 90,
)  # fmt: skip
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
    FieldDescriptor.CPPTYPE_ENUM: (32, True),
}
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Maker:
    """Makes random messages.

    Args:
        draw: where chance comes from.
        sound: messages that a server would take, by full name of their type; some are used as they are or nearly so.
        texts: further texts for fields, such as ids that the server knows.
    """

    draw: random.Random
    sound: Mapping[str, Message]
    texts: Sequence[str] = ()

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message of this type: a sound one with a field changed or not, or random fields with values at the edge."""
        message = GetMessageClass(kind)()
        known = self.sound.get(kind.full_name)
        if known is not None and self.draw.random() < 0.7:
            message.CopyFrom(known)
            changes = 1 if self.draw.random() < 0.3 else 0
        else:
            changes = sum(self.draw.random() < 0.6 for _ in kind.fields)
        for field in self.draw.sample(list(kind.fields), min(changes, len(kind.fields))):
            self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        target: Any = getattr(message, field.name)
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if depth < _MAX_DEPTH:
                for _ in range(self.draw.choice((0, 1, 2, 5)) if field.is_repeated else 1):
                    child = target.add() if field.is_repeated else target
                    child.CopyFrom(self.message(field.message_type, depth + 1))
        elif field.is_repeated:
            target.extend(self._value(field) for _ in range(self.draw.choice((0, 1, 2, 10))))
        else:
            setattr(message, field.name, self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return random_picture(self.draw)
            case FieldDescriptor.CPPTYPE_STRING:
                return self.draw.choice(self.texts if self.texts and self.draw.random() < 0.5 else _TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self.draw.random() < 0.5
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return self.draw.choice(_FLOATS)
            case kind:
                bits, signed = _BITS[kind]
                number = self.draw.choice(_NUMBERS) % 2**bits
                return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def random_picture(draw: random.Random) -> bytes:
    """The bytes of a picture file, or of something that pretends to be one."""
    sound = _sound_picture(draw)
    kind = draw.randrange(6)
    if kind == 0:
        return sound
    if kind == 1:
        return png_that_claims(draw.choice((1, 60_000, 2**31 - 1)), draw.choice((1, 60_000, 2**31 - 1)))
    if kind == 2:
        return draw.randbytes(draw.randrange(400))
    return mutated(draw, sound)


def _sound_picture(draw: random.Random) -> bytes:
    size = (draw.randrange(1, 40), draw.randrange(1, 40))
    mode, name = draw.choice(
        (("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG"),
         ("RGB", "WEBP"), ("RGB", "GIF"), ("RGB", "TIFF"))
    )  # fmt: skip
    file = io.BytesIO()
    Image.new("RGB", size, (draw.randrange(256), 0, 0)).convert(mode).save(file, format=name)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header promises a picture of this size."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def mutated(draw: random.Random, data: bytes) -> bytes:
    """The bytes with a few changes: bits flipped, parts cut out, doubled or replaced, the end cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(changed) + 1)
        end = min(len(changed), place + draw.randrange(1, 9))
        match draw.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                del changed[place:end]
            case 3:
                changed[place:place] = changed[place:end] * draw.randrange(1, 4)
            case _:
                changed[place:end] = draw.randbytes(draw.randrange(6))
    return bytes(changed)


def hostile_bytes(draw: random.Random, kind: Descriptor) -> bytes:
    """Bytes on the wire that no serialiser makes, for a message of this type."""
    return draw.choice(_HOSTILE)(draw, kind)


def _noise(draw: random.Random, kind: Descriptor) -> bytes:
    return draw.randbytes(draw.choice((1, 2, 10, 100, 1000)))


def _wrong_types(draw: random.Random, kind: Descriptor) -> bytes:
    """Known field numbers with wire types that are not theirs."""
    parts = []
    for field in draw.choices(list(kind.fields), k=5) if kind.fields else ():
        payloads = (
            (0, varint(draw.choice(_NUMBERS))), (1, draw.randbytes(8)), (2, _sized(draw.randbytes(5))),
            (5, draw.randbytes(4)), (3, b""), (4, b""), (6, b""), (7, b""),
        )  # fmt: skip
        wire_type, payload = draw.choice(payloads)
        parts.append(varint(field.number << 3 | wire_type) + payload)
    return b"".join(parts)


def _long_varint(draw: random.Random, kind: Descriptor) -> bytes:
    return b"\x08" + b"\xff" * draw.choice((9, 10, 11, 100)) + b"\x01"


def _huge_tag(draw: random.Random, kind: Descriptor) -> bytes:
    return varint(draw.choice((0, 0 << 3 | 2, 2**29 << 3, 2**32 - 1, 2**35))) + draw.randbytes(4)


def _length_beyond_the_end(draw: random.Random, kind: Descriptor) -> bytes:
    return varint(1 << 3 | 2) + varint(draw.choice((5, 2**31 - 1, 2**32, 2**63))) + b"abc"


def _deep(draw: random.Random, kind: Descriptor) -> bytes:
    """Messages in messages, or groups in groups, deeper than a parser goes."""
    depth, number = draw.choice((50, 101, 1000, 20_000)), draw.choice((1, 3, 7, 99))
    if draw.random() < 0.5:
        return varint(number << 3 | 3) * depth + varint(number << 3 | 4) * depth
    data = b""
    for _ in range(min(depth, 1000)):
        data = varint(number << 3 | 2) + _sized(data)
    return data


def _bad_utf8(draw: random.Random, kind: Descriptor) -> bytes:
    number = draw.choice(kind.fields).number if kind.fields else 1
    bad = draw.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\x80"))
    return varint(number << 3 | 2) + _sized(draw.choice((bad, varint(1 << 3 | 2) + _sized(bad))))


def _many_fields(draw: random.Random, kind: Descriptor) -> bytes:
    """Thousands of copies of one field, each nearly empty: small on the wire, large in memory."""
    number = draw.choice(kind.fields).number if kind.fields else 1
    inner = draw.choice((b"", b"\x1a\x00", b"\x1a\x00" * 50))
    return (varint(number << 3 | 2) + _sized(inner)) * draw.choice((300, 3000))


_HOSTILE: Sequence[Callable[[random.Random, Descriptor], bytes]] = (
    _noise,
    _wrong_types,
    _long_varint,
    _huge_tag,
    _length_beyond_the_end,
    _deep,
    _bad_utf8,
    _many_fields,
)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
