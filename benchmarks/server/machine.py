"""On what the figures were measured."""

import os
import platform
from importlib.metadata import version
from typing import Any

from benchmarks.processor import processor


def facts() -> dict[str, Any]:
    """Hardware, versions, and how busy the machine was with other things."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "system": platform.system(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("grpcio", "protobuf", "torch", "sqlalchemy")},
    }
