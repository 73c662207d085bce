"""Characters found from a description: candidates are made, compared, and what they agree on is kept.

In each loop but the first they are made with what the one before has found. Those of each loop are an ordinary story,
which is journaled and resumed as any; what follows it is short and is done again where it was lost. Nothing here is
bound to a call: whoever asks with the same request id joins in.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as stories_pb
from storyloom_model.identity.discovery import Discovered, discover
from storyloom_model.identity.features import FeaturesError, IdentityFeatures, ReferenceFeatures
from storyloom_server import errors
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.desk import Desk
from storyloom_server.discovery_wish import Wish, check_wish, in_request
from storyloom_server.orders import OrderTaker
from storyloom_server.reference_pictures import asked_references, digest
from storyloom_server.references import References
from storyloom_server.store import Features, NewCharacter
from storyloom_server.store.errors import NotFoundError
from storyloom_server.story_error import StoryError
from storyloom_server.tenants import Tenant


@dataclass(frozen=True, slots=True)
class _Found:
    """What a loop found. ``picture`` stands for the identity where one is needed, ``features`` are the identity."""

    evidence: pb.DiscoveryEvidence
    picture: bytes
    features: Features


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
        wish = check_wish(self._catalog, tenant, request)
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

    async def _discover(self, tenant: Tenant, wish: Wish) -> pb.DiscoverCharacterResponse:
        await self._check_encoders(wish.model.name)
        loops = [await self._loop(tenant, wish, 0, None)]
        for loop in range(1, wish.loops):
            loops.append(await self._loop(tenant, wish, loop, loops[-1]))
        notes = [note for each in loops for note in each.features.notes]
        if wish.loops > 1:
            notes = [f"loop {loop} of {wish.loops}: {note}" for loop, note in enumerate(notes, 1)]
        last = loops[-1]
        payload = pb.CreateCharacterRequest(
            name=wish.request.name,
            description=wish.request.description,
            reference_pictures=[story_pb2.Reference(picture=last.picture)],
        )
        new = NewCharacter(
            id=wish.character_id,
            tenant=tenant.name,
            name=wish.request.name,
            description=wish.request.description,
            payload=payload.SerializeToString(),
        )
        record = await self._characters.keep(new, replace(last.features, notes=tuple(notes)))
        earlier = [each.evidence for each in loops[:-1]]
        return pb.DiscoverCharacterResponse(character=record, evidence=last.evidence, earlier_loops=earlier)

    async def _loop(self, tenant: Tenant, wish: Wish, loop: int, before: _Found | None) -> _Found:
        """Makes candidates, with the identity of the loop before where there is one, and finds what they share."""
        story_id = await self._accept(tenant, wish, loop, before)
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
        picture = _marked(pictures[found.medoid], wish.mark(loop))
        features = Features(
            digest=digest(asked_references("candidates", [story_pb2.Reference(picture=picture)])),
            encoders=encoders,
            data=IdentityFeatures(encoders, (found.features,)).to_bytes(),
            notes=(_in_words(evidence, len(seen)),),
        )
        return _Found(evidence, picture, features)

    async def _check_encoders(self, model: str) -> None:
        await self._references.wait_for_engine()
        if self._references.encoding_model([model]) is None:
            raise errors.references_not_taken(model, [])

    async def _accept(self, tenant: Tenant, wish: Wish, loop: int, before: _Found | None) -> str:
        """The story of the candidates, new or the one that an earlier call with the same request id began."""
        request = stories_pb.CreateStoryRequest(
            story=wish.story(loop, None if before is None else before.picture),
            request_id=wish.request_id(loop),
            scheduling=stories_pb.Scheduling(priority=stories_pb.PRIORITY_LOW),
        )
        try:
            order = await self._orders.new_story(tenant, request)
            if before is not None:
                sources = tuple(replace(source, known=before.features) for source in order.sources)
                order = replace(order, sources=sources)
            return await self._desk.accept(tenant, order)
        except StoryError as error:
            if not error.violations:
                raise
            # What is wrong with one candidate is wrong with all.
            raise errors.invalid_request(list(dict.fromkeys(map(in_request, error.violations)))) from error

    async def _pictures(self, tenant: Tenant, story_id: str) -> Mapping[int, bytes]:
        """The candidates by frame, once all are there."""
        pictures = {}
        async for logged in self._desk.archive.events(story_id, tenant, 0):
            if logged.event.HasField("frame"):
                complete = await self._desk.archive.complete(logged)
                pictures[complete.frame.frame_index] = complete.frame.image.png
        return pictures

    async def _look(self, tenant: Tenant, model: str, picture: bytes) -> IdentityFeatures | None:
        """What a candidate shows; None where that is nobody."""
        asked = asked_references("candidates", [story_pb2.Reference(picture=picture)])
        try:
            found = await self._references.look(tenant.name, model, asked)
        except StoryError as error:
            if error.violations:
                return None
            raise
        return IdentityFeatures.from_bytes(found.data)


def _marked(picture: bytes, mark: str) -> bytes:
    """The picture with a mark in its file, so that the same picture in a request of its own is not taken for what was
    found.
    """
    marks, marked = PngInfo(), io.BytesIO()
    marks.add_text("storyloom-discovery", mark)
    Image.open(io.BytesIO(picture)).save(marked, format="PNG", pnginfo=marks)
    return marked.getvalue()


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
