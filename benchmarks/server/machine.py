"""On what the figures were measured."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was with other things."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": platform.system(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("grpcio", "protobuf", "torch", "sqlalchemy")},
    }
