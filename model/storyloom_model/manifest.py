"""The schema of ``storyloom.yaml``, the file that makes a folder of diffusers components a model package."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from storyloom_model.methods.names import DEFAULT_METHOD, MethodName

NO_ADAPTER = "none"
"""Accepted wherever an adapter is named: the base weights. The empty name means the same."""

SolverName = Literal["ddim", "euler", "unipc"]
Pixels = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
BackendName = Literal["torch", "onnxruntime", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", "tensorrt"]
AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Keep = Literal["face", "hair", "clothes", "body"]
"""What can be taken over from references of a character."""

KEEPS: tuple[Keep, ...] = get_args(Keep)
MAX_FREEU = 4.0
"""Of each of FreeU's four numbers."""
ControlKind = Literal["pose", "identitynet"]
"""What a ControlNet is shown: a picture of the pose as it is, or a drawing of a face, beside the face's tokens."""


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path} must be a path inside the package")
    return path


def _weights(path: str) -> str:
    if PurePosixPath(path).suffix != ".safetensors":
        raise ValueError(f"{path} must be a .safetensors file inside the package")
    return _inside(path)


def _not_none(name: str) -> str:
    if name == NO_ADAPTER:
        raise ValueError(f"an adapter cannot be called {NO_ADAPTER}, which stands for going without; rename it")
    return name


PackagePath = Annotated[str, AfterValidator(_inside)]
WeightsFile = Annotated[str, AfterValidator(_weights)]
Named = Annotated[AdapterName, AfterValidator(_not_none)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Defaults(_Part):
    """Values used where a request sets none. ``adapter`` and ``identity_adapter`` are "none" or the name of one."""

    steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=1, le=30)
    solver: SolverName = "ddim"
    width: Pixels
    height: Pixels
    adapter: str = NO_ADAPTER
    identity_adapter: str = NO_ADAPTER


class Limits(_Part):
    """What one story may ask for. ``max_prompt_tokens`` counts the start and end tokens.

    Of a story of over ``window_frames`` frames that many are made together; each window but the first has
    ``window_anchors`` finished frames in it, which lend their looks. ``max_identity_tokens`` are those of all
    characters of one frame together; room for so many is kept in calls that stories with identities share.
    """

    max_frames: int = Field(default=240, ge=1)
    window_frames: int = Field(default=8, ge=2)
    window_anchors: int = Field(default=2, ge=1)
    max_characters: int = Field(default=3, ge=1)
    max_steps: int = Field(default=100, ge=1)
    max_prompt_tokens: int = Field(default=77, ge=3)
    max_identity_tokens: int = Field(default=80, ge=1)


class Attention(_Part):
    """The rule that turns maps into foregrounds. ``value``: the quantile, or the threshold of the fixed rule, in [0,
    1].
    """

    threshold: Literal["otsu", "quantile", "fixed"] = "otsu"
    value: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _value_fits_rule(self) -> Self:
        if (self.value is None) != (self.threshold == "otsu"):
            need = "takes no value; remove it" if self.threshold == "otsu" else "needs a value between 0 and 1"
            raise ValueError(f"threshold {self.threshold} {need}")
        return self


class Encoders(_Part):
    """What looks at references, inside the package. Without a segmenter the built-in one finds characters.

    ``parser`` is a folder of a semantic segmentation model of transformers whose classes are parts of people, for
    adapters by parts; without it the model's own maps find them.

    ``faces`` is a folder in the layout of insightface, faces/models/PACK/*.onnx. ``image`` is a folder of a
    CLIPVisionModelWithProjection with its preprocessor, or a file of open_clip.
    """

    faces: PackagePath
    image: PackagePath
    segmenter: PackagePath | None = None
    parser: PackagePath | None = None


class FinderFolders(_Part):
    """What finds characters between the passes of a story with re-denoising, inside the package.

    ``detector`` is a folder of a GroundingDinoForObjectDetection of transformers, ``masks`` of a SamModel, each with
    its processor. Boxes count from ``box_threshold`` on, words from ``text_threshold``.
    """

    detector: PackagePath
    masks: PackagePath
    box_threshold: float = Field(default=0.3, ge=0, le=1)
    text_threshold: float = Field(default=0.25, ge=0, le=1)


class IdentityAdapterFile(_Part):
    """An identity adapter. ``scale`` multiplies that of the file; ``keeps`` is what it can take from references.

    ``start`` is of those that write persons into the text: the part of the steps that reads the text without; None: as
    its authors have it.
    """

    file: WeightsFile
    method: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    scale: float = Field(default=1.0, ge=0, le=4)
    keeps: tuple[Keep, ...] = Field(default=KEEPS, min_length=1)
    start: float | None = Field(default=None, ge=0, le=1)


class FreeUScales(_Part):
    """What FreeU is where a story names no numbers, see ``jobs.FreeU``; the defaults are what is usual for SDXL."""

    b1: float = Field(default=1.1, ge=0, le=MAX_FREEU)
    b2: float = Field(default=1.2, ge=0, le=MAX_FREEU)
    s1: float = Field(default=0.6, ge=0, le=MAX_FREEU)
    s2: float = Field(default=0.4, ge=0, le=MAX_FREEU)


class ControlNetFolder(_Part):
    """A ControlNet in diffusers' form. ``scale`` multiplies what it adds to the UNet.

    One of kind identitynet reads the tokens of ``adapter``, an identity adapter, in place of the text.
    """

    folder: PackagePath
    kind: ControlKind = "pose"
    scale: float = Field(default=1.0, ge=0, le=4)
    adapter: str = NO_ADAPTER

    @model_validator(mode="after")
    def _adapter_fits_kind(self) -> Self:
        if (self.adapter == NO_ADAPTER) != (self.kind == "pose"):
            need = "takes no adapter; remove it" if self.kind == "pose" else "needs the adapter whose tokens it reads"
            raise ValueError(f"a ControlNet of kind {self.kind} {need}")
        return self


class Discovery(_Part):
    """How candidates of a discovery are made; None: as stories are. ``negative_prompt`` is that of requests that bring
    none; ``freeu`` is on with the package's numbers. IdentityStory has Euler, 50 steps, guidance 5, FreeU, and words
    against illustration.
    """

    steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=1, le=30)
    solver: SolverName | None = None
    negative_prompt: str = ""
    freeu: bool = False


class Manifest(_Part):
    """``storyloom.yaml``, format 1. ``sizes`` are (width, height) in pixels.

    ``method`` is the story method of stories that name none. ``adapters`` are files with full replacements of weights;
    ``loras`` with low-rank changes, which stories weigh. ``backend`` is what runs the package on a server that is not
    told another one; None means torch. Without a ``character_finder`` the maps of a story's first pass find its
    characters.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    method: MethodName = DEFAULT_METHOD
    backend: BackendName | None = None
    sizes: tuple[tuple[Pixels, Pixels], ...] = Field(min_length=1)
    defaults: Defaults
    limits: Limits = Limits()
    attention: Attention = Attention()
    freeu: FreeUScales = FreeUScales()
    adapters: dict[Named, WeightsFile] = Field(default_factory=dict)
    loras: dict[Named, WeightsFile] = Field(default_factory=dict)
    encoders: Encoders | None = None
    identity_adapters: dict[Named, IdentityAdapterFile] = Field(default_factory=dict)
    controlnets: dict[Named, ControlNetFolder] = Field(default_factory=dict)
    discovery: Discovery = Discovery()
    character_finder: FinderFolders | None = None

    @model_validator(mode="after")
    def _windows_have_room(self) -> Self:
        if self.limits.window_anchors >= self.limits.window_frames:
            raise ValueError("limits: window_anchors must be below window_frames, or a window makes no frame")
        return self

    @model_validator(mode="after")
    def _defaults_are_served(self) -> Self:
        if (self.defaults.width, self.defaults.height) not in self.sizes:
            raise ValueError("defaults: width and height must be one of sizes")
        if self.defaults.steps > self.limits.max_steps:
            raise ValueError("defaults: steps must not exceed limits.max_steps")
        if (self.discovery.steps or 1) > self.limits.max_steps:
            raise ValueError("discovery: steps must not exceed limits.max_steps")
        if self.adapter_key(self.defaults.adapter) not in (None, *self.adapters):
            raise ValueError(f"defaults: adapter {self.defaults.adapter} is not listed under adapters")
        if self.adapter_key(self.defaults.identity_adapter) not in (None, *self.identity_adapters):
            name = self.defaults.identity_adapter
            raise ValueError(f"defaults: identity_adapter {name} is not listed under identity_adapters")
        return self

    @model_validator(mode="after")
    def _controlnets_read_what_is_there(self) -> Self:
        readers = [(name, one.adapter) for name, one in self.controlnets.items() if one.kind == "identitynet"]
        for name, adapter in readers:
            if adapter not in self.identity_adapters:
                raise ValueError(f"controlnets: {name} reads {adapter}, which is not listed under identity_adapters")
        if len({adapter for _, adapter in readers}) < len(readers):
            raise ValueError("controlnets: two of kind identitynet read the same adapter; keep one")
        return self

    def face_controlnet(self, identity_adapter: str) -> str:
        """The ControlNet that reads the tokens of an identity adapter; "" where there is none."""
        readers = (name for name, one in self.controlnets.items() if one.kind == "identitynet")
        return next((name for name in readers if self.controlnets[name].adapter == identity_adapter), "")

    @staticmethod
    def adapter_key(name: str | None) -> str | None:
        """The adapter's name, or None for every way to say that there is none."""
        return None if name in (None, "", NO_ADAPTER) else name
