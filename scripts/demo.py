"""Runs the main job from nothing: the real server, the real client, both example stories, a clean stop."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORIES = ("examples/day-in-the-park.yaml", "examples/two-friends.yaml")


def wait_until_ready(server: subprocess.Popen[bytes], ready: Path, seconds: float) -> str:
    """Returns the server's address once it has written it.

    Raises:
        SystemExit: the server stopped, or took longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while not ready.exists():
        if server.poll() is not None:
            raise SystemExit(f"the server stopped with exit code {server.returncode}; its messages are above")
        if time.monotonic() > end:
            raise SystemExit(f"the server was not ready after {seconds:.0f} seconds")
        time.sleep(0.1)
    return ready.read_text().strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the pictures go")
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "storyloom-mini", help="the model package")
    options = parser.parse_args()
    storyloom = [sys.executable, "-m", "storyloom"]
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        print(f"starting the server with {options.model.name}", flush=True)
        command = [
            "serve",
            "--model",
            str(options.model),
            "--port",
            "0",
            "--ready-file",
            str(ready),
            "--log-level",
            "warning",
            "--state-folder",
            str(Path(folder) / "state"),
        ]
        server = subprocess.Popen([*storyloom, *command])
        try:
            address = wait_until_ready(server, ready, seconds=120)
            stories = [str(ROOT / story) for story in STORIES]
            # One after the other, so that the time shown for the first story is its own.
            for story in stories:
                code = subprocess.call([*storyloom, "generate", story, "--server", address, "--out", str(options.out)])
                if code:
                    return code
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=60)
    print(f"the server stopped cleanly (exit code {code}); the pictures are in {options.out}")
    return code


if __name__ == "__main__":
    sys.exit(main())
