"""From a request to an order: what a story is to be, checked and complete, and on what terms.

Everything that is wrong with a request is found before anything is written or queued.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.manifest import NO_ADAPTER
from storyloom_server import errors
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.poses import Poses
from storyloom_server.references import References, Source
from storyloom_server.request_paths import in_extension, in_redone_frame
from storyloom_server.safety import Safety
from storyloom_server.scheduler import Priority
from storyloom_server.story_error import StoryError
from storyloom_server.tenants import Tenant
from storyloom_server.validate import StoryPlan, plan_story, random_seed
from storyloom_server.violations import Findings, Violation

_Request: TypeAlias = pb.GenerateStoryRequest | pb.CreateStoryRequest | pb.ExtendStoryRequest | pb.RedoFrameRequest

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,36}")
_PRIORITIES = {
    pb.PRIORITY_LOW: Priority.LOW,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
}


@dataclass(frozen=True, slots=True)
class Order:
    """A checked request.

    Args:
        plan: the story.
        digest: tells two requests with one ``request_id`` apart.
        request_id: "" for none.
        priority: among the tenant's stories.
        deadline_seconds: from acceptance; a story that is late is stopped.
        call_seconds: for how long the caller waits; a story that takes longer is not accepted.
        parent_id: the story whose frames are taken over.
        reused: indexes of the frames that are taken over, the same in both stories.
        prompt_flags: what the safety checks found in frames' texts and let through, by the frame's index.
        sources: where the looks of characters come from that the parent does not have.
    """

    plan: StoryPlan
    digest: str
    request_id: str = ""
    priority: Priority = Priority.NORMAL
    deadline_seconds: float | None = None
    call_seconds: float | None = None
    parent_id: str = ""
    reused: frozenset[int] = frozenset()
    prompt_flags: Mapping[int, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()


class OrderTaker:
    """Turns requests into orders.

    Args:
        catalog: the served models.
        characters: those that were made before.
        references: checks pictures of others.
        poses: checks pictures of poses.
        safety: looks at prompts.
    """

    def __init__(
        self, catalog: ModelCatalog, characters: Characters, references: References, poses: Poses, safety: Safety
    ) -> None:
        self._catalog = catalog
        self._characters = characters
        self._references = references
        self._poses = poses
        self._safety = safety

    async def new_story(
        self,
        tenant: Tenant,
        request: pb.GenerateStoryRequest | pb.CreateStoryRequest,
        call_seconds: float | None = None,
    ) -> Order:
        """A story from nothing.

        Raises:
            StoryError: INVALID_ARGUMENT with everything that is wrong, NOT_FOUND for a character, or a refusal by the
                safety check.
        """
        return await self._order(tenant, request.story, request, call_seconds=call_seconds)

    async def extension(self, tenant: Tenant, request: pb.ExtendStoryRequest, parent: pb.StoryRecord) -> Order:
        """More frames for ``parent``.

        Raises:
            StoryError: as ``new_story``, or FAILED_PRECONDITION if the parent is not finished.
        """
        _check_finished(parent)
        if not request.frames:
            raise errors.invalid_request([Violation("frames", "no frame to add; give at least one")])
        story = story_pb2.Story()
        story.CopyFrom(parent.story)
        story.characters.extend(request.new_characters)
        story.frames.extend(request.frames)
        frames, characters = len(parent.story.frames), len(parent.story.characters)
        reused = frozenset(range(frames))
        try:
            return await self._order(tenant, story, request, parent=parent, reused=reused, known_frames=reused)
        except StoryError as error:
            raise errors.relocated(error, lambda each: in_extension(each, frames, characters)) from error

    async def redone_frame(self, tenant: Tenant, request: pb.RedoFrameRequest, parent: pb.StoryRecord) -> Order:
        """One frame of ``parent`` again.

        Raises:
            StoryError: as ``extension``.
        """
        _check_finished(parent)
        count, index = len(parent.story.frames), request.frame_index
        if index >= count:
            raise errors.invalid_request(
                [Violation("frame_index", f"the story has {count} frames; use 0 to {count - 1}")]
            )
        story = story_pb2.Story()
        story.CopyFrom(parent.story)
        if request.HasField("frame"):
            story.frames[index].CopyFrom(request.frame)
        else:
            story.frames[index].ClearField("seed")
        if not story.frames[index].HasField("seed"):
            story.frames[index].seed = request.seed if request.HasField("seed") else random_seed()
        reused = frozenset(range(count)) - {index}
        sent = request.HasField("frame")
        known = reused if sent else reused | {index}
        try:
            return await self._order(tenant, story, request, parent=parent, reused=reused, known_frames=known)
        except StoryError as error:
            raise errors.relocated(error, lambda each: in_redone_frame(each, index, sent=sent)) from error

    async def _order(
        self,
        tenant: Tenant,
        story: story_pb2.Story,
        request: _Request,
        *,
        call_seconds: float | None = None,
        parent: pb.StoryRecord | None = None,
        reused: frozenset[int] = frozenset(),
        known_frames: frozenset[int] = frozenset(),
    ) -> Order:
        """``known_frames`` are as the parent has them."""
        found = Findings()
        _check_request_id(found, request.request_id)
        deadline_seconds = _deadline(found, request.scheduling)
        priority = _priority(found, request.scheduling, tenant)
        complete = await self._characters.fill_in(story, tenant)
        await self._poses.read(found, complete, set(range(len(story.frames))) - known_frames)
        plan = plan_story(complete, self._catalog)
        known = None if parent is None else len(parent.story.characters)
        sources = await self._sources(found, story, tenant, known)
        if not isinstance(plan, StoryPlan):
            raise errors.invalid_story([*plan, *found.violations])
        if found:
            raise errors.invalid_story(found.violations)
        prompt_flags = await asyncio.to_thread(self._prompt_flags, plan) if self._safety.on else {}
        return Order(
            plan=plan,
            digest=_digest(request),
            request_id=request.request_id,
            priority=priority,
            deadline_seconds=deadline_seconds,
            call_seconds=call_seconds,
            parent_id="" if parent is None else parent.story_id,
            reused=reused,
            prompt_flags=prompt_flags,
            sources=sources,
        )

    def _prompt_flags(self, plan: StoryPlan) -> Mapping[int, str]:
        """What is found in the texts of frames; the negative prompt is every frame's, and a region's that of the frames
        that show its character.
        """
        frames = {index: frame.prompt for index, frame in enumerate(plan.job.frames)}
        regions = () if plan.job.redenoising is None else plan.job.redenoising.regions
        places = {character.name: index for index, character in enumerate(plan.story.characters)}
        of_regions = {
            one.character: f"story.characters[{places[one.character]}].identity.region_prompt" for one in regions
        }
        texts = {f"story.frames[{index}].prompt": prompt.text for index, prompt in frames.items()}
        texts |= {of_regions[one.character]: one.prompt.text for one in regions}
        negative = "story.negative_prompt"
        found = self._safety.check_prompts({**texts, negative: plan.job.negative_prompt}, story_id="")
        flags: dict[int, str] = {}
        for index, prompt in frames.items():
            paths = [f"story.frames[{index}].prompt", negative]
            paths += [path for name, path in of_regions.items() if name in prompt.spans]
            flags[index] = ", ".join(dict.fromkeys(flag for path in paths for flag in found[path]))
        return {index: flag for index, flag in flags.items() if flag}

    async def _sources(
        self, found: Findings, story: story_pb2.Story, tenant: Tenant, known: int | None
    ) -> tuple[Source, ...]:
        """Where the looks come from of all characters but the first ``known``, which a parent has."""
        model = self._catalog.find(story.settings.model) or self._catalog.default
        if not model.identity_adapters or story.settings.identity_adapter == NO_ADAPTER:
            return ()
        characters = story.characters[: model.manifest.limits.max_characters]
        return await self._references.sources(found, characters, tenant.name, first=known)


def _check_request_id(found: Findings, request_id: str) -> None:
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        found.add("request_id", "use at most 36 letters, digits, dots, dashes and underscores, such as a UUID")


def _check_finished(parent: pb.StoryRecord) -> None:
    if parent.state != pb.STORY_STATE_FINISHED:
        state = pb.StoryState.Name(parent.state).removeprefix("STORY_STATE_").lower()
        raise errors.story_not_finished(parent.story_id, state)


def _deadline(found: Findings, scheduling: pb.Scheduling) -> float | None:
    if not scheduling.HasField("deadline"):
        return None
    seconds = scheduling.deadline.seconds + scheduling.deadline.nanos / 1e9
    if seconds <= 0:
        found.add("scheduling.deadline", f"{seconds:g} s from now is past; give a time above 0, or none")
    return seconds


def _priority(found: Findings, scheduling: pb.Scheduling, tenant: Tenant) -> Priority:
    if scheduling.priority == pb.PRIORITY_UNSPECIFIED:
        return min(Priority.NORMAL, tenant.max_priority)
    priority = _PRIORITIES.get(scheduling.priority)
    if priority is None:
        known = ", ".join(pb.Priority.Name(number) for number in _PRIORITIES)
        found.add("scheduling.priority", f"priority {int(scheduling.priority)} is unknown; use one of {known}")
        return Priority.NORMAL
    return priority


def _digest(request: _Request) -> str:
    """The same for the same content, whatever the ``request_id`` and whichever call brings it."""
    content: _Request = type(request).FromString(request.SerializeToString())
    content.ClearField("request_id")
    if isinstance(content, pb.GenerateStoryRequest):
        # The two have the same fields with the same numbers, but for what happens to the stream.
        content.ClearField("on_disconnect")
        content = pb.CreateStoryRequest.FromString(content.SerializeToString())
    data = content.SerializeToString(deterministic=True)
    return hashlib.sha256(content.DESCRIPTOR.full_name.encode() + b"\0" + data).hexdigest()
