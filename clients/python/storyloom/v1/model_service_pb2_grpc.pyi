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
    GetModel: grpc.UnaryUnaryMultiCallable[_pb2.GetModelRequest, _pb2.GetModelResponse]
    LoadModel: grpc.UnaryUnaryMultiCallable[_pb2.LoadModelRequest, _pb2.LoadModelResponse]
    UnloadModel: grpc.UnaryUnaryMultiCallable[_pb2.UnloadModelRequest, _pb2.UnloadModelResponse]
    WarmModel: grpc.UnaryUnaryMultiCallable[_pb2.WarmModelRequest, _pb2.WarmModelResponse]

class ModelServiceServicer:
    def ListModels(self, request: _pb2.ListModelsRequest, context: Any) -> _pb2.ListModelsResponse | Awaitable[_pb2.ListModelsResponse]: ...
    def GetModel(self, request: _pb2.GetModelRequest, context: Any) -> _pb2.GetModelResponse | Awaitable[_pb2.GetModelResponse]: ...
    def LoadModel(self, request: _pb2.LoadModelRequest, context: Any) -> _pb2.LoadModelResponse | Awaitable[_pb2.LoadModelResponse]: ...
    def UnloadModel(self, request: _pb2.UnloadModelRequest, context: Any) -> _pb2.UnloadModelResponse | Awaitable[_pb2.UnloadModelResponse]: ...
    def WarmModel(self, request: _pb2.WarmModelRequest, context: Any) -> _pb2.WarmModelResponse | Awaitable[_pb2.WarmModelResponse]: ...

def add_ModelServiceServicer_to_server(servicer: ModelServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
