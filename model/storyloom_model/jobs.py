"""What a model is asked to make, as plain values that pickle."""

from dataclasses import dataclass

from storyloom_model.prompts import ComposedPrompt


class JobError(ValueError):
    """A story cannot be made with this model package. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a ControlNet of the model package is shown of one frame, and how much that counts.

    ``picture`` is an image file. It is scaled to the frame's size, and its proportions are not kept. One of kind "pose"
    takes it as it is; one of kind "identitynet" looks for the faces in it, and the frame's go where they are. ``scale``
    multiplies that of the manifest.
    """

    controlnet: str
    picture: bytes
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class FrameJob:
    """One picture: its full prompt, the seed (0 to 2**64 - 1) that alone decides its initial noise, and its pose."""

    prompt: ComposedPrompt
    seed: int
    control: Control | None = None


@dataclass(frozen=True, slots=True)
class AnchorFrame:
    """A finished picture that lends its looks to new frames and is not made again.

    ``seed`` decides the noise under which it is seen; the seed that it was made with keeps it closest to how it came
    about. ``latents`` are its final ones: float32, little-endian, [C, h, w] in C order.
    """

    prompt: ComposedPrompt
    seed: int
    latents: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """What a story knows of one character's looks from references; see ``identity.adapter.CharacterIdentity``.

    ``features`` and ``blend`` are ``IdentityFeatures.to_bytes()``.
    """

    character: str
    features: bytes
    scale: float = 1.0
    keep: tuple[str, ...] = ()
    blend: bytes = b""
    blend_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class GlobalReferences:
    """Whole pictures to which every frame attends wherever it looks, all of them in one softmax (Story-Adapter).

    ``features`` are ``IdentityFeatures.to_bytes()`` of the pictures. ``scale`` multiplies the identity adapter's own.
    """

    features: bytes
    scale: float


@dataclass(frozen=True, slots=True)
class Region:
    """What is made of one character in a second pass: ``prompt`` shows it alone."""

    character: str
    prompt: ComposedPrompt


@dataclass(frozen=True, slots=True)
class Redenoising:
    """Re-denoising Identity Injection: the story is made from its prompts alone, then the last steps are taken again
    with the identities of its characters, each in its own place.

    ``start`` is the step that the second pass begins at; it takes those from there to the end. Masks are ``margin``
    pixels larger than what is found of a character, and grow by up to ``growth`` more until the end. ``regions`` has
    one for each character with an identity.
    """

    start: int
    regions: tuple[Region, ...]
    margin: int = 10
    growth: int = 50


@dataclass(frozen=True, slots=True)
class FreeU:
    """FreeU (Si et al. 2024): ``b1`` and ``b2`` multiply half of the features that come from below in the UNet's first
    and second up block, ``s1`` and ``s2`` the lowest frequencies of what the skip connections bring there. All 1
    changes nothing.
    """

    b1: float = 1.1
    b2: float = 1.2
    s1: float = 0.6
    s2: float = 0.4


@dataclass(frozen=True, slots=True)
class StoryJob:
    """One story, or one window of a long one, with every setting decided.

    Sizes are in pixels. ``guidance_scale`` 1 switches classifier-free guidance off. ``adapter`` names one of the model
    package's adapters; None, "" and "none" stand for the base weights. ``loras`` are some of the package's, each with
    the weight by which its change is added. ``cross_frame`` False makes every frame on its own. ``anchors`` are in the
    group of ``frames``: more frames for a story, one frame anew and the later windows of a long story are all jobs
    whose anchors are frames that exist. ``identities`` are of characters with references, and ``identity_adapter``
    names what makes use of them; without identities it is left aside. ``method`` names the story method, of
    ``methods.names``; "" stands for the package's. With ``redenoising`` identities act in a second pass alone; see
    ``redenoising.plan`` for the rows and steps of it. ``global_references`` are for the identity adapter, too; it must
    be of ``methods.rounds.ADAPTERS``. ``feature_injection`` is of the story methods that have it: the
    story is made twice, the second time with features of the first (see ``runs``). ``freeu`` None goes without.
    ``face_controlnet`` names the ControlNet that reads the identity adapter's tokens, "" where there is none: the model
    knows, but who counts rows before it is loaded does not.
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
    anchors: tuple[AnchorFrame, ...] = ()
    identities: tuple[Identity, ...] = ()
    identity_adapter: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    method: str = ""
    redenoising: Redenoising | None = None
    global_references: GlobalReferences | None = None
    feature_injection: bool = False
    freeu: FreeU | None = None
    face_controlnet: str = ""

    @property
    def shows_references(self) -> bool:
        """True when there is something for the identity adapter to see."""
        return bool(self.identities) or self.global_references is not None

    @property
    def guided(self) -> bool:
        """True when each frame also has a row for the negative prompt."""
        return self.guidance_scale != 1

    @property
    def characters(self) -> tuple[str, ...]:
        """Names of the characters that are in any frame, in the order of their first mention.

        A character that only anchors show is none of them: nobody needs its looks.
        """
        return tuple(dict.fromkeys(name for frame in self.frames for name in frame.prompt.spans))

    @property
    def group(self) -> int:
        """Rows of each guidance branch: frames, then anchors."""
        return len(self.frames) + len(self.anchors)

    @property
    def crosses_frames(self) -> bool:
        """True when its frames have something to see of each other, if its method lets them."""
        return self.cross_frame and self.group > 1 and bool(self.characters)

    @property
    def runs(self) -> int:
        """How often all steps are taken: twice with feature injection, if there is anybody to take features from."""
        return 2 if self.feature_injection and self.crosses_frames else 1

    @property
    def rows(self) -> int:
        """Rows that this story takes in a step of its first pass: frames and anchors, times guidance branches."""
        return self.group * (2 if self.guided else 1)
