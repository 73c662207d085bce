"""What the engine asks of a model, and how it finds the class by name."""

import importlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from storyloom_model.execution import ExecutionOptions
from storyloom_model.identity.features import Reference, ReferenceFeatures
from storyloom_model.jobs import StoryJob
from storyloom_model.package import read_manifest

DEFAULT = "torch"
SHORT_NAMES = {
    "torch": "storyloom_model.denoiser:Denoiser",
    "onnxruntime": "storyloom_export.denoiser:OnnxDenoiser",
    "onnxruntime-tensorrt": "storyloom_export.denoiser:OnnxTensorRtDenoiser",
    "onnxruntime-tensorrt-rtx": "storyloom_export.denoiser:OnnxTensorRtRtxDenoiser",
    "tensorrt": "storyloom_export.tensorrt.denoiser:TensorRtDenoiser",
}
"""The backends that come with the server. Any other class is named as module:class."""


class State(Protocol):
    """A job between its encoding and its last decoded frame."""

    @property
    def step_index(self) -> int:
        """Denoising steps done."""

    @property
    def steps(self) -> int:
        """Denoising steps in all."""

    @property
    def done(self) -> bool:
        """True after the last step."""

    @property
    def error(self) -> str | None:
        """Set when this job alone went wrong in a step."""


class Backend(Protocol):
    """One loaded model. Every call is pure with respect to other jobs."""

    def encode(self, job: StoryJob) -> Any:
        """Starts a job; returns its ``State``."""

    def variant(self, job: StoryJob) -> Hashable:
        """What decides the weights that a job is made with; it may name parts of the package that there are not."""

    def step(self, states: Sequence[Any]) -> None:
        """Advances jobs of one size, variant and kind of method by one step, in place.

        Leaves them as they are when it raises.
        """

    def decode(self, state: Any, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures of some frames, uint8 [n, height, width, 3]."""

    def preview(self, state: Any, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Low-cost pictures of some unfinished frames, uint8 [n, h, w, 3]."""

    def save(self, state: Any) -> bytes:
        """A checkpoint."""

    def restore(self, job: StoryJob, data: bytes) -> Any:
        """The state that a checkpoint of the same job was made of.

        Raises:
            ValueError: the checkpoint is damaged, or of another job or model.
        """

    def final_latents(self, state: Any) -> Sequence[bytes]:
        """What an ``AnchorFrame`` takes of each frame of a job that is done."""

    def looks(self, state: Any, frame: int, picture: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        """How each character in a finished frame looks; see ``storyloom_model.consistency``."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """True when a smaller batch may succeed where ``error`` was raised."""

    def take_peak_bytes(self) -> int | None:
        """Peak of device memory since the last call; None where the device does not count it."""

    def memory_bytes(self) -> int | None:
        """All of the device's memory; None where it is not counted."""


class ReferenceEncoder(Protocol):
    """What says what is in pictures of a character."""

    @property
    def fingerprint(self) -> str:
        """Tells these encoders from all others; features of two fingerprints do not mix."""

    def encode_one(self, reference: Reference) -> tuple[ReferenceFeatures, Sequence[str]]:
        """The features of one reference, and notes on it for people.

        Raises:
            ReferenceProblem: it is of no use. The message is for people: what is wrong, and what to do.
        """

    def encode_picture(self, picture: NDArray[np.uint8]) -> ReferenceFeatures:
        """What the image encoder says of a whole picture, uint8 [h, w, 3], whoever is in it."""


@runtime_checkable
class TakesReferences(Protocol):
    """A backend whose jobs may have identities."""

    @property
    def reference_encoder(self) -> ReferenceEncoder | None:
        """None: the model package has no encoders."""


@runtime_checkable
class FindsCharacters(Protocol):
    """A backend that knows who is missing in a picture."""

    def missing(self, state: Any, frame: int) -> Sequence[str]:
        """Characters of a finished frame to whom its second pass gave nothing, since they were not found in it."""


def load_backend(name: str | None, folder: Path, device: str, execution: ExecutionOptions) -> Backend:
    """Loads a model package.

    Args:
        name: a short name, or a class as module:class; None: what the package's ``storyloom.yaml`` says, or torch.
        folder: of the package.
        device: such as "cpu" or "cuda:0".
        execution: how the model is run.
    """
    chosen = name or read_manifest(folder).backend or DEFAULT
    return cast(Backend, load_class(SHORT_NAMES.get(chosen, chosen)).load(folder, device, execution))


def load_class(name: str) -> Any:
    """The class that ``module:class`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
