# fmt: off
# ruff: noqa
"""Types of the gRPC code generated from storyloom/v1/story_service.proto. DO NOT EDIT! Made by generate_proto.py."""
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio

import storyloom.v1.story_service_pb2 as _pb2

class StoryServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    GenerateStory: grpc.UnaryStreamMultiCallable[_pb2.GenerateStoryRequest, _pb2.GenerateStoryResponse]

class StoryServiceServicer:
    def GenerateStory(self, request: _pb2.GenerateStoryRequest, context: Any) -> Iterator[_pb2.GenerateStoryResponse] | AsyncIterator[_pb2.GenerateStoryResponse] | Awaitable[None]: ...

def add_StoryServiceServicer_to_server(servicer: StoryServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
