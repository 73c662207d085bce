"""The committed code of the wire contract is what the .proto files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from scripts import generate_proto

_COMMITTED = generate_proto.PYTHON_ROOT / "storyloom" / "v1"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*") if path.is_file()}


def test_committed_code_is_what_the_generator_writes(tmp_path: Path) -> None:
    generate_proto.generate(tmp_path)
    assert _contents(_COMMITTED) == _contents(tmp_path / "storyloom" / "v1"), (
        "clients/python/storyloom/v1 is stale: run python scripts/generate_proto.py and commit the result"
    )


def test_generated_files_name_no_machine_path() -> None:
    for name, content in _contents(_COMMITTED).items():
        assert str(generate_proto.ROOT).encode() not in content, name


def test_a_proto_file_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.proto").write_text('syntax = "proto3"; message {', encoding="utf-8")
    with pytest.raises(RuntimeError, match="protoc failed"):
        generate_proto.generate(tmp_path / "out", proto_root=tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"no .proto file found under {tmp_path}")):
        generate_proto.generate(tmp_path / "out", proto_root=tmp_path)


def test_client_streaming_is_refused_rather_than_typed_wrongly() -> None:
    file = FileDescriptorProto(name="storyloom/v1/upload.proto")
    method = file.service.add(name="UploadService").method.add(name="Upload", client_streaming=True)
    method.input_type = method.output_type = ".storyloom.v1.Chunk"
    with pytest.raises(RuntimeError, match=r"UploadService\.Upload"):
        generate_proto.grpc_stub(file)
