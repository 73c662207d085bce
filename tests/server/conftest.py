"""One tiny model package for all server tests."""

from pathlib import Path

import pytest

from tests.model.tiny import build_tiny_package


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_package(tmp_path_factory.mktemp("tiny"))
