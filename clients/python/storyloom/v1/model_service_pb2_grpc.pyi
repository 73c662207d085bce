# fmt: off
# ruff: noqa
"""Types of the gRPC code generated from storyloom/v1/model_service.proto. DO NOT EDIT! Made by generate_proto.py."""
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio

import storyloom.v1.model_service_pb2 as _pb2

class ModelServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    ListModels: grpc.UnaryUnaryMultiCallable[_pb2.ListModelsRequest, _pb2.ListModelsResponse]

class ModelServiceServicer:
    def ListModels(self, request: _pb2.ListModelsRequest, context: Any) -> _pb2.ListModelsResponse | Awaitable[_pb2.ListModelsResponse]: ...

def add_ModelServiceServicer_to_server(servicer: ModelServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
