"""One tiny model package for all server tests, and databases for those of the store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from storyloom_model.package import MANIFEST_FILE
from tests.model.tiny import build_tiny_package
from tests.server.databases import PostgreSQL, postgresql
from tests.server.packages import with_references
from tests.server.serving import ServerProcess


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_package(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def identity_package(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_references(tiny_package, tmp_path_factory.mktemp("identity") / "identity")


@pytest.fixture(scope="session")
def pose_package(identity_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one that takes poses, too, by two ControlNets."""
    folder = tmp_path_factory.mktemp("poses") / "poses"
    shutil.copytree(identity_package, folder)
    file = folder / MANIFEST_FILE
    manifest = yaml.safe_load(file.read_text())
    manifest["name"] = "poses"
    manifest["controlnets"] = {
        "skeleton": {"folder": "controlnets/skeleton"},
        "face": {"folder": "controlnets/face", "kind": "identitynet", "adapter": "storynizor"},
    }
    file.write_text(yaml.safe_dump(manifest, sort_keys=False))
    for name in manifest["controlnets"]:
        (folder / "controlnets" / name).mkdir(parents=True)
        (folder / "controlnets" / name / "config.json").write_text("{}")
    return folder


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    return server.new_database()
