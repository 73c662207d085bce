"""Characters that tenants keep, and use in stories by id."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import story_pb2
from storyloom_server import errors
from storyloom_server.catalog import ModelCatalog
from storyloom_server.reference_pictures import MAX_REFERENCES
from storyloom_server.references import References, kept_references
from storyloom_server.store import Character, Features, NewCharacter, Store, Transaction, characters, features
from storyloom_server.store.errors import NotFoundError
from storyloom_server.tenants import Tenant
from storyloom_server.texts import MAX_TEXT, check_name, check_text
from storyloom_server.violations import Findings


class Characters:
    """The kept characters of all tenants.

    Args:
        store: keeps them.
        catalog: the served models; references are encoded for the first of them that takes some.
        references: has them encoded.
    """

    def __init__(self, store: Store, catalog: ModelCatalog, references: References) -> None:
        self._store = store
        self._catalog = catalog
        self._references = references

    async def create(self, tenant: Tenant, request: pb.CreateCharacterRequest) -> pb.CharacterRecord:
        """Keeps a character, with its references encoded where a model takes some.

        Raises:
            StoryError: everything that is wrong with it, or there is no engine to encode references.
        """
        found = Findings()
        check_name(found, "name", request.name)
        check_text(found, "description", request.description, limit=MAX_TEXT)
        asked = kept_references(request)
        if not request.description.strip() and not asked:
            found.add("description", "is empty, and there is no reference; give at least one of them")
        if len(asked) > MAX_REFERENCES:
            found.add(asked[MAX_REFERENCES].path, f"is one of {len(asked)} pictures; give at most {MAX_REFERENCES}")
            asked = []
        read = await self._references.read(found, asked)
        if found:
            raise errors.invalid_request(found.violations)
        encoded = None
        if asked and any(model.identity_adapters for model in self._catalog.models):
            await self._references.wait_for_engine()
            if (model := self._references.encoding_model(self._catalog.names)) is not None:
                encoded = await self._references.encode(tenant.name, model, asked, read)
        new = NewCharacter(
            id=str(uuid.uuid4()),
            tenant=tenant.name,
            name=request.name,
            description=request.description,
            payload=request.SerializeToString(),
        )
        return await self.keep(new, encoded)

    async def keep(self, new: NewCharacter, encoded: Features | None) -> pb.CharacterRecord:
        """Keeps a character that was checked, with what its references show."""
        return await self._record(await self._store.write(_create, new, encoded))

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
        """The story with the descriptions of its kept characters, whose ids it needs no more. Their references are in
        it as in a record: without pictures.

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
                payload = await self._store.read(characters.payload, character.character_id, tenant.name)
            except NotFoundError as error:
                raise errors.not_found(
                    "character", character.character_id, "list the characters to see them"
                ) from error
            character.description = character.description or kept.description
            character.ClearField("character_id")
            if not character.references:
                for asked in kept_references(pb.CreateCharacterRequest.FromString(payload)):
                    character.references.add(role=asked.reference.role)
        return filled

    async def _record(self, character: Character) -> pb.CharacterRecord:
        payload = await self._store.read(characters.payload, character.id, character.tenant)
        encoded = await self._store.read(features.of_character, character.id)
        served = self._references.fingerprints()
        record = pb.CharacterRecord(
            character_id=character.id,
            name=character.name,
            description=character.description,
            references=len(kept_references(pb.CreateCharacterRequest.FromString(payload))),
            reference_notes=next(iter(encoded.values()), ()),
            references_encoded=any(encoders in served for encoders in encoded),
        )
        record.create_time.FromNanoseconds(int(character.created_at * 1e9))
        return record


def _create(transaction: Transaction, new: NewCharacter, encoded: Features | None) -> Character:
    """Keeps a character together with what its references show."""
    character = characters.create(transaction, new)
    if encoded is not None:
        features.keep_with_character(transaction, new.id, new.tenant, encoded)
    return character
