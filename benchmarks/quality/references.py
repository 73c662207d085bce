"""How much of a person frames take over from one reference picture: `python -m benchmarks.quality.references`.

Held-out people, prompts that say no more than "a woman", and the attribute reader, which names what frames show of the
face and the hair. Beside the reference: the same prompts without one, and with everything in words. The reference's
face is cut out by its true landmarks, so that neither detector nor user has a part in the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.quality.attributes import Reading, read_as
from benchmarks.quality.generate import Pictures, make
from benchmarks.quality.network import WEIGHTS, Reader
from benchmarks.quality.stories import CHARACTER, BenchStory, bench_story
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.encoders.crops import aligned_face
from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.jobs import FrameJob, Identity, StoryJob
from storyloom_model.noise import frame_seed
from storyloom_model.prompts import ComposedPrompt
from storyloom_training.identity.adapters.crops import face_seen
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.storydb.captions import describe_fully
from storyloom_training.storydb.groups import Split, sample_group
from storyloom_training.storydb.picture import Picture, render
from storyloom_training.storydb.vocabulary import NOUN

ATTRIBUTES = ("skin", "hair style", "hair colour", "glasses", "facial hair")
"""What a face crop shows and generic prompts leave open."""
CONDITIONS = ("generic", "reference", "words")
RESULTS = Path("benchmarks/results/quality")


def reference_of(index: int, size: int) -> Picture:
    """A picture of story `index`'s person, in a frame that is in no story: the first close-up that shows the face.

    Raises:
        ValueError: there is none.
    """
    group = sample_group(Split.TEST, index, people=1, frames=20)
    for frame, record in enumerate(group.frames):
        if record.framing == "close-up":
            picture = render(group, frame, size)
            if face_seen(picture.people[0], size):
                return picture
    raise ValueError(f"story {index} has no close-up that shows the face; choose other stories")


def worded(story: BenchStory, condition: str) -> tuple[ComposedPrompt, ...]:
    """The story's prompts with another description of the person: a bare noun, or everything in words."""
    person = story.group.cast[0]
    noun = NOUN[person.age, person.gender][0]
    full = describe_fully(Random(f"references:{story.index}"), person, clothes=False).text  # noqa: S311
    text = full if condition == "words" else f"a {noun}"
    prompts = []
    for prompt in story.prompts:
        ((first, last),) = prompt.spans[CHARACTER]
        prompts.append(
            ComposedPrompt(prompt.text[:first] + text + prompt.text[last:], {CHARACTER: ((first, first + len(text)),)})
        )
    return tuple(prompts)


def job(story: BenchStory, condition: str, features: bytes, denoiser: Denoiser, adapter: str, steps: int) -> StoryJob:
    defaults, seed = denoiser.manifest.defaults, frame_seed(0, story.index)
    return StoryJob(
        frames=tuple(FrameJob(p, frame_seed(seed, i)) for i, p in enumerate(worded(story, condition))),
        negative_prompt="",
        steps=steps,
        guidance_scale=defaults.guidance_scale,
        solver=defaults.solver,
        width=defaults.width,
        height=defaults.height,
        adapter=defaults.adapter,
        identities=(Identity(CHARACTER, features),) if condition == "reference" else (),
        identity_adapter=adapter,
    )


def features_of(encoder: PackageEncoder, picture: Picture) -> bytes:
    crop = aligned_face(picture.image, np.array(picture.people[0].landmarks))[None]
    reference = ReferenceFeatures(face=encoder.faces(crop)[0], face_states=encoder.states(crop)[0])
    return IdentityFeatures(encoder.fingerprint, (reference,)).to_bytes()


def agreement(stories: Sequence[BenchStory], readings: list[list[Reading]], shift: int = 0) -> dict[str, float]:
    """Fraction of frames with each attribute as the person has it, or as the one `shift` stories on; and the mean."""
    people = [read_as(story.group.cast[0]) for story in stories]
    people = people[shift:] + people[:shift]
    found = {
        name: float(
            np.mean([one[name] == person[name] for person, row in zip(people, readings, strict=True) for one in row])
        )
        for name in ATTRIBUTES
    }
    return {name: round(value, 3) for name, value in (found | {"mean": float(np.mean(list(found.values())))}).items()}


def sheet(pictures: list[Pictures], references: list[Picture], file: Path, rows: int = 8) -> None:
    """A line a person: the reference, then the frames."""
    lines = [np.concatenate([ref.image, *made], axis=1) for ref, made in zip(references, pictures, strict=True)]
    Image.fromarray(np.concatenate(lines[:rows], axis=0)).save(file)


def main(
    package: Annotated[Path, typer.Option(help="Model package with encoders and identity adapter.")] = Path(
        "weights/storyloom-mini"
    ),
    adapter: Annotated[str, typer.Option(help="Identity adapter of the package.")] = "storynizor",
    people: Annotated[int, typer.Option(min=2, help="Held-out people, a story each.")] = 30,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a story.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    condition: Annotated[list[str] | None, typer.Option(help="One or more of the conditions; default all.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of references.json and the contact sheets.")] = RESULTS,
) -> None:
    """Measures and writes the figures; conditions that are left out keep what the folder has of them."""
    torch.set_num_threads(threads)
    denoiser, reader = Denoiser.load(package), Reader.load(WEIGHTS)
    encoder = PackageEncoder(package / "faces", package / "image_encoder")
    stories = [bench_story(index, frames) for index in range(people)]
    references = [reference_of(story.index, denoiser.manifest.defaults.width) for story in stories]
    features = [features_of(encoder, reference) for reference in references]
    file = output / f"references-{adapter}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    output.mkdir(parents=True, exist_ok=True)
    for name in condition or CONDITIONS:
        jobs = [
            job(*pair, denoiser, adapter, steps)
            for pair in ((s, name, f) for s, f in zip(stories, features, strict=True))
        ]
        pictures = list(track(make(denoiser, jobs, 2 * frames), name, total=len(jobs)))
        readings = [reader.read(made) for made in pictures]
        others = [agreement(stories, readings, shift)["mean"] for shift in range(1, people)]
        record[name] = agreement(stories, readings) | {"others": round(float(np.mean(others)), 3)}
        sheet(pictures, references, output / f"references-{adapter}-{name}.png")
    record |= {"people": people, "frames": frames, "steps": steps, "adapter": adapter}
    file.write_text(json.dumps(record, indent=1) + "\n")
    Console().print_json(data=record)


if __name__ == "__main__":
    typer.run(main)
