"""What a request for a discovery asks for: checked, complete, and as the stories of its candidates. Pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from storyloom.v1 import character_service_pb2 as pb
from storyloom.v1 import story_pb2
from storyloom_model.identity.discovery import LEAST_CANDIDATES
from storyloom_model.manifest import NO_ADAPTER
from storyloom_model.noise import frame_seed
from storyloom_server import errors
from storyloom_server.catalog import ModelCatalog, ServedModel
from storyloom_server.tenants import Tenant
from storyloom_server.texts import MAX_TEXT, check_name, check_text
from storyloom_server.violations import Findings, Violation

_CANDIDATES, _MOST_CANDIDATES = 16, 64
_ROUNDS, _MOST_ROUNDS = 3, 8
_LOOPS, _MOST_LOOPS = 1, 4
_NAMESPACE = uuid.UUID("5d0a2c86-7a53-4f0e-9d3b-0f6f3f3b8a11")
"""For the id of a character that was asked for with a request id: the same request gives the same id."""
_FIELDS = {
    "story.style": "style",
    "story.negative_prompt": "negative_prompt",
    # What was found shows too little for the identity adapter that is to make more of it.
    "story.characters[0].references": "loops",
    "story.characters": "description",
    "story.frames": "description",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked request. ``character_id`` is that of the character to be. ``adapter`` is the identity adapter that
    makes the candidates of all loops but the first.
    """

    character_id: str
    request: pb.DiscoverCharacterRequest
    model: ServedModel
    candidates: int
    rounds: int
    loops: int
    adapter: str

    def request_id(self, loop: int) -> str:
        """Of the candidates' story in a loop, counted from 0; follows from the character's id."""
        return self.character_id if loop == 0 else str(uuid.uuid5(_NAMESPACE, f"{self.character_id}\0{loop}"))

    def mark(self, loop: int) -> str:
        """What the picture is marked with that stands for the identity of a loop."""
        return self.character_id if loop == self.loops - 1 else f"{self.character_id}.{loop}"

    def story(self, loop: int, picture: bytes | None = None) -> story_pb2.Story:
        """The candidates of a loop: the character on its own, again and again.

        Args:
            loop: counted from 0.
            picture: stands for the identity that the loop before has found.
        """
        request = self.request
        references = [] if picture is None else [story_pb2.Reference(picture=picture)]
        who = story_pb2.Character(name=request.name, description=request.description, references=references)
        return story_pb2.Story(
            title=f"Candidates of {request.name}",
            style=request.style,
            negative_prompt=self._negative_prompt,
            characters=[who],
            frames=[story_pb2.Frame(prompt=f"{{{request.name}}}")] * self.candidates,
            settings=self._settings(loop),
        )

    @property
    def _negative_prompt(self) -> str:
        asked = self.request
        default = self.model.manifest.discovery.negative_prompt
        return asked.negative_prompt if asked.HasField("negative_prompt") else default

    def _settings(self, loop: int) -> story_pb2.Settings:
        settings = self.model.candidate_settings()
        settings.MergeFrom(self.request.settings)
        settings.model = self.model.name
        settings.consistency.enabled = False
        settings.identity_adapter = NO_ADAPTER if loop == 0 else self.adapter
        if self.request.HasField("seed"):
            # Each loop has other noise, or it would find its first pictures again.
            seed = self.request.seed
            settings.seed = seed if loop == 0 else frame_seed(seed, _MOST_CANDIDATES + loop)
        return settings


def check_wish(catalog: ModelCatalog, tenant: Tenant, request: pb.DiscoverCharacterRequest) -> Wish:
    """Checks a request as far as it is not that of the candidates' story, which is checked when it is made.

    Raises:
        StoryError: everything that is wrong with it.
    """
    found = Findings()
    check_name(found, "name", request.name)
    check_text(found, "description", request.description, limit=MAX_TEXT, required=True)
    able = [model for model in catalog.models if model.identity_adapters]
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
    loops = request.loops or _LOOPS
    if loops > _MOST_LOOPS:
        found.add("loops", f"{loops} loops; ask for 1 to {_MOST_LOOPS}")
    _check_settings(found, request.settings)
    adapter = "" if model is None else _adapter(found, request.settings.identity_adapter, model, loops)
    if found or model is None:
        raise errors.invalid_request(found.violations)
    name = f"{tenant.name}\0{request.request_id}"
    character_id = uuid.uuid5(_NAMESPACE, name) if request.request_id else uuid.uuid4()
    return Wish(str(character_id), request, model, candidates, rounds, loops, adapter)


def in_request(violation: Violation) -> Violation:
    """What is wrong with the story of the candidates, where the request says it."""
    for path, name in _FIELDS.items():
        if violation.path.startswith(path):
            return Violation(name, violation.message)
    return Violation(violation.path.removeprefix("story."), violation.message)


def _check_settings(found: Findings, asked: story_pb2.Settings) -> None:
    """Notes settings that mean nothing for candidates, or are fields of the request."""
    redenoising = asked.redenoising
    said = {
        "model": (bool(asked.model), "name the model beside the settings"),
        "seed": (asked.HasField("seed"), "say the seed beside the settings"),
        "consistency": (asked.consistency.enabled, "candidates know nothing of each other; leave it out"),
        "redenoising": (
            asked.HasField("redenoising") and (redenoising.enabled or not redenoising.HasField("enabled")),
            "candidates are made in one pass; leave it out",
        ),
        "preview_interval": (bool(asked.preview_interval), "nobody watches candidates; leave it out"),
    }
    for name, (is_said, instead) in said.items():
        if is_said:
            found.add(f"settings.{name}", f"is not for candidates: {instead}")


def _adapter(found: Findings, asked: str, model: ServedModel, loops: int) -> str:
    """The identity adapter of later loops."""
    known = tuple(model.identity_adapters)
    default = model.default_identity_adapter
    adapter = asked or (known[0] if default == NO_ADAPTER else default)
    if adapter not in known and (loops > 1 or adapter != NO_ADAPTER):
        found.add(
            "settings.identity_adapter",
            f"must be one of {', '.join(known)}: it makes the candidates of all loops but the first",
        )
    return adapter
