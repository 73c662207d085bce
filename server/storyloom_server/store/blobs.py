"""Pictures and latents by key: in a local folder, or wherever fsspec can write, such as S3.

A blob is never changed: every ``put`` makes a new key. The key ends in the SHA-256 of its content, which is checked
when it is read. In a local folder a blob is on the disk, under its name and complete, when ``put`` returns.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from storyloom_server.store.errors import (
    BlobDamagedError,
    BlobMissingError,
    StorageFullError,
    StoreSetupError,
    StoreUnavailableError,
)

_STEM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Blobs:
    """Blobs under one URL. All methods block, and may be called from any thread.

    Args:
        url: a folder (``/folder`` or ``file:///folder``), ``s3://bucket/prefix``, or another URL that fsspec knows.
            Credentials come from where the storage's own tools look for them, such as AWS_ACCESS_KEY_ID.

    Raises:
        StoreSetupError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            # Listings must show what other servers wrote.
            self._storage, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise StoreSetupError(f"{url} needs another package: {error}; for S3 install storyloom[s3]") from error
        except ValueError as error:
            raise StoreSetupError(f"blobs cannot be kept in {url}: {error}") from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._storage, LocalFileSystem)

    def put(self, stem: str, data: bytes) -> str:
        """Stores ``data`` under a new key that begins with ``stem``, and returns the key.

        Raises:
            StorageFullError, StoreUnavailableError: nothing is stored under any key that anybody knows.
        """
        if not _STEM.fullmatch(stem):
            raise ValueError(f"{stem!r} cannot begin a key: use letters, digits, '.', '_' and '-' between slashes")
        key = f"{stem}-{uuid.uuid4().hex[:12]}.{_digest(data)}"
        with _telling_errors(key):
            if self._is_local:
                _write_whole(Path(self._path(key)), data)
            else:
                self._put_away(key, data)
        return key

    def check(self, stem: str) -> None:
        """Makes sure that blobs can be written, read and deleted, by doing so with one under ``stem``.

        Raises:
            StorageFullError, StoreUnavailableError: they cannot.
        """
        key = self.put(stem, b"a blob to check the storage")
        self.get(key)
        self.delete([key])

    def get(self, key: str) -> bytes:
        """The blob of this key.

        Raises:
            BlobMissingError: there is none.
            BlobDamagedError: its content is not what was put there.
            StoreUnavailableError: the storage does not answer.
        """
        with _telling_errors(key):
            data: bytes = self._storage.cat_file(self._path(key))
        if _digest(data) != key.rpartition(".")[2]:
            raise BlobDamagedError(f"blob {key} is damaged on its storage; restore it from a backup")
        return data

    def delete(self, keys: Collection[str]) -> None:
        """Deletes blobs; those that do not exist are no error."""
        for key in keys:
            with _telling_errors(key):
                try:
                    self._storage.rm_file(self._path(key))
                except FileNotFoundError:
                    continue

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key in the folder ``prefix``, with leftovers of interrupted writes.

        It lists one folder at a time, so that it holds the names of one folder, however many blobs there are.
        """
        folders = [f"{self._root}/{prefix}".rstrip("/")]
        while folders:
            folder = folders.pop()
            inner, files = self._list_folder(folder)
            folders += inner
            yield from (path.removeprefix(f"{self._root}/") for path in files)

    def _list_folder(self, folder: str) -> tuple[Sequence[str], Sequence[str]]:
        """Paths of the folders and of the files in a folder; none if it does not exist."""
        inner: list[str] = []
        files: list[str] = []
        with _telling_errors(folder):
            try:
                entries = self._storage.ls(folder, detail=True)
            except FileNotFoundError:
                entries = []
        for entry in entries:
            (inner if entry["type"] == "directory" else files).append(entry["name"].rstrip("/"))
        return [path for path in inner if path != folder], files

    def _put_away(self, key: str, data: bytes) -> None:
        try:
            self._storage.pipe_file(self._path(key), data)
        except FileNotFoundError as error:
            raise StoreUnavailableError(f"{self._root} does not exist in the blob storage; make it first") from error

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a file aside, then renames it; both are on the disk afterwards."""
    _make_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as target:
            target.write(data)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Makes a folder, and those around it, so that a power cut does not take their names away."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _telling_errors(key: str) -> Iterator[None]:
    """Turns errors of the storage into the store's."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissingError(f"blob {key} is not in the storage") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError("the disk of the blob storage is full; free some space") from error
        raise StoreUnavailableError(f"the blob storage does not answer: {_first_line(error)}") from error
    except _CLIENT_ERRORS as error:
        raise StoreUnavailableError(f"the blob storage does not answer: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _client_errors() -> tuple[type[Exception], ...]:
    """What s3fs lets through beside OSError."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        return ()
    return (BotoCoreError, ClientError)


_CLIENT_ERRORS = _client_errors()
