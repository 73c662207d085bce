"""One tiny package, with identity adapters, and its export for all tests of this folder."""

from pathlib import Path

import pytest
import torch

from storyloom_export.artefact import Artefact, default_folder
from storyloom_export.onnx_files import export_package
from storyloom_model.package import ModelPackage
from tests.export.identities import add_identities
from tests.model.tiny import build_tiny_package


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder, with its export where the server looks for it. For reading only."""
    folder = add_identities(build_tiny_package(tmp_path_factory.mktemp("exported") / "tiny"))
    export_package(ModelPackage.load(folder), default_folder(folder))
    return folder


@pytest.fixture(scope="session")
def package(exported_package: Path) -> ModelPackage:
    return ModelPackage.load(exported_package)


@pytest.fixture(scope="session")
def artefact(package: ModelPackage) -> Artefact:
    return Artefact.load(default_folder(package.folder), package)
