"""The models that this server serves, as far as the service process needs to know them: no weights, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyloom.v1 import model_service_pb2, story_pb2
from storyloom_model.manifest import NO_ADAPTER, Manifest
from storyloom_model.package import ModelPackage, PackageError

SOLVERS = {
    "ddim": story_pb2.SOLVER_DDIM,
    "euler": story_pb2.SOLVER_EULER,
    "unipc": story_pb2.SOLVER_UNIPC,
}


class CatalogError(Exception):
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

    def describe(self, *, is_default: bool) -> model_service_pb2.Model:
        """The model as clients see it."""
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
                consistency=story_pb2.Consistency(enabled=True, adapter=self.default_adapter),
            ),
            limits=model_service_pb2.Limits(
                max_frames=limits.max_frames,
                max_characters=limits.max_characters,
                max_steps=limits.max_steps,
                max_prompt_tokens=limits.max_prompt_tokens,
            ),
            solvers=list(SOLVERS.values()),
            adapters=self.adapters,
        )


@dataclass(frozen=True, slots=True)
class ModelCatalog:
    """The served models; the first is the default one. Names are unique."""

    models: tuple[ServedModel, ...]

    @classmethod
    def load(cls, folders: Sequence[Path]) -> ModelCatalog:
        """Reads the packages in ``folders``, at least one.

        Raises:
            CatalogError: a folder is not a usable package, or two packages have the same name.
        """
        models = tuple(ServedModel.load(folder) for folder in folders)
        names = [model.name for model in models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CatalogError(f"two model packages are named {twice}; change `name` in one storyloom.yaml")
        return cls(models)

    @property
    def default(self) -> ServedModel:
        """The model used when a request names none."""
        return self.models[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, the default one first."""
        return tuple(model.name for model in self.models)

    def find(self, name: str) -> ServedModel | None:
        """The model of this name, the default one for "", or None."""
        if not name:
            return self.default
        return next((model for model in self.models if model.name == name), None)

    def describe(self) -> Sequence[model_service_pb2.Model]:
        """The models as clients see them."""
        return [model.describe(is_default=model is self.default) for model in self.models]
