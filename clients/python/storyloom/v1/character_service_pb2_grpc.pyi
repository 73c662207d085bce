# fmt: off
# ruff: noqa
"""Types of the gRPC code generated from storyloom/v1/character_service.proto. DO NOT EDIT! Made by generate_proto.py."""
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio

import storyloom.v1.character_service_pb2 as _pb2

class CharacterServiceStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    CreateCharacter: grpc.UnaryUnaryMultiCallable[_pb2.CreateCharacterRequest, _pb2.CreateCharacterResponse]
    GetCharacter: grpc.UnaryUnaryMultiCallable[_pb2.GetCharacterRequest, _pb2.GetCharacterResponse]
    ListCharacters: grpc.UnaryUnaryMultiCallable[_pb2.ListCharactersRequest, _pb2.ListCharactersResponse]
    DeleteCharacter: grpc.UnaryUnaryMultiCallable[_pb2.DeleteCharacterRequest, _pb2.DeleteCharacterResponse]
    DiscoverCharacter: grpc.UnaryUnaryMultiCallable[_pb2.DiscoverCharacterRequest, _pb2.DiscoverCharacterResponse]

class CharacterServiceServicer:
    def CreateCharacter(self, request: _pb2.CreateCharacterRequest, context: Any) -> _pb2.CreateCharacterResponse | Awaitable[_pb2.CreateCharacterResponse]: ...
    def GetCharacter(self, request: _pb2.GetCharacterRequest, context: Any) -> _pb2.GetCharacterResponse | Awaitable[_pb2.GetCharacterResponse]: ...
    def ListCharacters(self, request: _pb2.ListCharactersRequest, context: Any) -> _pb2.ListCharactersResponse | Awaitable[_pb2.ListCharactersResponse]: ...
    def DeleteCharacter(self, request: _pb2.DeleteCharacterRequest, context: Any) -> _pb2.DeleteCharacterResponse | Awaitable[_pb2.DeleteCharacterResponse]: ...
    def DiscoverCharacter(self, request: _pb2.DiscoverCharacterRequest, context: Any) -> _pb2.DiscoverCharacterResponse | Awaitable[_pb2.DiscoverCharacterResponse]: ...

def add_CharacterServiceServicer_to_server(servicer: CharacterServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
