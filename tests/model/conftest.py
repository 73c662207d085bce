from pathlib import Path

import pytest
import torch

from storyloom_model.denoiser import Denoiser
from tests.model.tiny import build_tiny_package
from tests.model.tiny_control import build_control_package
from tests.model.tiny_identity import build_identity_package


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For reading only."""
    return build_tiny_package(tmp_path_factory.mktemp("packages") / "tiny")


@pytest.fixture(scope="session")
def denoiser(tiny_package: Path) -> Denoiser:
    return Denoiser.load(tiny_package)


@pytest.fixture(scope="session")
def identity_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For reading only."""
    return build_identity_package(tmp_path_factory.mktemp("packages") / "tiny-identity")


@pytest.fixture(scope="session")
def identity_denoiser(identity_package: Path) -> Denoiser:
    return Denoiser.load(identity_package)


@pytest.fixture(scope="session")
def control_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For reading only."""
    return build_control_package(tmp_path_factory.mktemp("packages") / "tiny-control")


@pytest.fixture(scope="session")
def control_denoiser(control_package: Path) -> Denoiser:
    return Denoiser.load(control_package)
