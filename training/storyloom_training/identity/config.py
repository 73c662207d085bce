"""Every number that the encoders' trainings depend on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataRecipe:
    """What is rendered: `pictures` of each of `people` faces and the people of `groups` pictures cut out, both
    at `size` pixels, and `scenes` whole pictures at `scene_size`; `held_out_*` to measure on, of the test split.
    """

    people: int = 3000
    pictures: int = 8
    groups: int = 14000
    size: int = 112
    scenes: int = 5000
    scene_size: int = 192
    held_out_people: int = 400
    held_out_pictures: int = 6
    held_out_groups: int = 1000
    held_out_scenes: int = 300


@dataclass(frozen=True)
class RecogniserRecipe:
    """The margin grows from 0 to `margin` over the steps."""

    steps: int = 940
    batch: int = 64
    scale: float = 24.0
    margin: float = 0.3
    named_weight: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class ImageEncoderRecipe:
    """A CLIP vision transformer."""

    size: int = 112
    patch: int = 16
    width: int = 128
    layers: int = 4
    heads: int = 4
    projection: int = 256
    steps: int = 1000
    batch: int = 48
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class DetectorRecipe:
    """Trains on scenes of `DataRecipe.scene_size`."""

    steps: int = 720
    batch: int = 24
    learning_rate: float = 4e-3
    seed: int = 0


@dataclass(frozen=True)
class SegmenterRecipe:
    """Trains on the detector's scenes, reduced to `size`."""

    steps: int = 160
    batch: int = 12
    size: int = 128
    learning_rate: float = 5e-3
    seed: int = 0


@dataclass(frozen=True)
class IdentityRecipe:
    """All encoders of a model package."""

    data: DataRecipe = field(default_factory=DataRecipe)
    recogniser: RecogniserRecipe = field(default_factory=RecogniserRecipe)
    image: ImageEncoderRecipe = field(default_factory=ImageEncoderRecipe)
    detector: DetectorRecipe = field(default_factory=DetectorRecipe)
    segmenter: SegmenterRecipe = field(default_factory=SegmenterRecipe)
