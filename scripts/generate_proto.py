"""Generates the Python code of the wire contract from ``proto/``.

For each ``proto/storyloom/v1/<name>.proto`` this writes ``<name>_pb2.py`` and ``<name>_pb2.pyi`` (messages) and, where
it has services, ``<name>_pb2_grpc.py`` and ``<name>_pb2_grpc.pyi``. The last is made here: the gRPC plugin makes none.

Run ``python scripts/generate_proto.py`` after every change to a ``.proto`` file and commit what it writes.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PYTHON_ROOT = ROOT / "clients" / "python"

_STUB_HEADER = '''# fmt: off
# ruff: noqa
"""Types of the gRPC code generated from {source}. DO NOT EDIT! Made by generate_proto.py."""
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio

import {module}_pb2 as _pb2

'''


def generate(destination: Path = PYTHON_ROOT, proto_root: Path = PROTO_ROOT) -> list[Path]:
    """Generates code for every ``.proto`` file under ``proto_root``.

    :param destination: folder that receives ``storyloom/v1/*_pb2*``; made if it does not exist.
    :param proto_root: folder that imports in ``.proto`` files are relative to.
    :returns: the files written, sorted.
    :raises RuntimeError: when protoc refuses a file; protoc has then printed why.
    """
    sources = sorted(path.relative_to(proto_root).as_posix() for path in proto_root.rglob("*.proto"))
    if not sources:
        raise RuntimeError(f"no .proto file found under {proto_root}")
    destination.mkdir(parents=True, exist_ok=True)
    _run_protoc(proto_root, [f"--python_out={destination}", f"--pyi_out={destination}", *sources])
    for file in _describe(proto_root, sources):
        stem = destination / file.name.removesuffix(".proto")
        _make_strict(stem.with_name(f"{stem.name}_pb2.pyi"))
        if file.service:
            _run_protoc(proto_root, [f"--grpc_python_out={destination}", file.name])
            stem.with_name(f"{stem.name}_pb2_grpc.pyi").write_text(grpc_stub(file), encoding="utf-8")
    folders = {(destination / source).parent for source in sources}
    return sorted(path for folder in folders for path in folder.glob("*_pb2*.py*"))


def grpc_stub(file: FileDescriptorProto) -> str:
    """Returns the ``.pyi`` text for the gRPC code of one proto file, for both ``grpc`` and ``grpc.aio``.

    A servicer method may be a plain or an async one, so its return type is a union and its context is ``Any``. Messages
    must be defined in the package's own files; streams from the client are not part of this contract.
    """
    module = file.name.removesuffix(".proto").replace("/", ".")
    header = _STUB_HEADER.format(source=file.name, module=module)
    return header + "\n".join(_service_stub(service.name, list(service.method)) for service in file.service)


def _describe(proto_root: Path, sources: list[str]) -> list[FileDescriptorProto]:
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.binpb"
        _run_protoc(proto_root, [f"--descriptor_set_out={image}", *sources])
        return list(FileDescriptorSet.FromString(image.read_bytes()).file)


def _make_strict(stub: Path) -> None:
    # protoc writes a bare Mapping where a message may be given as a dict; mypy --strict refuses that.
    text = stub.read_text(encoding="utf-8")
    stub.write_text(re.sub(r"_Mapping(?=\])", "_Mapping[str, object]", text), encoding="utf-8")


def _service_stub(name: str, methods: list[MethodDescriptorProto]) -> str:
    for method in methods:
        if method.client_streaming:
            raise RuntimeError(f"{name}.{method.name}: no type stub is known for client streaming; add it here")
    lines = [f"class {name}Stub:", "    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ..."]
    for method in methods:
        kind = "UnaryStreamMultiCallable" if method.server_streaming else "UnaryUnaryMultiCallable"
        lines.append(f"    {method.name}: grpc.{kind}[{_message(method.input_type)}, {_message(method.output_type)}]")
    lines += ["", f"class {name}Servicer:"]
    for method in methods:
        output = _message(method.output_type)
        returns = f"{output} | Awaitable[{output}]"
        if method.server_streaming:
            # A generator, plain or async, or a coroutine that writes to its context.
            returns = f"Iterator[{output}] | AsyncIterator[{output}] | Awaitable[None]"
        lines.append(
            f"    def {method.name}(self, request: {_message(method.input_type)}, context: Any) -> {returns}: ..."
        )
    signature = f"servicer: {name}Servicer, server: grpc.Server | grpc.aio.Server"
    lines += ["", f"def add_{name}Servicer_to_server({signature}) -> None: ...", ""]
    return "\n".join(lines)


def _message(type_name: str) -> str:
    return f"_pb2.{type_name.rpartition('.')[2]}"


def _run_protoc(proto_root: Path, arguments: list[str]) -> None:
    well_known = resources.files("grpc_tools") / "_proto"
    status = protoc.main(["protoc", f"--proto_path={proto_root}", f"--proto_path={well_known}", *arguments])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}; its message is above")


def main() -> int:
    """Command line of this script; returns the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python code of the wire contract from proto/.")
    parser.add_argument("--out", type=Path, default=PYTHON_ROOT, help="folder that receives storyloom/v1/*_pb2*")
    for path in generate(parser.parse_args().out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
