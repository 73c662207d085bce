"""``storyloom.v1.ModelService``."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from storyloom.v1 import model_service_pb2 as pb
from storyloom.v1 import model_service_pb2_grpc
from storyloom_server import errors
from storyloom_server.access import Gate
from storyloom_server.authentication import current_tenant
from storyloom_server.catalog import CatalogError, ModelCatalog, ServedModel
from storyloom_server.desk import Desk
from storyloom_server.engine.options import ModelSpec
from storyloom_server.logs import fields
from storyloom_server.services.calls import Context, answered
from storyloom_server.supervisor import ModelError, Supervisor
from storyloom_server.warm_up import warm_up_job

log = logging.getLogger("storyloom.models")

_Result = TypeVar("_Result")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Which models are served, and which are loaded. What was begun is done, also when the caller has left meanwhile.

    Args:
        gate: knows who may control models.
        catalog: the served models, and where others are.
        engine: loads them.
        desk: knows which models open stories need.
        max_request_bytes: of a message to this server.
    """

    def __init__(
        self, gate: Gate, catalog: ModelCatalog, engine: Supervisor, desk: Desk, max_request_bytes: int
    ) -> None:
        self._gate = gate
        self._catalog = catalog
        self._engine = engine
        self._desk = desk
        self._max_request_bytes = max_request_bytes
        self._changing = asyncio.Lock()  # Held while the engine and the catalog come to agree on a model.
        self._begun: set[asyncio.Task[Any]] = set()

    @answered
    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """The served models, the default one first."""
        return pb.ListModelsResponse(models=[self._describe(model) for model in self._catalog.models])

    @answered
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """One of them."""
        return pb.GetModelResponse(model=self._describe(self._find(request.name)))

    @answered
    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:  # noqa: N802
        """Loads a package that lies in one of the model folders, under its name."""
        self._gate.require_admin(current_tenant())
        return await self._to_the_end(self._serve(request.name))

    @answered
    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:  # noqa: N802
        """Takes a model out of service; its memory is free when the stories that use it have ended."""
        self._gate.require_admin(current_tenant())
        model = self._find(request.name)
        if model is self._catalog.default:
            raise errors.failed_precondition(
                "DEFAULT_MODEL", f"models/{model.name}", "the default model stays; start the server with another one"
            )
        self._catalog.remove(model)
        await self._to_the_end(self._forget(model))
        return pb.UnloadModelResponse()

    @answered
    async def WarmModel(self, request: pb.WarmModelRequest, context: Context) -> pb.WarmModelResponse:  # noqa: N802
        """Takes a small story through a model."""
        self._gate.require_admin(current_tenant())
        return pb.WarmModelResponse(seconds=await self._load(self._find(request.name)))

    async def _to_the_end(self, operation: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.ensure_future(operation)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def _serve(self, name: str) -> pb.LoadModelResponse:
        async with self._changing:
            served = self._catalog.find(name) if name else None
            if served is not None:
                return pb.LoadModelResponse(model=self._describe(served))
            try:
                model = self._catalog.load_available(name)
            except CatalogError as error:
                raise errors.failed_precondition("MODEL_UNUSABLE", f"models/{name}", str(error)) from error
            if model is None:
                raise errors.not_found("model", name, "put its package into a folder given as --model-folder")
            seconds = await self._load(model)
            self._catalog.add(model)
            return pb.LoadModelResponse(model=self._describe(model), seconds=seconds)

    async def _forget(self, model: ServedModel) -> None:
        await self._desk.wait_unused(model.name)
        async with self._changing:
            if self._catalog.find(model.name) is None:  # Nobody has loaded it again meanwhile.
                self._engine.unload_model(model.name)
                log.info("model unloaded", extra=fields(model=model.name))

    async def _load(self, model: ServedModel) -> float:
        try:
            return await self._engine.load_model(ModelSpec(model.name, model.folder, warm_up_job(model)))
        except ModelError as error:
            raise errors.failed_precondition("MODEL_UNUSABLE", f"models/{model.name}", str(error)) from error

    def _find(self, name: str) -> ServedModel:
        model = self._catalog.find(name)
        if model is None:
            known = ", ".join(self._catalog.names)
            raise errors.not_found("model", name, f"those that are served are {known}")
        return model

    def _describe(self, model: ServedModel) -> pb.Model:
        is_default = model is self._catalog.default
        return model.describe(is_default=is_default, max_request_bytes=self._max_request_bytes)
