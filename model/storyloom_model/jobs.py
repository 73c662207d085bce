"""What a model is asked to make, as plain values that pickle."""

from dataclasses import dataclass

from storyloom_model.prompts import ComposedPrompt


@dataclass(frozen=True, slots=True)
class FrameJob:
    """One picture: its full prompt, and the seed (0 to 2**64 - 1) that alone decides its initial noise."""

    prompt: ComposedPrompt
    seed: int


@dataclass(frozen=True, slots=True)
class StoryJob:
    """One story with every setting decided.

    Sizes are in pixels. ``guidance_scale`` 1 switches classifier-free guidance off. ``adapter`` names one of the model
    package's adapters; None, "" and "none" stand for the base weights. ``cross_frame`` False makes every frame on its
    own.
    """

    frames: tuple[FrameJob, ...]
    negative_prompt: str
    steps: int
    guidance_scale: float
    solver: str
    width: int
    height: int
    adapter: str | None = None
    cross_frame: bool = True

    @property
    def guided(self) -> bool:
        """True when each frame also has a row for the negative prompt."""
        return self.guidance_scale != 1

    @property
    def characters(self) -> tuple[str, ...]:
        """Names of the characters that are in any frame, in the order of their first mention."""
        return tuple(dict.fromkeys(name for frame in self.frames for name in frame.prompt.spans))

    @property
    def rows(self) -> int:
        """Rows that this story takes in a batch step: frames times guidance branches."""
        return len(self.frames) * (2 if self.guided else 1)
