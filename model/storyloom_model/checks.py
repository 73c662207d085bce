"""Whether a model package fits its modules, and can make a story as asked for. Plain values: nothing is computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import cast

from storyloom_model.controlnets.checks import check_controls
from storyloom_model.jobs import GlobalReferences, Identity, JobError, Redenoising, StoryJob
from storyloom_model.manifest import KEEPS, MAX_FREEU, Manifest
from storyloom_model.methods.names import INJECTS, METHODS, MethodName
from storyloom_model.methods.rounds import ADAPTERS
from storyloom_model.package import PackageError
from storyloom_model.redenoising.plan import MAX_DILATION
from storyloom_model.solvers import SOLVERS

MAX_SCALE = 2.0
"""Of a character's identity."""
MAX_LORA_WEIGHT = 2.0
"""Of a LoRA, either way."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a loaded package can do beside its manifest. ``runtime`` is what computes."""

    manifest: Manifest
    runtime: str
    identity_adapters: Collection[str]
    loras: Collection[str]
    methods: Collection[str]
    controlnets: Collection[str] = ()
    freeu: bool = True


def method_name(job: StoryJob, manifest: Manifest) -> MethodName:
    """The story method of a job that ``check_job`` lets through: its own, or the package's."""
    return cast(MethodName, job.method or manifest.method)


def check_sizes(manifest: Manifest, factor: int, tokens: int) -> None:
    """Refuses a package whose limits do not fit its modules.

    Args:
        manifest: of the package.
        factor: pixels of a latent position of its VAE.
        tokens: what its text encoder reads.

    Raises:
        PackageError: as said.
    """
    if manifest.limits.max_prompt_tokens > tokens:
        raise PackageError(f"the text encoder reads {tokens} tokens; lower limits.max_prompt_tokens to that")
    if any(pixels % factor for size in manifest.sizes for pixels in size):
        raise PackageError(f"every width and height in sizes must be a multiple of {factor}, the VAE's factor")


def check_job(job: StoryJob, can: Abilities, latent_values: int) -> None:
    """Refuses what cannot be made.

    Args:
        job: as asked for.
        can: what the package can do.
        latent_values: numbers in the latents of one frame of the job's size.

    Raises:
        JobError: the job asks for what the package cannot do.
    """
    manifest = can.manifest
    if not job.frames:
        raise JobError("the story has no frames; add one")
    if Manifest.adapter_key(job.adapter) not in (None, *manifest.adapters):
        known = ", ".join((*manifest.adapters, "none"))
        raise JobError(f"{manifest.name} has no adapter called {job.adapter}; use one of {known}")
    _check_method(method_name(job, manifest), can)
    _check_injection(job, manifest)
    _check_freeu(job, can)
    if job.solver not in SOLVERS:
        raise JobError(f"unknown solver {job.solver}; use one of {', '.join(SOLVERS)}")
    if not 1 <= job.steps <= manifest.limits.max_steps:
        raise JobError(f"{job.steps} steps; {manifest.name} takes 1 to {manifest.limits.max_steps}")
    if (job.width, job.height) not in manifest.sizes:
        sizes = ", ".join(f"{width}x{height}" for width, height in manifest.sizes)
        raise JobError(f"size {job.width}x{job.height} is not served; use one of {sizes}")
    _check_anchors(job, manifest, 4 * latent_values)
    _check_loras(job, can)
    if job.shows_references:
        _check_identity_adapter(job, can)
        _check_identities(job, manifest)
    if job.global_references is not None:
        _check_global_references(job, job.global_references, manifest)
    for name in dict.fromkeys(frame.control.controlnet for frame in job.frames if frame.control is not None):
        if name not in can.controlnets:
            raise JobError(_unknown("ControlNet", name, can, can.controlnets, manifest.controlnets))
    check_controls(job, manifest)
    if job.redenoising is not None:
        _check_redenoising(job, job.redenoising)


def _check_method(name: str, can: Abilities) -> None:
    if name not in METHODS:
        raise JobError(f"there is no story method {name}; use one of {', '.join(METHODS)}")
    if name not in can.methods:
        raise JobError(
            f"the backend {can.runtime} runs story method {', '.join(can.methods)} alone; use it in place of {name}, "
            f"or serve {can.manifest.name} with torch"
        )


def _check_injection(job: StoryJob, manifest: Manifest) -> None:
    name = method_name(job, manifest)
    if job.feature_injection and name not in INJECTS:
        raise JobError(
            f"feature injection is of story method {', '.join(INJECTS)}; use it in place of {name}, or go without"
        )


def _check_freeu(job: StoryJob, can: Abilities) -> None:
    if job.freeu is None:
        return
    if not can.freeu:
        raise JobError(f"the backend {can.runtime} has no FreeU; go without, or serve {can.manifest.name} with torch")
    for name, value in asdict(job.freeu).items():
        if not 0 <= value <= MAX_FREEU:
            raise JobError(f"FreeU has {name} {value}; use 0 to {MAX_FREEU:g}")


def _check_anchors(job: StoryJob, manifest: Manifest, expected: int) -> None:
    for anchor in job.anchors:
        if len(anchor.latents) != expected:
            raise JobError(
                f"an anchor has latents of {len(anchor.latents)} bytes, a frame of this story {expected}; anchors "
                f"must be frames of {job.width}x{job.height} made with {manifest.name}"
            )


def _check_loras(job: StoryJob, can: Abilities) -> None:
    names = [name for name, _ in job.loras]
    for name, weight in job.loras:
        if name not in can.loras:
            raise JobError(_unknown("LoRA", name, can, can.loras, can.manifest.loras))
        if not abs(weight) <= MAX_LORA_WEIGHT:
            raise JobError(f"LoRA {name} has weight {weight}; use one from {-MAX_LORA_WEIGHT} to {MAX_LORA_WEIGHT}")
        if names.count(name) > 1:
            raise JobError(f"LoRA {name} is named {names.count(name)} times; name it once, with the sum of its weights")


def _check_identity_adapter(job: StoryJob, can: Abilities) -> None:
    name = Manifest.adapter_key(job.identity_adapter)
    if name is None:
        who = ", ".join(one.character for one in job.identities) or "the frames"
        known = f"use one of {', '.join(can.identity_adapters)}, or " if can.identity_adapters else ""
        raise JobError(f"{who} have references, but no identity adapter is named; {known}leave the references out")
    if name not in can.identity_adapters:
        raise JobError(_unknown("identity adapter", name, can, can.identity_adapters, can.manifest.identity_adapters))


def _check_identities(job: StoryJob, manifest: Manifest) -> None:
    name = str(job.identity_adapter)
    keeps = manifest.identity_adapters[name].keeps
    seen: set[str] = set()
    for one in job.identities:
        if one.character not in job.characters:
            raise JobError(f"{one.character} has references but is in no frame; leave them out or name it in a prompt")
        if one.character in seen:
            raise JobError(f"{one.character} has identities twice; put all its references into one")
        seen.add(one.character)
        unknown = [part for part in one.keep if part not in KEEPS]
        if unknown:
            raise JobError(f"{one.character} is to keep {unknown[0]}; what can be kept is {', '.join(KEEPS)}")
        if one.keep and not set(one.keep) & set(keeps):
            raise JobError(
                f"{one.character} is to keep {', '.join(one.keep)}, and identity adapter {name} takes only "
                f"{', '.join(keeps)} from references; name one of these, or use another adapter"
            )
        _check_amounts(one)


def _check_global_references(job: StoryJob, asked: GlobalReferences, manifest: Manifest) -> None:
    name = str(job.identity_adapter)
    if manifest.identity_adapters[name].method not in ADAPTERS:
        raise JobError(
            f"identity adapter {name} takes characters, not whole pictures; name one of the form "
            f"{' or '.join(ADAPTERS)}"
        )
    if not 0 <= asked.scale <= MAX_SCALE:
        raise JobError(f"the pictures of the round before have scale {asked.scale}; use one from 0 to {MAX_SCALE}")
    if job.redenoising is not None:
        raise JobError("a story made in rounds takes no second pass; leave re-denoising out, or use another method")


def _check_redenoising(job: StoryJob, asked: Redenoising) -> None:
    identities, regions = [one.character for one in job.identities], [region.character for region in asked.regions]
    if not identities:
        raise JobError(
            "re-denoising gives characters with references their faces, and none has any; add some, or leave it out"
        )
    if sorted(regions) != sorted(identities):
        raise JobError(
            f"re-denoising has regions for {', '.join(regions) or 'nobody'}, and {', '.join(identities)} have "
            "references; give each of these one region"
        )
    for region in asked.regions:
        if region.character not in region.prompt.spans:
            raise JobError(f"the region prompt of {region.character} does not name the character; write it into it")
    if not 0 <= asked.start < job.steps:
        raise JobError(f"re-denoising starts at step {asked.start} of {job.steps}; use 0 to {job.steps - 1}")
    for name, pixels in (("margin", asked.margin), ("growth", asked.growth)):
        if not 0 <= pixels <= MAX_DILATION:
            raise JobError(f"re-denoising has a mask {name} of {pixels} pixels; use 0 to {MAX_DILATION}")


def _check_amounts(one: Identity) -> None:
    if not 0 <= one.scale <= MAX_SCALE:
        raise JobError(f"{one.character} has identity scale {one.scale}; use one from 0 to {MAX_SCALE}")
    if not 0 <= one.blend_weight <= 1:
        raise JobError(f"{one.character} has blend weight {one.blend_weight}; use one from 0 to 1")
    if one.blend_weight > 0 and not one.blend:
        raise JobError(
            f"{one.character} has blend weight {one.blend_weight} but nobody to blend with; name a character"
        )


def _unknown(kind: str, name: str, can: Abilities, known: Collection[str], listed: Collection[str]) -> str:
    if name in listed:
        return (
            f"the backend {can.runtime} cannot run {kind} {name}; leave it out, or serve {can.manifest.name} with torch"
        )
    choices = f"use one of {', '.join(known)}" if known else "it has none: leave it out"
    return f"{can.manifest.name} has no {kind} called {name}; {choices}"
