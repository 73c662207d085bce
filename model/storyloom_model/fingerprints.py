"""Short names of contents: of a model package on disk, and of a job. Loads without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

from storyloom_model.jobs import Control, Redenoising, StoryJob
from storyloom_model.package import MANIFEST_FILE, ModelPackage, components_in
from storyloom_model.prompts import ComposedPrompt

_BLOCK_BYTES = 1 << 16
_BLOCKS = 16
"""Blocks read of each file, evenly spread: files of up to 1 MiB in full, weights of gigabytes in milliseconds."""


def package_fingerprint(package: ModelPackage) -> str:
    """Names the contents of a package: every file's path and size, and blocks spread over each file.

    Encoders are left out: they have a fingerprint of their own, which features of references carry with them.

    Another training run changes every block of its weights; a few bytes changed by hand inside a large file may go
    unseen.
    """
    folder = package.folder
    files = [folder / MANIFEST_FILE, *(folder / file for file in package.weights_files)]
    controlnets = (one.folder for one in package.manifest.controlnets.values())
    for part in (*components_in(folder), *controlnets, *package.finder_paths):
        files += sorted(file for file in (folder / part).rglob("*") if file.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(json.dumps([file.relative_to(folder).as_posix(), file.stat().st_size]).encode())
        _add_blocks(digest, file)
    return digest.hexdigest()


def job_fingerprint(job: StoryJob) -> str:
    """Names a job: equal for jobs that are made alike, whichever process asks."""
    anchors = [[_prompt(anchor.prompt), anchor.seed, _digest(anchor.latents)] for anchor in job.anchors]
    identities = [
        [one.character, _digest(one.features), one.scale, one.keep, _digest(one.blend), one.blend_weight]
        for one in job.identities
    ]
    content = [
        [[_prompt(frame.prompt), frame.seed, *_control(frame.control)] for frame in job.frames],
        [job.negative_prompt, job.steps, job.guidance_scale, job.solver, job.width, job.height],
        [job.adapter, job.loras, job.cross_frame, job.method, anchors],
        [identities, job.identity_adapter if job.shows_references else None],
        None if job.redenoising is None else _redenoising(job.redenoising),
        *_more(job),
    ]
    if job.global_references is not None:  # Jobs without keep the names that they had before there were any.
        content.append([_digest(job.global_references.features), job.global_references.scale])
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _control(control: Control | None) -> list[Any]:
    """Nothing without one, so that jobs which have none keep the names that they had before there were any."""
    return [] if control is None else [control.controlnet, _digest(control.picture), control.scale]


def _more(job: StoryJob) -> list[Any]:
    """Nothing without them, for the same reason."""
    injection = ["feature_injection"] if job.feature_injection else []
    return injection if job.freeu is None else [*injection, ["freeu", *astuple(job.freeu)]]


def _redenoising(one: Redenoising) -> list[Any]:
    return [one.start, one.margin, one.growth, [[region.character, _prompt(region.prompt)] for region in one.regions]]


def _prompt(prompt: ComposedPrompt) -> list[Any]:
    return [prompt.text, [[name, list(places)] for name, places in prompt.spans.items()]]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()


def _add_blocks(digest: Any, file: Path) -> None:
    surplus = max(file.stat().st_size - _BLOCK_BYTES, 0)
    with file.open("rb") as content:
        for place in sorted({surplus * block // (_BLOCKS - 1) for block in range(_BLOCKS)}):
            content.seek(place)
            digest.update(content.read(_BLOCK_BYTES))
