"""Blobs come back as they were put, or not at all: in a folder and in S3."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from storyloom_server.store.blobs import Blobs
from storyloom_server.store.errors import (
    BlobDamagedError,
    BlobMissingError,
    StoreSetupError,
    StoreUnavailableError,
)


@pytest.fixture(scope="module")
def s3() -> Iterator[ThreadedMotoServer]:
    """An S3-compatible server on loopback, with a bucket named stories."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="stories")
        yield server
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return Blobs(str(tmp_path / "blobs"))
    request.getfixturevalue("s3")
    return Blobs(f"s3://stories/{tmp_path.name}")


def test_blob_comes_back_until_deleted(blobs: Blobs) -> None:
    blobs.check("stories/check")
    assert list(blobs.list("stories")) == []
    key, other = blobs.put("stories/a/picture-0", b"png" * 1000), blobs.put("stories/b/latents-0", b"")
    assert blobs.put("stories/a/picture-0", b"png" * 1000) != key, "every blob has a key of its own"
    assert blobs.get(key) == b"png" * 1000
    assert blobs.get(other) == b""
    assert key in list(blobs.list("stories/a"))
    assert other not in list(blobs.list("stories/a"))
    assert len(list(blobs.list())) == 3
    blobs.delete([key, key, "stories/never/was"])
    with pytest.raises(BlobMissingError, match=key):
        blobs.get(key)


def test_listing_shows_what_another_server_wrote(blobs: Blobs) -> None:
    assert list(blobs.list()) == []
    storage_url = f"s3://{blobs._root}" if not blobs._is_local else blobs._root
    key = Blobs(storage_url).put("stories/a/picture-0", b"png")
    assert list(blobs.list()) == [key]


def test_damaged_blob_is_noticed(blobs: Blobs) -> None:
    key = blobs.put("stories/a/picture-0", b"png")
    blobs._storage.pipe_file(blobs._path(key), b"pnG")
    with pytest.raises(BlobDamagedError, match=key):
        blobs.get(key)


@pytest.mark.parametrize("stem", ["", "/etc/passwd", "../x", "stories/../../x", "stories//x", "a b", ".hidden", "a\n"])
def test_keys_stay_inside(blobs: Blobs, stem: str) -> None:
    with pytest.raises(ValueError, match="cannot begin a key"):
        blobs.put(stem, b"")


def test_unusable_storage_is_explained(s3: ThreadedMotoServer, tmp_path: Path) -> None:
    with pytest.raises(StoreSetupError, match="nosuch"):
        Blobs("nosuch://x")
    with pytest.raises(StoreUnavailableError, match="stories-nowhere/x does not exist in the blob storage; make it"):
        Blobs("s3://stories-nowhere/x").check("stories/check")
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="File exists"):
        Blobs(str(tmp_path / "file")).check("stories/check")


def test_silent_storage_is_explained(s3: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        Blobs("s3://stories/x").put("a", b"")


FILL = """
import resource, sys
from storyloom_server.store.blobs import Blobs
from storyloom_server.store.errors import StorageFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
blobs = Blobs(sys.argv[1])
key = blobs.put("a", b"x" * 100_000)
try:
    blobs.put("b", b"x" * 100_001)
except StorageFullError as error:
    assert "free some space" in str(error)
    assert list(blobs.list()) == [key], "nothing is left of what did not fit"
    sys.exit(7)
"""


def test_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "blobs")], check=False)
    assert done.returncode == 7
