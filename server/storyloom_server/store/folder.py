"""The folder in which one server keeps its state: nobody else may use it meanwhile."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from storyloom_server.store.errors import StoreSetupError


class StateFolder:
    """A folder, locked for this process until ``close`` or its death. It is made if it does not exist.

    ``replica`` is the name of the server that has this state, the same after every restart.

    Raises:
        StoreSetupError: the folder cannot be written, or another server uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreSetupError(
                f"the state folder {self.path} cannot be used: {error.strerror}; "
                "choose another one, or change its rights"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreSetupError(
                f"another server uses the state folder {self.path}; stop it, or give this one a folder of its own"
            ) from error
        self.replica = self._read_replica()

    def close(self) -> None:
        """Lets others use the folder."""
        os.close(self._lock)

    def _read_replica(self) -> str:
        file = self.path / "replica"
        if not file.exists():
            partial = file.with_suffix(".partial")
            with partial.open("w", encoding="ascii") as target:
                target.write(uuid.uuid4().hex)
                target.flush()
                os.fsync(target.fileno())
            partial.replace(file)
        return file.read_text(encoding="ascii").strip()
