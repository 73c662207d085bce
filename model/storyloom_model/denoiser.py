"""The engine of one model package: encode, step, decode."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyloom_model.adapters import load_adapter, with_adapter
from storyloom_model.attention import Place, TextKeysValues, install_story_attention, text_keys_values
from storyloom_model.batch import Prediction, UNetCall, capacity_of, predict, unet_pass
from storyloom_model.checkpoint import pack, unpack
from storyloom_model.checks import Abilities, check_job, check_sizes
from storyloom_model.components import Components, load_components
from storyloom_model.consistency import Look, look, scores
from storyloom_model.controlnets.loading import fitting_controlnets
from storyloom_model.decoder import Decoder
from storyloom_model.encoder import TextEncoder
from storyloom_model.execution import ExecutionOptions
from storyloom_model.fingerprints import job_fingerprint, package_fingerprint
from storyloom_model.fusion import fuse_group_norms
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.loading import load_identity_adapters
from storyloom_model.identity.part_maps import MapPartFinder
from storyloom_model.jobs import JobError, StoryJob
from storyloom_model.latents import write_latents
from storyloom_model.low_rank import Changes, load_lora
from storyloom_model.manifest import Manifest
from storyloom_model.maps import ForegroundRule, character_masks
from storyloom_model.memory import is_out_of_memory, memory_bytes, take_peak_bytes
from storyloom_model.methods.injection import begin_second_runs, keep_features
from storyloom_model.methods.names import METHODS
from storyloom_model.package import ModelPackage, PackageError
from storyloom_model.redenoising.finding import begin_second_passes, load_finder, missing
from storyloom_model.redenoising.masks import CharacterFinder
from storyloom_model.redenoising.second_pass import asked, combined, with_second_pass
from storyloom_model.runner import Runner
from storyloom_model.solvers import check_schedule
from storyloom_model.starting import Starter
from storyloom_model.state import StoryState
from storyloom_model.unet import finest_attention
from storyloom_model.variants import Variant, Variants

__all__ = ["DEFAULT_OPTIONS", "Denoiser", "JobError"]

if TYPE_CHECKING:
    from storyloom_model.identity.encoders.references import ReferenceEncoder

DEFAULT_OPTIONS = ExecutionOptions()


class Denoiser:
    """A loaded model package. Every call is pure with respect to other stories; none needs a lock, none takes one.

    On the CPU, matrix products round differently for different numbers of rows, which is enough to flip a position of a
    mask and with it visible pixels. There a batch step therefore makes one UNet call per story (time per row does not
    fall above four rows), and a story's latents are bitwise those of a run alone. On other devices all stories share
    one call.

    Args:
        package: a checked package.
        components: its modules, in evaluation mode.
        options: how the UNet is run; those of the modules' dtype.
        one_call: True makes all stories share a UNet call, False gives each its own; None chooses by device.

    Raises:
        PackageError: the package's adapters, noise schedule, sizes or limits do not fit its modules.
        ValueError: the device lacks what the options ask for.
    """

    runtime: ClassVar[str] = "torch"
    """What computes. Another one rounds differently and takes no checkpoints of this one."""
    methods: ClassVar[tuple[str, ...]] = METHODS
    """The story methods that it can run."""
    takes_freeu: ClassVar[bool] = True
    """Whether it can run stories with FreeU."""

    def __init__(
        self,
        package: ModelPackage,
        components: Components,
        options: ExecutionOptions = DEFAULT_OPTIONS,
        *,
        one_call: bool | None = None,
    ) -> None:
        self.device: torch.device = components.unet.device
        options.check_device(self.device.type)
        self.manifest: Manifest = package.manifest
        self._unet = components.unet
        self._schedule = components.scheduler
        self._one_call = self.device.type != "cpu" if one_call is None else one_call
        self._rule = ForegroundRule(self.manifest.attention.threshold, self.manifest.attention.value)
        self._layers: tuple[Place, ...] = ()
        self._finest = 0
        try:
            check_schedule(self._schedule)
            self._prepare(components, options)
        except ValueError as error:
            raise PackageError(f"{package.folder}: {error}") from error
        self._package_fingerprint = package_fingerprint(package)
        self._unets = {None: self._unet} | {name: self._with_adapter(package, name) for name in self.manifest.adapters}
        self._options = options
        self._identity_adapters = self._load_identity_adapters(package)
        loras = self._load_loras(package)
        self._runner = Runner(lambda variant: self._call_of(self._variants.unet(variant)), options)
        changes = {name: adapter.low_rank for name, adapter in self._identity_adapters.items() if adapter.low_rank}
        self._variants = Variants(
            self._unets, changes, loras, options.max_variants, self._runner.forget, self._with_weights
        )
        self._text_encoder = TextEncoder(
            components.tokenizer,
            components.text_encoder,
            None if components.text_encoder_2 is None else (components.tokenizer_2, components.text_encoder_2),
        )
        self._decoder = Decoder(components.vae)
        check_sizes(self.manifest, self._decoder.factor, components.tokenizer.model_max_length)
        self._controlnets = fitting_controlnets(
            components.controlnets, self.manifest, self._identity_adapters, self._unet, self._decoder.factor
        )
        loaded = (tuple(self._identity_adapters), tuple(loras), self.methods, tuple(self._controlnets))
        self._abilities = Abilities(self.manifest, self.runtime, *loaded, freeu=self.takes_freeu)
        self._starter = Starter(
            manifest=self.manifest,
            schedule=self._schedule,
            text_encoder=self._text_encoder,
            layers=self._layers,
            finest=self._finest,
            identity_adapters=self._identity_adapters,
            controlnets=self._controlnets,
            find_faces=self._find_faces,
            text_keys_values=self._text_keys_values,
        )
        self._package = package
        # Between the passes of a story with re-denoising; None: the maps of the first pass find the characters.
        self.character_finder: CharacterFinder | None = load_finder(package, str(self.device))

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        options: ExecutionOptions = DEFAULT_OPTIONS,
        *,
        one_call: bool | None = None,
    ) -> Self:
        """Loads a model package.

        Args:
            folder: of the package.
            device: such as "cpu" or "cuda:0".
            options: how the UNet is run.
            one_call: see the class.

        Raises:
            PackageError: the folder is not a usable package.
            ValueError: the device lacks what the options ask for.
        """
        options.check_device(torch.device(device).type)
        package = ModelPackage.load(folder)
        dtype: torch.dtype = getattr(torch, options.dtype)
        return cls(package, load_components(package, device, dtype), options, one_call=one_call)

    @cached_property
    def reference_encoder(self) -> ReferenceEncoder | None:
        """What looks at references, loaded when it is first asked for; None where nothing would use what it says.

        Raises:
            EncodersError: the package's encoders are not usable.
        """
        encoders, adapters = self.manifest.encoders, self._identity_adapters.values()
        if encoders is None or not adapters:
            return None
        from storyloom_model.identity.encoders.package import load_reference_encoder  # Takes seconds.

        return load_reference_encoder(self._package, encoders, adapters, str(self.device), self._part_finder)

    @torch.inference_mode()
    def encode(self, job: StoryJob) -> StoryState:
        """Starts a story: text embeddings, the characters' tokens and identities, the initial noise of every frame.

        Raises:
            JobError: the job asks for what this package cannot do.
        """
        factor = self._decoder.factor
        shape = (self._decoder.channels, job.height // factor, job.width // factor)
        check_job(job, self._abilities, math.prod(shape))
        return with_second_pass(job, partial(self._starter.start, shape=shape))

    def variant(self, job: StoryJob) -> Variant:
        """What decides the weights that a job is made with. Nothing of it is checked."""
        return self._starter.variant(job)

    @torch.inference_mode()
    def step(self, states: Sequence[StoryState]) -> None:
        """Advances every story by one step of its own solver, in place.

        A story whose latents turn non-finite gets ``error`` and leaves the others as they are.

        Args:
            states: stories of one compatibility key, none done or failed. Steps, timesteps, solvers, frame counts and
                guidance may differ.

        Raises:
            ValueError: the stories cannot take a step together.
            Exception: whatever the UNet raises. Stories of the call that raised it are as they were before, and may be
                stepped again; see ``is_out_of_memory``.
        """
        if not states or len({state.key for state in states}) != 1:
            raise ValueError("a batch step takes at least one story, all of one compatibility key")
        if any(state.done or state.error is not None for state in states):
            raise ValueError("a story that is done or has failed takes no more steps")
        begin_second_runs(states, self._rule, self._schedule)
        begin_second_passes(states, self._rule, self.character_finder, self._decoder, self._schedule)
        for together in [states] if self._one_call else [[state] for state in states]:
            of_each = [asked(state) for state in together]
            for one in (one for own in of_each for one in own):
                one.turn_to_later()
            predictions = iter(self._predict([one for own in of_each for one in own]))
            for state, own in zip(together, of_each, strict=True):
                prediction = combined(state, [next(predictions) for _ in own])
                keep_features(state, prediction.features)
                state.latents, state.predicted = state.solver.advance(state.latents, prediction.values)
                if prediction.maps is not None:
                    state.previous_maps, state.kept = state.method.maps(state.kept, prediction.maps)
                if not torch.isfinite(state.latents).all():
                    state.error = f"the latents became non-finite at step {state.step_index} of {state.steps}"

    @torch.inference_mode()
    def decode(self, state: StoryState, frames: Sequence[int]) -> NDArray[np.uint8]:
        """The pictures of some frames of a story that is done: uint8 [len(frames), height, width, 3]."""
        return self._decoder.pictures(state.latents[list(frames)])

    @torch.inference_mode()
    def preview(self, state: StoryState, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Rough pictures of what some frames will be, at the latents' size: uint8 [len(frames), h, w, 3].

        They show the end that the last step expects, through a linear projection from latents to colours.
        """
        return self._decoder.previews(state.predicted[list(frames)])

    @torch.inference_mode()
    def looks(self, state: StoryState, frame: int, picture: NDArray[np.uint8]) -> dict[str, Look]:
        """The colours of each character of a frame, to compare with other frames: see ``consistency``.

        Args:
            state: a story that has taken a step. Without attention across frames there are no maps, hence no looks.
            frame: which of its frames.
            picture: that frame decoded, [height, width, 3].
        """
        if state.previous_maps is None:
            return {}
        names = [name for name in state.job.characters if name in state.job.frames[frame].prompt.spans]
        places = [state.job.characters.index(name) for name in names]
        maps = state.previous_maps[frame, places]
        found = {
            name: look(picture, mask)
            for name, mask in zip(names, character_masks(maps, picture.shape[:2], self._rule), strict=True)
        }
        return {name: colours for name, colours in found.items() if colours is not None}

    def consistency(self, state: StoryState, pictures: NDArray[np.uint8]) -> dict[str, float | None]:
        """How well each character keeps its colours over the frames of a story, in [0, 1]; see ``consistency``.

        Args:
            state: a story that is done.
            pictures: all its frames decoded, [F, height, width, 3].

        Returns:
            By the name of every character of the frames; None for those who are seen in fewer than two.
        """
        found = scores([self.looks(state, frame, picture) for frame, picture in enumerate(pictures)])
        return {name: found.get(name) for name in state.job.characters}

    @staticmethod
    def missing(state: StoryState, frame: int) -> tuple[str, ...]:
        """Characters of a finished frame to whom its second pass gave nothing, since they were not found in it."""
        return missing(state, frame)

    def final_latents(self, state: StoryState) -> list[bytes]:
        """The latents of every frame of a story that is done, as ``AnchorFrame`` takes them.

        Raises:
            ValueError: the story is not done.
        """
        if not state.done or state.error is not None:
            raise ValueError(f"only a story that is done has final latents; this one is at step {state.step_index}")
        return [write_latents(latents) for latents in state.latents]

    def save(self, state: StoryState) -> bytes:
        """A checkpoint: all that ``restore`` needs, beside the job, to go on from here.

        Raises:
            ValueError: the story has failed.
        """
        return pack(state, self._fingerprint(state.job))

    def restore(self, job: StoryJob, data: bytes) -> StoryState:
        """Goes on from a checkpoint. On the CPU the story ends bitwise as if it had never stopped.

        Args:
            job: the one that the checkpoint was made of.
            data: what ``save`` returned, in this process or another.

        Raises:
            JobError: the job asks for what this package cannot do.
            CheckpointError: the data are damaged, or of another job, model or dtype; start the story anew.
        """
        state = self.encode(job)
        unpack(state, data, self._fingerprint(job))
        return state

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        """Whether an error that a call raised says that memory ran out: fewer rows at once may pass."""
        return is_out_of_memory(error)

    def take_peak_bytes(self) -> int | None:
        """The most device memory in use at once since the last call; None on the CPU."""
        return take_peak_bytes(self.device)

    def memory_bytes(self) -> int | None:
        """The device's memory in all; None on the CPU."""
        return memory_bytes(self.device)

    @property
    def compiled(self) -> bool:
        """Whether UNet calls are compiled: wanted, and not given up."""
        return self._runner.compiled

    # What another runtime does in its own way.

    def _prepare(self, components: Components, options: ExecutionOptions) -> None:
        """Makes the modules what the engine runs, in place.

        Raises:
            ValueError: the UNet is not of a form that AMSA is defined for.
        """
        self._layers = install_story_attention(components.unet)
        self._finest = finest_attention(components.unet)
        for module in (components.unet, components.vae, *components.controlnets.values()):
            if self.device.type == "cuda":
                fuse_group_norms(module)
            if options.channels_last:
                module.to(memory_format=torch.channels_last)

    def _with_adapter(self, package: ModelPackage, name: str) -> Any:
        """The UNet with an adapter's weights."""
        return self._with_weights(self._unet, load_adapter(package.adapter_file(name)), name)

    def _with_weights(self, unet: Any, weights: Mapping[str, Tensor], name: str) -> Any:
        """A second UNet with other weights for some; ``name`` says whose they are."""
        return with_adapter(unet, weights, name)

    def _call_of(self, unet: Any) -> UNetCall:
        """How a UNet takes what ``collate`` makes."""
        return partial(unet_pass, unet, self._rule, controlnets=self._controlnets)

    def _text_keys_values(self, variant: Variant, text: Tensor) -> TextKeysValues:
        """What is made of a story's text once, for all its steps."""
        return text_keys_values(self._variants.unet(variant), text)

    def _load_identity_adapters(self, package: ModelPackage) -> dict[str, IdentityAdapter]:
        """By name."""
        return load_identity_adapters(package, self._unet)

    def _load_loras(self, package: ModelPackage) -> dict[str, Changes]:
        """By name."""
        return {name: load_lora(package.folder / file) for name, file in self.manifest.loras.items()}

    def _part_finder(self) -> MapPartFinder:
        """What finds parts in references without a parser."""
        size = (self.manifest.defaults.width, self.manifest.defaults.height)
        return MapPartFinder(self._unet, self._decoder, self._text_encoder, self._schedule, self._rule, size)

    def _find_faces(self, picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The landmarks of the faces of a picture."""
        if self.reference_encoder is None:
            raise JobError(f"{self.manifest.name} has no encoders to find faces in poses with; leave the poses out")
        return [face.landmarks for face in self.reference_encoder.faces.faces(picture)]

    def _predict(self, states: Sequence[StoryState]) -> list[Prediction]:
        """One UNet call for all states, padded to a bucket where stories share calls."""
        bucket = self._options.bucket(sum(state.step_rows for state in states)) if self._one_call else None
        try:
            return predict(
                partial(self._runner.call, states[0].key.variant),
                states,
                None if bucket is None else capacity_of(states, bucket, self.manifest.limits, self._options.bucket),
            )
        except Exception as error:
            if is_out_of_memory(error):
                # Frames of the call that failed still hold its tensors.
                traceback.clear_frames(error.__traceback__)
                self._variants.clear()
                self._runner.release()
            raise

    def _fingerprint(self, job: StoryJob) -> str:
        return f"{self._package_fingerprint}-{self.runtime}-{self._unet.dtype}-{job_fingerprint(job)}"
