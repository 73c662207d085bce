"""Makes the stories of the cases in each setting, and keeps them on disk so that a run can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.identity.cases import IdentityCase, png
from benchmarks.identity.settings import Setting
from benchmarks.quality.generate import Pictures, PictureStore, make
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.encoders.references import ReferenceEncoder
from storyloom_model.identity.features import Reference
from storyloom_model.jobs import FrameJob, Identity, StoryJob
from storyloom_model.noise import frame_seed
from storyloom_model.package import MANIFEST_FILE, ModelPackage


def features(encoder: ReferenceEncoder, case: IdentityCase) -> list[bytes]:
    """What the package's encoders say of each character's reference, as they would of a user's picture.

    Raises:
        ReferenceProblem: they find nobody in it.
    """
    return [encoder.encode([Reference(png(picture.image))])[0].to_bytes() for picture in case.references]


def model_digest(package: ModelPackage) -> str:
    """Of all files of a package but its identity adapters, its manifest and texts for people."""
    adapters = {package.folder / one.file for one in package.manifest.identity_adapters.values()}
    digest = hashlib.sha256()
    for file in sorted(path for path in package.folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        if file not in adapters and file.name != MANIFEST_FILE:
            digest.update(f"{file.relative_to(package.folder).as_posix()}\0{_digest(file)}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Maker:
    """Makes stories, or finds them in ``folder``, where an earlier run with the same weights left them.

    ``model`` is the digest of the package; ``adapters`` are the files of identity adapters by name.
    """

    denoiser: Denoiser
    model: str
    adapters: dict[str, Path]
    folder: Path
    dtype: str
    steps: int
    seed: int

    def stories(
        self, setting: Setting, cases: Sequence[IdentityCase], known: Sequence[list[bytes]]
    ) -> Iterator[Pictures]:
        """The pictures of each case; ``known`` is what the encoders say of its references."""
        adapter = "" if setting.adapter is None else _digest(self.adapters[setting.adapter])
        store = PictureStore(self.folder, self.model + adapter, self.dtype)
        for case, of in zip(cases, known, strict=True):
            job = self.job(case, setting, of)
            pictures = store.get(job)
            if pictures is None:
                (pictures,) = make(self.denoiser, [job], job.rows)
                store.put(job, pictures)
            yield pictures

    def job(self, case: IdentityCase, setting: Setting, known: list[bytes]) -> StoryJob:
        """One case in one setting; a frame's noise is the same in all settings."""
        defaults = self.denoiser.manifest.defaults
        story_seed = frame_seed(self.seed, case.group.index)
        prompts = case.described if setting.described else case.generic
        identities = tuple(Identity(name, of) for name, of in zip(case.names, known, strict=True))
        return StoryJob(
            frames=tuple(FrameJob(prompt, frame_seed(story_seed, place)) for place, prompt in enumerate(prompts)),
            negative_prompt="",
            steps=self.steps,
            guidance_scale=defaults.guidance_scale,
            solver=defaults.solver,
            width=defaults.width,
            height=defaults.height,
            adapter=defaults.adapter,
            identities=identities if setting.adapter is not None else (),
            identity_adapter=setting.adapter,
        )


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
