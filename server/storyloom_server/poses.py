"""Poses of frames: checked against what the model can, and made into pictures that are kept and that the engine trusts.

As with references, the engine gets PNG files that were written here, from pixels that were read here. Unlike them, a
pose is kept with its story: no encoder says once for all what is in it.
"""

import asyncio
import io
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storyloom.v1 import story_pb2 as pb
from storyloom_model.controlnets.checks import MAX_STRENGTH
from storyloom_model.jobs import Control
from storyloom_model.prompts import ComposedPrompt
from storyloom_server.catalog import ModelCatalog, ServedModel
from storyloom_server.identities import WantedIdentity
from storyloom_server.pictures import PictureLimits, read_picture
from storyloom_server.safety import Safety
from storyloom_server.violations import Findings

# A frame has fewer; each frame of a long story may have a pose.
_MAX_MEGAPIXELS = 4.0
_READ_AT_ONCE = 2


class Poses:
    """Reads the pictures of poses.

    Args:
        catalog: the served models.
        limits: of pictures.
        safety: looks at them.
    """

    def __init__(self, catalog: ModelCatalog, limits: PictureLimits, safety: Safety) -> None:
        self._catalog = catalog
        self._limits = PictureLimits(limits.max_mib, min(limits.max_megapixels, _MAX_MEGAPIXELS))
        self._safety = safety
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)

    async def read(self, found: Findings, story: pb.Story, fresh: Collection[int]) -> None:
        """Checks pictures and puts PNG files of the frames' size in their place; counts only when nothing was found.

        Args:
            story: is changed.
            fresh: indexes of the frames that a client has sent; the others have been here before.

        Raises:
            StoryError: a safety check broke down.
        """
        model = self._catalog.find(story.settings.model) or self._catalog.default
        size = model.size_of(story.settings)
        if not model.controlnets or size not in model.manifest.sizes:
            return  # Which is told where the whole story is checked.
        indexes = [index for index in sorted(fresh) if index < model.manifest.limits.max_frames]
        asked = {f"story.frames[{index}].pose.picture": story.frames[index].pose for index in indexes}
        asked = {path: pose for path, pose in asked.items() if pose.picture}
        if not asked:
            return
        pictures = {path: pose.picture for path, pose in asked.items()}
        async with self._reading:
            read = await asyncio.to_thread(read_poses, found, pictures, size, self._limits, self._safety)
        for path, data in read.items():
            asked[path].picture = data


def read_poses(
    found: Findings, pictures: Mapping[str, bytes], size: tuple[int, int], limits: PictureLimits, safety: Safety
) -> dict[str, bytes]:
    """PNG files of a size, by the paths of the pictures that they are made of; the same picture is read once.

    It may take seconds; call it off the event loop, for few stories at a time.

    Raises:
        StoryError: a safety check broke down.
    """
    known: dict[bytes, bytes] = {}
    made: dict[str, bytes] = {}
    for path, data in pictures.items():
        if data not in known:
            picture = read_picture(found, path, data, limits)
            if picture is None:
                continue
            if safety.on and not (decision := safety.check_picture(picture, path, story_id="")).allowed:
                found.add(path, f"is refused here ({', '.join(decision.flags)}); send another picture")
                continue
            known[data] = _png(picture, size)
        made[path] = known[data]
    return made


def check_poses(
    found: Findings,
    story: pb.Story,
    model: ServedModel,
    catalog: ModelCatalog,
    prompts: Sequence[ComposedPrompt],
    wanted: Sequence[WantedIdentity],
    adapter: str,
) -> list[Control | None]:
    """What ControlNets are shown of each frame; the result counts only when nothing was found. Pure.

    Args:
        prompts: of the frames, as far as they are good.
        wanted: of the characters with references.
        adapter: the identity adapter in force.
    """
    controls = []
    for index, frame in enumerate(story.frames[: model.manifest.limits.max_frames]):
        path = f"story.frames[{index}].pose"
        control = _control(found, path, frame.pose, model, catalog) if frame.HasField("pose") else None
        controls.append(control)
        if control is None or found or model.manifest.controlnets[control.controlnet].kind == "pose":
            continue
        reads = model.manifest.controlnets[control.controlnet].adapter
        if adapter != reads:
            found.add(path, f"is for {control.controlnet}, which needs settings.identity_adapter {reads}; use that")
        elif not any(each.name in prompts[index].spans for each in wanted):
            found.add(path, f"is for {control.controlnet}, and no character of the frame has references; add some")
    return controls


def without_pictures(story: pb.Story) -> pb.Story:
    """The story as clients see it: without the pictures of poses."""
    shown = pb.Story()
    shown.CopyFrom(story)
    for frame in shown.frames:
        if frame.HasField("pose"):
            frame.pose.ClearField("picture")
    return shown


def _control(found: Findings, path: str, pose: pb.Pose, model: ServedModel, catalog: ModelCatalog) -> Control | None:
    if not model.controlnets:
        others = [other.name for other in catalog.models if other.controlnets]
        use = f"use {' or '.join(others)}" if others else "no model here does"
        found.add(path, f"{model.name} takes no poses; {use}, or leave it out")
        return None
    strength = pose.strength if pose.HasField("strength") else 1.0
    if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
        found.add(f"{path}.strength", f"{strength:g} is no strength; use 0 (none) to {MAX_STRENGTH:g}")
    if not pose.picture:
        found.add(f"{path}.picture", "is empty; send a PNG, JPEG or WebP file")
    name = pose.controlnet or next(iter(model.controlnets))
    if name not in model.controlnets:
        known = ", ".join(model.controlnets)
        found.add(f"{path}.controlnet", f"{model.name} has no such ControlNet; use one of {known}")
        return None
    return Control(name, pose.picture, strength)


def _png(pixels: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    image = Image.fromarray(pixels)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
