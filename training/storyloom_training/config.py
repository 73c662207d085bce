"""Training recipes: every number that a run depends on, as one frozen dataclass per part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

References = Literal["shuffled", "stacked", "own", "several"]
"""Which pictures of a person a frame is conditioned on in training; see `AdapterRecipe`."""


@dataclass(frozen=True)
class DataRecipe:
    """The rendered training set. `size` in pixels; groups hold `frames` pictures each."""

    groups: int = 4000
    frames: int = 8
    size: int = 128
    mask_size: int = 16


@dataclass(frozen=True)
class VaeRecipe:
    """AutoencoderKL with factor 8, trained on crops; the encoder is frozen after `joint_steps`.

    With an autoencoder to start from there are `onward_steps` instead of `joint_steps`. All steps but `joint_steps`
    take `onward_rate_scale` of the rate.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 8
    joint_steps: int = 5600
    onward_steps: int = 3000
    onward_rate_scale: float = 0.5
    decoder_steps: int = 600
    batch: int = 16
    crop: int = 64
    learning_rate: float = 2.5e-3
    kl_weight: float = 1e-6
    edge_weight: float = 1.0
    people_weight: float = 4.0
    head_weight: float = 12.0


@dataclass(frozen=True)
class TextRecipe:
    """The text encoder learns to read captions before the UNet learns from it."""

    batch: int = 64
    steps: int = 900
    learning_rate: float = 1e-3
    warmup: int = 50


@dataclass(frozen=True)
class BaseRecipe:
    """The text-to-image model: CLIP text encoder and UNet, v-prediction with zero terminal SNR.

    The loss of latents where people are weighs `1 + people_weight`, and on their heads `head_weight` more: faces and
    garments are a small part of a picture, and what prompts are about.

    With a model of the same build to start from there are `onward_steps`, at `onward_rate_scale` of the rate. Odds are
    of persons: how often a caption says everything (`full`) and the clothes alone, else hardly more than "a woman".
    """

    channels: tuple[int, ...] = (128, 256)
    head_dim: int = 64
    layers_per_block: int = 1
    text_width: int = 256
    text_layers: int = 3
    text_heads: int = 4
    vocabulary: int = 1600
    tokens: int = 77
    batch: int = 24
    steps: int = 3600
    onward_steps: int = 600
    learning_rate: float = 7e-4
    onward_rate_scale: float = 0.4
    full_odds: float = 0.65
    clothes_odds: float = 0.15
    text_rate_scale: float = 0.2
    warmup: int = 100
    text_dropout: float = 0.1
    people_weight: float = 2.0
    head_weight: float = 6.0
    ema_decay: float = 0.998


@dataclass(frozen=True)
class SynchronizerRecipe:
    """Storynizor's ID-Synchronizer: attention weights trained on whole groups with AMSA.

    With one of the model that training went on from there are `onward_steps`, at `onward_rate_scale` of the rate.
    """

    groups: int = 5
    frames: int = 4
    steps: int = 400
    onward_steps: int = 120
    learning_rate: float = 4e-4
    onward_rate_scale: float = 0.5
    warmup: int = 30
    mask_loss: float = 0.1  # lambda of equation 8; 0 trains AMSA without the Mask Perceptual Loss
    first_mask_odds: float = 0.5  # how often layers without a preceding map get the true masks
    text_dropout: float = 0.05
    ema_decay: float = 0.98


@dataclass(frozen=True)
class AdapterRecipe:
    """What the trainings of identity adapters share: groups of the synchronised, frozen model.

    Odds are fractions of persons (`full`, `clothes`: how much a caption says of their looks, else hardly anything) or
    of groups (the others). `references` of a frame are one picture of another frame (`shuffled`), all of the group's
    at once (`stacked`, Storynizor's ablation), the frame's own picture (`own`, as IP-Adapter trains) or one to all of
    the other frames that are trained on (`several`). With `alone` frames do not attend to each other.
    """

    groups: int = 4
    frames: int = 4
    feature_groups: int = 1500  # how many groups of the data get features
    together_share: float = 0.5  # how many groups of a batch show several people
    steps: int = 300
    learning_rate: float = 4e-4
    warmup: int = 20
    say_steps: int = 600  # steps in which the resampler first learns to say what the text says of people
    say_learning_rate: float = 1e-3
    say_batch: int = 64
    alone: bool = False
    references: References = "shuffled"
    full_odds: float = 0.2
    clothes_odds: float = 0.3
    text_dropout: float = 0.05
    identity_dropout: float = 0.05
    both_dropout: float = 0.05
    part_dropout: float = 0.0  # how often a group goes without the face, and without the looks, of its references
    true_region_odds: float = 0.3  # how often streams act in the true masks rather than in the maps'
    mask_loss: float = 0.02
    face_loss: float = 0.0  # of made faces against the true ones, by the package's recogniser; 0: without
    face_loss_below: int = 250  # timesteps from which on a frame's face can't be told yet
    face_loss_rows: int = 2  # how many frames of a step are decoded for it
    ema_decay: float = 0.99


@dataclass(frozen=True)
class IpAdapterRecipe(AdapterRecipe):
    """IP-Adapter's plus form: a resampler over the whole character, identity keys and values.

    The heads are 64 wide, as in all published files.
    """

    references: References = "own"
    tokens: int = 8
    depth: int = 2
    heads: int = 4


@dataclass(frozen=True)
class InjectorRecipe(AdapterRecipe):
    """Storynizor's ID-Injector: resampler and identity keys and values."""

    tokens: int = 4
    depth: int = 2
    heads: int = 4
    head_dim: int = 64


@dataclass(frozen=True)
class StoryMakerRecipe(AdapterRecipe):
    """StoryMaker: its resampler, identity keys and values, and low-rank changes of self- and text attention."""

    clothes_odds: float = 0.1
    part_dropout: float = 0.1
    face_tokens: int = 4
    character_tokens: int = 8
    depth: int = 2
    heads: int = 4
    head_dim: int = 64
    rank: int = 16
    background: bool = True  # False: the ablation without the learned background embedding
    attention_loss: float = 0.1  # lambda of the paper; 0: the ablation without it
    face_loss: float = 0.1


@dataclass(frozen=True)
class PhotoMakerRecipe(AdapterRecipe):
    """PhotoMaker's first version: an image encoder of its own, an embedding of each reference, low-rank changes.

    Frames are made on their own, as the paper has it.
    """

    alone: bool = True
    together_share: float = 0.25
    references: References = "several"
    rank: int = 8


@dataclass(frozen=True)
class InstantIdRecipe(AdapterRecipe):
    """InstantID: a resampler over the face's embedding, and IdentityNet, a ControlNet that reads its tokens.

    IdentityNet's build is that of the pose ControlNet. It acts in frames of one person, hence most groups are of one.
    """

    alone: bool = True
    together_share: float = 0.25
    references: References = "own"
    tokens: int = 16
    depth: int = 2
    heads: int = 4


@dataclass(frozen=True)
class ControlNetRecipe:
    """A pose ControlNet for the synchronised, frozen model, on single pictures.

    `embedding` are the channels of what looks at the drawn skeletons. Captions are dropped often, so that the pose is
    taken from the drawing.
    """

    embedding: tuple[int, ...] = (16, 32, 64, 128)
    batch: int = 16
    steps: int = 800
    learning_rate: float = 4e-4
    warmup: int = 40
    text_dropout: float = 0.3
    ema_decay: float = 0.99


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one model package."""

    name: str
    seed: int = 0
    data: DataRecipe = field(default_factory=DataRecipe)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    base: BaseRecipe = field(default_factory=BaseRecipe)
    synchronizer: SynchronizerRecipe = field(default_factory=SynchronizerRecipe)
    injector: InjectorRecipe = field(default_factory=InjectorRecipe)
    storymaker: StoryMakerRecipe = field(default_factory=StoryMakerRecipe)
    ip_adapter: IpAdapterRecipe = field(default_factory=IpAdapterRecipe)
    photomaker: PhotoMakerRecipe = field(default_factory=PhotoMakerRecipe)
    instantid: InstantIdRecipe = field(default_factory=InstantIdRecipe)
    controlnet: ControlNetRecipe = field(default_factory=ControlNetRecipe)


MINI_128 = Recipe("mini-128")
MINI_256 = replace(
    MINI_128,
    name="mini-256",
    data=DataRecipe(groups=20000, frames=8, size=256, mask_size=32),
    vae=VaeRecipe(channels=(32, 64, 128, 128), joint_steps=40000, decoder_steps=20000, crop=128, learning_rate=5e-4),
    base=BaseRecipe(batch=128, steps=60000, learning_rate=3e-4, warmup=1000, ema_decay=0.9995),
    synchronizer=SynchronizerRecipe(groups=16, frames=6, steps=8000, ema_decay=0.999),
    injector=InjectorRecipe(groups=16, frames=6, feature_groups=20000, steps=20000, say_steps=10000, ema_decay=0.999),
    storymaker=StoryMakerRecipe(
        groups=16, frames=6, feature_groups=20000, steps=20000, say_steps=10000, ema_decay=0.999
    ),
    ip_adapter=IpAdapterRecipe(
        groups=16, frames=6, feature_groups=20000, steps=20000, say_steps=10000, ema_decay=0.999
    ),
    photomaker=PhotoMakerRecipe(
        groups=16, frames=6, feature_groups=20000, steps=20000, say_steps=10000, ema_decay=0.999
    ),
    instantid=InstantIdRecipe(groups=16, frames=6, feature_groups=20000, steps=20000, say_steps=10000, ema_decay=0.999),
    controlnet=ControlNetRecipe(batch=128, steps=20000, learning_rate=1e-4, warmup=500, ema_decay=0.999),
)
# For tests: every stage runs in seconds, nothing is learnt.
SMOKE = replace(
    MINI_128,
    name="smoke",
    data=DataRecipe(groups=4, frames=4, size=64, mask_size=8),
    vae=VaeRecipe(
        channels=(8, 8, 16, 16), latent_channels=4, joint_steps=3, onward_steps=2, decoder_steps=2, batch=4, crop=32
    ),
    text=TextRecipe(batch=4, steps=2, warmup=1),
    base=BaseRecipe(
        channels=(32, 64), head_dim=16, text_width=32, text_layers=1, text_heads=2, vocabulary=1600, batch=4, steps=4,
        onward_steps=2, warmup=2,
    ),
    synchronizer=SynchronizerRecipe(groups=1, frames=3, steps=3, onward_steps=2, warmup=1),
    injector=InjectorRecipe(
        groups=2, frames=3, feature_groups=4, steps=3, warmup=1, say_steps=2, say_batch=4,
        tokens=2, depth=1, heads=2, head_dim=16,
    ),
    storymaker=StoryMakerRecipe(
        groups=2, frames=3, feature_groups=4, steps=3, warmup=1, say_steps=2, say_batch=4,
        face_tokens=2, character_tokens=3, depth=1, heads=2, head_dim=16, rank=2,
    ),
    ip_adapter=IpAdapterRecipe(
        groups=2, frames=3, feature_groups=4, steps=3, warmup=1, say_steps=2, say_batch=4, tokens=2, depth=1, heads=1,
    ),
    photomaker=PhotoMakerRecipe(
        groups=2, frames=3, feature_groups=4, steps=3, warmup=1, say_steps=2, say_batch=4, rank=2,
    ),
    instantid=InstantIdRecipe(
        groups=2, frames=3, feature_groups=4, steps=3, warmup=1, say_steps=2, say_batch=4, tokens=2, depth=1, heads=1,
    ),
    controlnet=ControlNetRecipe(embedding=(4, 4, 8, 8), batch=4, steps=3, warmup=1),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (MINI_128, MINI_256, SMOKE)}
