"""Characters found from a description: candidates are made, compared, and what they agree on is kept.

The candidates are an ordinary story, which is journaled and resumed as any; what follows it is short and is done again
where it was lost. Nothing here is bound to a call: whoever asks with the same request id joins in.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as stories_pb
from storyloom_model.identity.discovery import LEAST_CANDIDATES, Discovered, discover
from storyloom_model.identity.features import FeaturesError, IdentityFeatures, ReferenceFeatures
from storyloom_model.manifest import NO_ADAPTER
from storyloom_server import errors
from storyloom_server.catalog import ModelCatalog, ServedModel
from storyloom_server.characters import Characters
from storyloom_server.desk import Desk
from storyloom_server.orders import OrderTaker
from storyloom_server.reference_pictures import asked_references, digest
from storyloom_server.references import References, kept_references
from storyloom_server.store import Features, NewCharacter
from storyloom_server.store.errors import NotFoundError
from storyloom_server.tenants import Tenant
from storyloom_server.texts import MAX_TEXT, check_name, check_text
from storyloom_server.violations import Findings, Violation

_CANDIDATES, _MOST_CANDIDATES = 16, 64
_ROUNDS, _MOST_ROUNDS = 3, 8
_NAMESPACE = uuid.UUID("5d0a2c86-7a53-4f0e-9d3b-0f6f3f3b8a11")
"""For the id of a character that was asked for with a request id: the same request gives the same id."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """A checked request. ``character_id`` is that of the character to be, and the request id of its candidates."""

    character_id: str
    request: pb.DiscoverCharacterRequest
    model: ServedModel
    candidates: int
    rounds: int

    @property
    def story(self) -> story_pb2.Story:
        """The candidates: the character on its own, again and again."""
        request = self.request
        return story_pb2.Story(
            title=f"Candidates of {request.name}",
            style=request.style,
            characters=[story_pb2.Character(name=request.name, description=request.description)],
            frames=[story_pb2.Frame(prompt=f"{{{request.name}}}")] * self.candidates,
            settings=story_pb2.Settings(
                model=self.model.name,
                seed=request.seed if request.HasField("seed") else None,
                consistency=story_pb2.Consistency(enabled=False),
                identity_adapter=NO_ADAPTER,
            ),
        )


@dataclass(frozen=True, slots=True)
class _Running:
    request: pb.DiscoverCharacterRequest
    task: asyncio.Task[pb.DiscoverCharacterResponse]


class Discoveries:
    """Finds characters.

    Args:
        catalog: the served models.
        orders: checks the stories of candidates.
        desk: makes them.
        references: has their pictures encoded.
        characters: keeps what is found.
    """

    def __init__(
        self, catalog: ModelCatalog, orders: OrderTaker, desk: Desk, references: References, characters: Characters
    ) -> None:
        self._catalog = catalog
        self._orders = orders
        self._desk = desk
        self._references = references
        self._characters = characters
        self._running: dict[str, _Running] = {}

    async def discover(self, tenant: Tenant, request: pb.DiscoverCharacterRequest) -> pb.DiscoverCharacterResponse:
        """Finds a character, or waits for whoever does it already; goes on when the caller leaves.

        Raises:
            StoryError: what is wrong with the request, whatever the story of candidates fails with, or that they show
                too little.
            StoreError: the character could not be kept.
        """
        wish = self._check(tenant, request)
        with suppress(NotFoundError):
            known = await self._characters.get(tenant, wish.character_id)
            if (known.name, known.description) != (request.name, request.description):
                raise errors.request_id_reused(request.request_id)
            return pb.DiscoverCharacterResponse(character=known)
        running = self._running.get(wish.character_id)
        if running is None:
            task = asyncio.create_task(self._discover(tenant, wish), name=f"discovery-{wish.character_id}")
            running = self._running[wish.character_id] = _Running(request, task)
            task.add_done_callback(lambda done: self._end(wish.character_id, done))
        if request != running.request:
            raise errors.request_id_reused(request.request_id)
        try:
            return await asyncio.shield(running.task)
        except asyncio.CancelledError:
            if running.task.cancelled():
                raise errors.draining() from None
            raise

    async def leave(self) -> None:
        """Stops; callers that come again with their request ids take up where it ended."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, character_id: str, task: asyncio.Task[pb.DiscoverCharacterResponse]) -> None:
        del self._running[character_id]
        if not task.cancelled():
            task.exception()  # Nobody may be there to hear of it.

    def _check(self, tenant: Tenant, request: pb.DiscoverCharacterRequest) -> _Wish:
        found = Findings()
        check_name(found, "name", request.name)
        check_text(found, "description", request.description, limit=MAX_TEXT, required=True)
        able = [model for model in self._catalog.models if model.identity_adapters]
        known = {model.name: model for model in able}
        model = known.get(request.model) if request.model else next(iter(able), None)
        if model is None:
            names = f"use one of {', '.join(known)}" if known else "no model here does"
            found.add("model", f"must be a served model that takes references; {names}")
        frames = _MOST_CANDIDATES if model is None else min(_MOST_CANDIDATES, model.manifest.limits.max_frames)
        candidates, rounds = request.candidates or min(_CANDIDATES, frames), request.rounds or _ROUNDS
        if not LEAST_CANDIDATES <= candidates <= frames:
            found.add("candidates", f"{candidates} candidates; ask for {LEAST_CANDIDATES} to {frames}")
        if rounds > _MOST_ROUNDS:
            found.add("rounds", f"{rounds} rounds; ask for 1 to {_MOST_ROUNDS}")
        if found or model is None:
            raise errors.invalid_request(found.violations)
        name = f"{tenant.name}\0{request.request_id}"
        character_id = uuid.uuid5(_NAMESPACE, name) if request.request_id else uuid.uuid4()
        return _Wish(str(character_id), request, model, candidates, rounds)

    async def _discover(self, tenant: Tenant, wish: _Wish) -> pb.DiscoverCharacterResponse:
        await self._check_encoders(wish.model.name)
        story_id = await self._accept(tenant, wish)
        pictures = await self._pictures(tenant, story_id)
        seen = [await self._look(tenant, wish.model.name, pictures[index]) for index in sorted(pictures)]
        shown: list[ReferenceFeatures | None] = [None] * len(seen)
        encoders = ""
        for index, one in enumerate(seen):
            if one is not None:
                shown[index], encoders = one.references[0], one.encoders
        try:
            found = await asyncio.to_thread(discover, shown, rounds=wish.rounds)
        except FeaturesError as error:
            raise errors.failed_precondition("NO_IDENTITY_FOUND", wish.request.name, str(error)) from error
        evidence = _evidence(story_id, found)
        payload = _payload(wish, pictures[found.medoid])
        features = Features(
            digest=digest(kept_references(payload)),
            encoders=encoders,
            data=IdentityFeatures(encoders, (found.features,)).to_bytes(),
            notes=(_in_words(evidence, len(seen)),),
        )
        new = NewCharacter(
            id=wish.character_id,
            tenant=tenant.name,
            name=wish.request.name,
            description=wish.request.description,
            payload=payload.SerializeToString(),
        )
        return pb.DiscoverCharacterResponse(character=await self._characters.keep(new, features), evidence=evidence)

    async def _check_encoders(self, model: str) -> None:
        await self._references.wait_for_engine()
        if self._references.encoding_model([model]) is None:
            raise errors.references_not_taken(model, [])

    async def _accept(self, tenant: Tenant, wish: _Wish) -> str:
        """The story of the candidates, new or the one that an earlier call with the same request id began."""
        request = stories_pb.CreateStoryRequest(
            story=wish.story,
            request_id=wish.character_id,
            scheduling=stories_pb.Scheduling(priority=stories_pb.PRIORITY_LOW),
        )
        try:
            order = await self._orders.new_story(tenant, request)
        except errors.StoryError as error:
            if not error.violations:
                raise
            # What is wrong with one candidate is wrong with all.
            raise errors.invalid_request(list(dict.fromkeys(map(_in_request, error.violations)))) from error
        return await self._desk.accept(tenant, order)

    async def _pictures(self, tenant: Tenant, story_id: str) -> Mapping[int, bytes]:
        """The candidates by frame, once all are there."""
        pictures = {}
        async for logged in self._desk.events(story_id, tenant, 0):
            if logged.event.HasField("frame"):
                complete = await self._desk.complete(logged)
                pictures[complete.frame.frame_index] = complete.frame.image.png
        return pictures

    async def _look(self, tenant: Tenant, model: str, picture: bytes) -> IdentityFeatures | None:
        """What a candidate shows; None where that is nobody."""
        asked = asked_references("candidates", [story_pb2.Reference(picture=picture)])
        try:
            found = await self._references.look(tenant.name, model, asked)
        except errors.StoryError as error:
            if error.violations:
                return None
            raise
        return IdentityFeatures.from_bytes(found.data)


def _payload(wish: _Wish, picture: bytes) -> pb.CreateCharacterRequest:
    """What the character is kept as: with the nearest candidate as its picture, for models with other encoders.

    The file is marked, so that the same picture in a request of its own is not taken for this character.
    """
    marks, marked = PngInfo(), io.BytesIO()
    marks.add_text("storyloom-discovery", wish.character_id)
    Image.open(io.BytesIO(picture)).save(marked, format="PNG", pnginfo=marks)
    return pb.CreateCharacterRequest(
        name=wish.request.name,
        description=wish.request.description,
        reference_pictures=[story_pb2.Reference(picture=marked.getvalue())],
    )


def _evidence(story_id: str, found: Discovered) -> pb.DiscoveryEvidence:
    frames = found.candidates
    return pb.DiscoveryEvidence(
        story_id=story_id,
        compared=frames,
        kept=[frames[row] for row in found.filtered.kept],
        nearest=found.medoid,
        rounds=[
            pb.DiscoveryRound(frames=[frames[row] for row in one.rows], errors=one.errors)
            for one in found.filtered.rounds
        ],
    )


def _in_words(evidence: pb.DiscoveryEvidence, candidates: int) -> str:
    kept = ", ".join(map(str, evidence.kept))
    return (
        f"found in {candidates} candidates, story {evidence.story_id}: {len(evidence.compared)} show somebody, frames "
        f"{kept} agree best, {evidence.nearest} most"
    )


def _in_request(violation: Violation) -> Violation:
    """What is wrong with the story of the candidates, where the request says it."""
    for path, field in (("story.style", "style"), ("story.characters", "description"), ("story.frames", "description")):
        if violation.path.startswith(path):
            return Violation(field, violation.message)
    return violation
