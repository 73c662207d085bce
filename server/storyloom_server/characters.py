"""Characters that tenants keep, and use in stories by id."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import story_pb2
from storyloom_server import errors
from storyloom_server.pictures import PictureLimits, read_picture
from storyloom_server.store import Character, NewCharacter, Store, characters
from storyloom_server.store.errors import NotFoundError
from storyloom_server.tenants import Tenant
from storyloom_server.texts import MAX_TEXT, check_name, check_text
from storyloom_server.violations import Findings

_MAX_REFERENCES = 8


class Characters:
    """The kept characters of all tenants.

    Args:
        store: keeps them.
        limits: of reference pictures.
    """

    def __init__(self, store: Store, limits: PictureLimits) -> None:
        self._store = store
        self._limits = limits

    async def create(self, tenant: Tenant, request: pb.CreateCharacterRequest) -> pb.CharacterRecord:
        """Keeps a character.

        Raises:
            StoryError: everything that is wrong with it.
        """
        found = Findings()
        check_name(found, "name", request.name)
        check_text(found, "description", request.description, limit=MAX_TEXT)
        if not request.description.strip() and not request.references:
            found.add("description", "is empty, and there is no reference; give at least one of them")
        if len(request.references) > _MAX_REFERENCES:
            found.add("references", f"{len(request.references)} pictures; give at most {_MAX_REFERENCES}")
        else:
            await asyncio.to_thread(self._check_references, found, request.references)
        if found:
            raise errors.invalid_request(found.violations)
        new = NewCharacter(
            id=str(uuid.uuid4()),
            tenant=tenant.name,
            name=request.name,
            description=request.description,
            payload=request.SerializeToString(),
        )
        return await self._record(await self._store.write(characters.create, new))

    async def get(self, tenant: Tenant, character_id: str) -> pb.CharacterRecord:
        """A kept character. Raises ``NotFoundError``."""
        return await self._record(await self._store.read(characters.get, character_id, tenant.name))

    async def list(self, tenant: Tenant, size: int, token: str) -> tuple[Sequence[pb.CharacterRecord], str]:
        """A page of the tenant's characters, newest first, and the next page's token."""
        page = await self._store.read(characters.list_characters, tenant.name, size=size, token=token)
        return [await self._record(character) for character in page.items], page.next_token

    async def delete(self, tenant: Tenant, character_id: str) -> None:
        """Forgets a character. Raises ``NotFoundError``."""
        await self._store.write(characters.remove, character_id, tenant.name)

    async def fill_in(self, story: story_pb2.Story, tenant: Tenant) -> story_pb2.Story:
        """The story with the descriptions of its kept characters, whose ids it needs no more.

        Raises:
            StoryError: NOT_FOUND for a character that the tenant has not.
        """
        filled = story_pb2.Story()
        filled.CopyFrom(story)
        for character in filled.characters:
            if not character.character_id:
                continue
            try:
                kept = await self._store.read(characters.get, character.character_id, tenant.name)
            except NotFoundError as error:
                raise errors.not_found(
                    "character", character.character_id, "list the characters to see them"
                ) from error
            character.description = character.description or kept.description
            character.ClearField("character_id")
        return filled

    def _check_references(self, found: Findings, references: Sequence[bytes]) -> None:
        for index, reference in enumerate(references):
            read_picture(found, f"references[{index}]", reference, self._limits)

    async def _record(self, character: Character) -> pb.CharacterRecord:
        payload = await self._store.read(characters.payload, character.id, character.tenant)
        record = pb.CharacterRecord(
            character_id=character.id,
            name=character.name,
            description=character.description,
            references=len(pb.CreateCharacterRequest.FromString(payload).references),
        )
        record.create_time.FromNanoseconds(int(character.created_at * 1e9))
        return record
