"""From references to features: those that the tenant has already, or new ones from the engine.

Nothing is stored here: features are kept with the story or the character that they are for, in its own transaction, and
found there by the digest of their pictures when the same pictures come again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from storyloom.v1 import character_service_pb2
from storyloom.v1 import story_pb2 as pb
from storyloom_model.identity.features import Reference
from storyloom_server import errors, messages
from storyloom_server.metrics import Metrics
from storyloom_server.pictures import PictureLimits
from storyloom_server.reference_calls import EngineGoneError
from storyloom_server.reference_pictures import (
    MAX_REFERENCES,
    AskedReference,
    asked_references,
    digest,
    read_references,
)
from storyloom_server.safety import Safety
from storyloom_server.store import Features, Store, StoryFeatures, characters, features
from storyloom_server.store.errors import NotFoundError
from storyloom_server.supervisor import EngineStatus, Supervisor
from storyloom_server.validate import StoryPlan
from storyloom_server.violations import Findings, Violation

# Large pictures take hundreds of MiB each while they are read.
_READ_AT_ONCE = 2
# For an engine that died to be there again; after that the caller is told to try later.
_RESTART_SECONDS = 60.0
# Engines that died while they encoded the same pictures. More would end the server.
_DEATHS_TO_GIVE_UP = 2
_REMEMBERED_DEATHS = 256


@dataclass(frozen=True, slots=True)
class Source:
    """Where the looks of a character of a story come from.

    Args:
        name: of the character; ``blended``: it is the other one, who is mixed in.
        asked: the pictures.
        character_id: of a kept character; "" for pictures of the request itself.
        path: of the field to blame for a kept character's pictures.
        read: the pictures as the engine takes them, where they have been read.
        known: what they stand for, whatever they show; it counts for the encoders that it is of.
    """

    name: str
    blended: bool
    asked: tuple[AskedReference, ...]
    character_id: str = ""
    path: str = ""
    read: tuple[Reference, ...] = ()
    known: Features | None = None


class References:
    """Has references checked and encoded.

    Args:
        store: where features may be that were encoded before.
        engine: encodes.
        metrics: counts.
        limits: of pictures.
        safety: looks at them.
    """

    def __init__(
        self, store: Store, engine: Supervisor, metrics: Metrics, limits: PictureLimits, safety: Safety
    ) -> None:
        self._store = store
        self._engine = engine
        self._metrics = metrics
        self._limits = limits
        self._safety = safety
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)
        self._deaths: OrderedDict[str, int] = OrderedDict()

    async def read(self, found: Findings, asked: Sequence[AskedReference]) -> tuple[Reference, ...]:
        """Checks pictures and makes them ready for the engine; the result counts only when nothing was found."""
        if not asked:
            return ()
        async with self._reading:
            return tuple(await asyncio.to_thread(read_references, found, asked, self._limits, self._safety))

    async def sources(
        self, found: Findings, characters: Sequence[pb.Character], tenant: str, *, first: int | None = None
    ) -> tuple[Source, ...]:
        """Where the looks of a story's characters come from, with the pictures of the request checked.

        Args:
            characters: of the story, as many as may be; of each, so many references as may be are looked at.
            first: index of the first character to look at, of a story that goes on from another; those before it are
                the other's. None for a new story.

        Raises:
            StoryError: NOT_FOUND for a kept character that the tenant has not.
        """
        gathered = []
        for index, character in enumerate(characters[first:]):
            path = f"story.characters[{index}]" if first is None else f"new_characters[{index}]"
            if character.references:
                asked = tuple(asked_references(f"{path}.references", character.references[:MAX_REFERENCES]))
                gathered.append(Source(character.name, False, asked, read=await self.read(found, asked)))
            elif character.character_id and (kept := await self._of_character(character.character_id, tenant)):
                gathered.append(Source(character.name, False, kept, character.character_id, f"{path}.character_id"))
            if character.identity.HasField("blend"):
                other, at = character.identity.blend.character_id, f"{path}.identity.blend.character_id"
                kept = await self._of_character(other, tenant)
                if not kept:
                    found.add(at, "has no references, so there is nothing to mix in; name another character")
                gathered.append(Source(character.name, True, kept, other, at))
        return tuple(gathered)

    async def features_of(
        self, tenant: str, plan: StoryPlan, sources: Sequence[Source], parent_id: str
    ) -> tuple[StoryFeatures, ...]:
        """What a story needs to know of its characters' looks.

        Args:
            sources: of the characters that it does not share with its parent.
            parent_id: the story that it goes on from; "" for none.

        Raises:
            StoryError: INVALID_STORY with every reference that is of no use, or the engine could not do it.
        """
        if not plan.wanted:
            return ()
        inherited = await self._store.read(features.of_story, parent_id) if parent_id else ()
        encoders = self._engine.encoders.get(plan.model)
        if any(each.features.encoders != encoders for each in inherited):
            raise errors.references_outdated(parent_id)
        encoded = await self._encode_all(tenant, plan.model, sources)
        violations = _missing(plan, sources, encoded)
        if violations:
            raise errors.invalid_story(violations)
        return (*inherited, *encoded)

    async def encode(
        self, tenant: str, model: str, asked: Sequence[AskedReference], read: Sequence[Reference] = ()
    ) -> Features:
        """Features of one character's references, from the store where they are.

        Raises:
            StoryError: INVALID_REQUEST with every reference that is of no use, or the engine could not do it.
        """
        try:
            return await self._features(tenant, model, asked, tuple(read))
        except _Unusable as unusable:
            raise errors.invalid_request(unusable.violations) from unusable

    async def look(self, tenant: str, model: str, asked: Sequence[AskedReference]) -> Features:
        """What pictures that were made here show; as ``encode``."""
        found = Findings()
        read = await self.read(found, asked)
        if found:
            raise errors.invalid_request(found.violations)
        return await self.encode(tenant, model, asked, read)

    def encoding_model(self, preferred: Sequence[str]) -> str | None:
        """The first of these models that takes references; None when no engine is there, or none does."""
        return next((model for model in preferred if model in self._engine.encoders), None)

    def fingerprints(self) -> frozenset[str]:
        """Of the encoders of all models."""
        return frozenset(self._engine.encoders.values())

    async def wait_for_engine(self) -> None:
        """Waits for an engine that takes work.

        Raises:
            StoryError: there is none for a long time.
        """
        try:
            async with asyncio.timeout(_RESTART_SECONDS):
                if await self._engine.wait_for(EngineStatus.READY) is EngineStatus.READY:
                    return
        except TimeoutError:
            pass
        raise errors.engine_restarting()

    async def _of_character(self, character_id: str, tenant: str) -> tuple[AskedReference, ...]:
        try:
            payload = await self._store.read(characters.payload, character_id, tenant)
        except NotFoundError as error:
            raise errors.not_found("character", character_id, "list the characters to see them") from error
        return tuple(kept_references(character_service_pb2.CreateCharacterRequest.FromString(payload)))

    async def _encode_all(self, tenant: str, model: str, sources: Sequence[Source]) -> tuple[StoryFeatures, ...]:
        done = await asyncio.gather(
            *(self._of_source(tenant, model, source) for source in sources), return_exceptions=True
        )
        violations = [each for result in done if isinstance(result, _Unusable) for each in result.violations]
        for result in done:
            if isinstance(result, BaseException) and not isinstance(result, _Unusable):
                raise result
        if violations:
            raise errors.invalid_story(violations)
        return tuple(result for result in done if isinstance(result, StoryFeatures))

    async def _of_source(self, tenant: str, model: str, source: Source) -> StoryFeatures:
        if source.known is not None and source.known.encoders == self._engine.encoders.get(model):
            return StoryFeatures(source.name, source.blended, source.known)
        try:
            found = await self._features(tenant, model, source.asked, source.read)
        except _Unusable as unusable:
            raise _Unusable(_at(source.path, unusable.violations)) from unusable
        if source.character_id:
            # For later stories, where this model's encoders were not those that the character was made with.
            with suppress(NotFoundError):
                await self._store.write(features.keep_with_character, source.character_id, tenant, found)
        return StoryFeatures(source.name, source.blended, found)

    async def _features(
        self, tenant: str, model: str, asked: Sequence[AskedReference], read: tuple[Reference, ...]
    ) -> Features:
        encoders = self._engine.encoders.get(model)
        if encoders is None:
            raise errors.references_not_taken(model, list(self._engine.encoders))
        pictures = digest(asked)
        known = await self._store.read(features.find, tenant, pictures, encoders)
        if known is not None:
            self._metrics.references_encoded("cached", len(asked))
            return known
        if not read:  # A kept character's, which have been checked before.
            found = Findings()
            read = await self.read(found, asked)
            if found:
                raise _Unusable(found.violations)
        answer = await self._ask(model, pictures, read)
        if answer.problems:
            self._metrics.references_encoded("refused", len(answer.problems))
            raise _Unusable([Violation(asked[index].path, problem) for index, problem in answer.problems])
        self._metrics.references_encoded("encoded", len(asked), answer.seconds)
        notes = tuple(f"reference {index + 1}: {note}" for index, note in answer.notes)
        return Features(pictures, answer.encoders, answer.features, notes)

    async def _ask(self, model: str, pictures: str, read: tuple[Reference, ...]) -> messages.ReferencesEncoded:
        """Has the engine encode pictures, through its restarts."""
        gives_up = time.monotonic() + _RESTART_SECONDS
        while True:
            deaths = self._deaths.get(pictures, 0)
            if deaths >= _DEATHS_TO_GIVE_UP:
                raise errors.references_crashed(deaths)
            await self.wait_for_engine()
            try:
                answer = await self._engine.encode_references(
                    messages.EncodeReferences(f"references-{uuid.uuid4()}", model, read)
                )
            except EngineGoneError as gone:
                if gone.suspect:
                    self._count_death(pictures)
                elif time.monotonic() > gives_up:
                    raise errors.engine_restarting() from gone
                continue
            if answer.error:
                raise errors.story_failed("ENGINE_ERROR", f"{answer.error} for these references; see the server's log")
            return answer

    def _count_death(self, pictures: str) -> None:
        self._deaths[pictures] = self._deaths.get(pictures, 0) + 1
        self._deaths.move_to_end(pictures)
        while len(self._deaths) > _REMEMBERED_DEATHS:
            self._deaths.popitem(last=False)


class _Unusable(Exception):  # noqa: N818 - not an error of the server's.
    """References that show nothing to go by, each with what is wrong."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(f"{len(violations)} references are of no use")
        self.violations = violations


def _missing(plan: StoryPlan, sources: Sequence[Source], encoded: Sequence[StoryFeatures]) -> list[Violation]:
    """What the story's identity adapter needs to see and no reference of a character shows."""
    wanted = {each.name: each for each in plan.wanted}
    violations = []
    for source, known in zip(sources, encoded, strict=True):
        missing = wanted[known.name].what_is_missing(known.features.data)
        if missing is not None:
            path = source.path or source.asked[0].path.rpartition("[")[0]
            violations.append(Violation(path, missing))
    return violations


def kept_references(request: character_service_pb2.CreateCharacterRequest) -> list[AskedReference]:
    """All references of a character, those in the short form first."""
    short = [pb.Reference(picture=picture) for picture in request.references]
    return [
        *asked_references("references", short),
        *asked_references("reference_pictures", request.reference_pictures),
    ]


def _at(path: str, violations: Sequence[Violation]) -> list[Violation]:
    """Violations of a kept character's pictures at the field that names the character."""
    if not path:
        return list(violations)
    return [Violation(path, f"its {violation.path} {violation.message}") for violation in violations]
