"""The models that this server serves, as far as the service process needs to know them: no weights, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyloom.v1 import model_service_pb2, story_pb2
from storyloom_model.manifest import NO_ADAPTER, Manifest
from storyloom_model.methods.names import METHODS
from storyloom_model.methods.rounds import ADAPTERS, ROUNDS
from storyloom_model.package import ModelPackage, PackageError
from storyloom_server.reference_pictures import MAX_REFERENCES
from storyloom_server.setup_error import SetupError

SOLVERS = {
    "ddim": story_pb2.SOLVER_DDIM,
    "euler": story_pb2.SOLVER_EULER,
    "unipc": story_pb2.SOLVER_UNIPC,
}

PARTS = {
    "face": story_pb2.IDENTITY_PART_FACE,
    "hair": story_pb2.IDENTITY_PART_HAIR,
    "clothes": story_pb2.IDENTITY_PART_CLOTHES,
    "body": story_pb2.IDENTITY_PART_BODY,
}

CONTROL_KINDS = {
    "pose": story_pb2.CONTROL_KIND_POSE,
    "identitynet": story_pb2.CONTROL_KIND_IDENTITYNET,
}

# As in the manifest; it keeps a name from a request inside the model folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CatalogError(SetupError):
    """The models cannot be served as asked. The message says what to change."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model package's manifest and tokenizer."""

    folder: Path
    manifest: Manifest
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> ServedModel:
        """Reads the package in ``folder``.

        Raises:
            CatalogError: it is not a usable model package.
        """
        try:
            package = ModelPackage.load(folder)
        except PackageError as error:
            raise CatalogError(str(error)) from error
        return cls(folder, package.manifest, package.load_tokenizer())

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.manifest.name

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters that a story may name; "none" is the package's weights as they are."""
        return (*self.manifest.adapters, NO_ADAPTER)

    @property
    def default_adapter(self) -> str:
        """The adapter of stories that name none."""
        return self.manifest.defaults.adapter or NO_ADAPTER

    @property
    def methods(self) -> tuple[str, ...]:
        """Story methods that a story may name; that of rounds where something takes whole pictures."""
        return tuple(method for method in METHODS if method != ROUNDS or self.round_adapters)

    @property
    def round_adapters(self) -> tuple[str, ...]:
        """Identity adapters that take whole pictures, that of stories that name none first."""
        if self.manifest.encoders is None:
            return ()
        able = [name for name, adapter in self.manifest.identity_adapters.items() if adapter.method in ADAPTERS]
        return tuple(sorted(able, key=lambda name: name != self.default_identity_adapter))

    @property
    def default_method(self) -> str:
        """The story method of stories that name none."""
        return self.manifest.method

    @property
    def identity_adapters(self) -> Mapping[str, Sequence[str]]:
        """Identity adapters that a story may name, beside "none", and the parts that each can take over."""
        return {name: adapter.keeps for name, adapter in self.manifest.identity_adapters.items()}

    @property
    def default_identity_adapter(self) -> str:
        """The identity adapter of stories that name none."""
        return self.manifest.defaults.identity_adapter or NO_ADAPTER

    @property
    def controlnets(self) -> Mapping[str, str]:
        """ControlNets that a pose may name, the one of poses that name none first, and their kinds."""
        return {name: controlnet.kind for name, controlnet in self.manifest.controlnets.items()}

    def size_of(self, settings: story_pb2.Settings) -> tuple[int, int]:
        """Width and height that settings ask for, be they served or not."""
        defaults = self.manifest.defaults
        return (
            settings.width if settings.HasField("width") else defaults.width,
            settings.height if settings.HasField("height") else defaults.height,
        )

    def candidate_settings(self) -> story_pb2.Settings:
        """What the package says of candidates of a discovery, where that is not what it says of stories."""
        said = self.manifest.discovery
        solver = None if said.solver is None else SOLVERS[said.solver]
        freeu = story_pb2.FreeU(enabled=True) if said.freeu else None
        return story_pb2.Settings(steps=said.steps, guidance_scale=said.guidance_scale, solver=solver, freeu=freeu)

    def describe(self, *, is_default: bool, max_request_bytes: int) -> model_service_pb2.Model:
        """The model as clients see it. ``max_request_bytes`` is the server's."""
        defaults, limits = self.manifest.defaults, self.manifest.limits
        return model_service_pb2.Model(
            name=self.name,
            description=self.manifest.description,
            is_default=is_default,
            sizes=[model_service_pb2.ImageSize(width=width, height=height) for width, height in self.manifest.sizes],
            defaults=story_pb2.Settings(
                model=self.name,
                steps=defaults.steps,
                guidance_scale=defaults.guidance_scale,
                solver=SOLVERS[defaults.solver],
                width=defaults.width,
                height=defaults.height,
                consistency=story_pb2.Consistency(
                    enabled=True, adapter=self.default_adapter, method=self.default_method
                ),
                identity_adapter=self.default_identity_adapter,
                freeu=story_pb2.FreeU(enabled=False, **self.manifest.freeu.model_dump()),
            ),
            limits=model_service_pb2.Limits(
                max_frames=limits.max_frames,
                max_characters=limits.max_characters,
                max_steps=limits.max_steps,
                max_prompt_tokens=limits.max_prompt_tokens,
                window_frames=limits.window_frames,
                max_references=MAX_REFERENCES,
                max_request_bytes=max_request_bytes,
            ),
            solvers=list(SOLVERS.values()),
            adapters=self.adapters,
            identity_adapters=[
                model_service_pb2.IdentityAdapter(name=name, keeps=[PARTS[part] for part in keeps])
                for name, keeps in self.identity_adapters.items()
            ],
            loras=list(self.manifest.loras),
            methods=self.methods,
            controlnets=[
                model_service_pb2.ControlNet(name=name, kind=CONTROL_KINDS[kind])
                for name, kind in self.controlnets.items()
            ],
            discovery=model_service_pb2.Discovery(
                settings=self.candidate_settings(), negative_prompt=self.manifest.discovery.negative_prompt
            ),
            character_finder=self.manifest.character_finder is not None,
        )


class ModelCatalog:
    """The served models; the first is the default one. Names are unique.

    Args:
        models: at least one.
        folders: where packages lie that may be loaded later, each in a folder of its model's name.
    """

    def __init__(self, models: Sequence[ServedModel], folders: Sequence[Path] = ()) -> None:
        self._models = list(models)
        self._folders = tuple(folders)

    @classmethod
    def load(cls, packages: Sequence[Path], folders: Sequence[Path] = ()) -> ModelCatalog:
        """Reads the packages, at least one.

        Raises:
            CatalogError: a folder is not a usable package, or two packages have the same name.
        """
        models = [ServedModel.load(package) for package in packages]
        names = [model.name for model in models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CatalogError(f"two model packages are named {twice}; change `name` in one storyloom.yaml")
        return cls(models, folders)

    @property
    def models(self) -> Sequence[ServedModel]:
        """The models, the default one first."""
        return tuple(self._models)

    @property
    def default(self) -> ServedModel:
        """The model used when a request names none."""
        return self._models[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, the default one first."""
        return tuple(model.name for model in self._models)

    def find(self, name: str) -> ServedModel | None:
        """The model of this name, the default one for "", or None."""
        if not name:
            return self.default
        return next((model for model in self._models if model.name == name), None)

    def load_available(self, name: str) -> ServedModel | None:
        """Reads the package of this name from the model folders; None when there is none.

        Raises:
            CatalogError: it is not a usable package, or has another name inside.
        """
        if not _NAME.fullmatch(name):
            return None
        folder = next((folder / name for folder in self._folders if (folder / name).is_dir()), None)
        if folder is None:
            return None
        model = ServedModel.load(folder)
        if model.name != name:
            raise CatalogError(f"the package in the folder {name} is named {model.name}; rename one of them")
        return model

    def add(self, model: ServedModel) -> None:
        """Serves another model from now on."""
        if self.find(model.name) is None:
            self._models.append(model)

    def remove(self, model: ServedModel) -> None:
        """Serves a model no more."""
        self._models.remove(model)
