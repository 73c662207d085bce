"""A server process for a measurement, with a state folder of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(model: Path, *arguments: str) -> Iterator[str]:
    """Serves a model package, and gives the address. The server is gone afterwards.

    Args:
        model: folder of the package.
        arguments: more of the server's options.

    Raises:
        SystemExit: the server stopped before it was ready.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "storyloom_server", "--model", str(model), "--port", "0"]
        command += ["--state-folder", str(Path(folder) / "state"), "--ready-file", str(ready)]
        server = subprocess.Popen([*command, "--log-level", "warning", *arguments], stdout=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if server.poll() is not None:
                    raise SystemExit(f"the server stopped with exit code {server.returncode}")
                time.sleep(0.1)
            yield ready.read_text().strip()
        finally:
            server.terminate()
            server.wait(timeout=60)
