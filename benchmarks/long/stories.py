"""The long stories: one held-out person in as many scenes and actions as there are frames."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from benchmarks.stories.held_out import held_out_stories
from benchmarks.stories.stories import BenchmarkStory
from storyloom import Frame
from storyloom_training.storydb import vocabulary as words

BLOCK = len(words.SCENES)
"""Frames of a block. Each has every scene once and every framing as often, so that blocks differ by nothing else."""

FRAMINGS = ("portrait", "close-up", "portrait", "full body")
MOST_FRAMES = BLOCK * len(words.ACTIONS)
"""So many frames differ in scene or action."""

PEOPLE = (8, 1, 5, 0, 2, 3, 4, 6, 7, 9, 10, 11)
"""Held-out people by their numbers. First come some in whose pictures the detector finds faces: those that the built-in
model draws of the darkest skins (0, 6) have too little contrast for it, and say nothing of identities."""


def long_stories(count: int, frames: int) -> list[BenchmarkStory]:
    """The first `count` stories: a described person of no training set, with a reference picture.

    Raises:
        ValueError: more frames than there are scenes and actions, or more stories than people.
    """
    if not 1 <= count <= len(PEOPLE):
        raise ValueError(f"{count} stories; there are people for 1 to {len(PEOPLE)}")
    if not 1 <= frames <= MOST_FRAMES:
        raise ValueError(f"{frames} frames; there are scenes and actions for 1 to {MOST_FRAMES}")
    known = held_out_stories(max(PEOPLE) + 1, 1, 2, described=True)
    return [_long(known[person], frames) for person in PEOPLE[:count]]


def _long(story: BenchmarkStory, frames: int) -> BenchmarkStory:
    (name,) = story.story.characters
    told = tuple(Frame(prompt=prompt, characters=(name,)) for prompt in _prompts(story.name, name, frames))
    long = story.story.model_copy(update={"frames": told})
    return replace(story, story=long, casts=((name,),) * frames, group=None)


def _prompts(seed: str, name: str, count: int) -> list[str]:
    rng = Random(f"long:{seed}")  # noqa: S311 - wording, not secrets
    scenes, actions = list(words.SCENES), list(words.ACTIONS)
    prompts: list[str] = []
    for block in range(-(-count // BLOCK)):
        for place, scene in enumerate(rng.sample(scenes, BLOCK)):
            framing = rng.choice(words.FRAMINGS[FRAMINGS[place % len(FRAMINGS)]])
            # Another action at each return to a scene.
            action = rng.choice(words.ACTIONS[actions[(scenes.index(scene) + block) % len(actions)]])
            prompts.append(f"{framing} {{{name}}}, {action} {rng.choice(words.SCENES[scene])}")
    return prompts[:count]
