"""``storyloom.v1.CharacterService``."""

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import character_service_pb2_grpc
from storyloom_server.authentication import current_tenant
from storyloom_server.characters import Characters
from storyloom_server.discovery import Discoveries
from storyloom_server.services.calls import Context, answered, page_size


class CharacterService(character_service_pb2_grpc.CharacterServiceServicer):
    """Characters, kept for later stories.

    Args:
        characters: keeps them.
        discoveries: finds them.
    """

    def __init__(self, characters: Characters, discoveries: Discoveries) -> None:
        self._characters = characters
        self._discoveries = discoveries

    @answered
    async def CreateCharacter(  # noqa: N802
        self, request: pb.CreateCharacterRequest, context: Context
    ) -> pb.CreateCharacterResponse:
        """Keeps a character."""
        tenant = current_tenant()
        return pb.CreateCharacterResponse(character=await self._characters.create(tenant, request))

    @answered
    async def GetCharacter(  # noqa: N802
        self, request: pb.GetCharacterRequest, context: Context
    ) -> pb.GetCharacterResponse:
        """A kept character."""
        tenant = current_tenant()
        return pb.GetCharacterResponse(character=await self._characters.get(tenant, request.character_id))

    @answered
    async def ListCharacters(  # noqa: N802
        self, request: pb.ListCharactersRequest, context: Context
    ) -> pb.ListCharactersResponse:
        """The tenant's characters, newest first."""
        tenant = current_tenant()
        kept, token = await self._characters.list(tenant, page_size(request.page_size), request.page_token)
        return pb.ListCharactersResponse(characters=kept, next_page_token=token)

    @answered
    async def DeleteCharacter(  # noqa: N802
        self, request: pb.DeleteCharacterRequest, context: Context
    ) -> pb.DeleteCharacterResponse:
        """Forgets a character."""
        tenant = current_tenant()
        await self._characters.delete(tenant, request.character_id)
        return pb.DeleteCharacterResponse()

    @answered
    async def DiscoverCharacter(  # noqa: N802
        self, request: pb.DiscoverCharacterRequest, context: Context
    ) -> pb.DiscoverCharacterResponse:
        """Finds a character from its description."""
        return await self._discoveries.discover(current_tenant(), request)
