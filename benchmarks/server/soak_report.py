"""The picture of a soak run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_MIB = 1024 * 1024
_PANELS: tuple[tuple[str, tuple[tuple[str, str, float], ...]], ...] = (
    ("resident memory, MiB", (("server", "server_resident_bytes", _MIB), ("engine", "engine_resident_bytes", _MIB))),
    ("open files and threads", (
        ("files of the server", "server_open_files", 1), ("threads of the server", "server_threads", 1),
        ("files of the engine", "engine_open_files", 1), ("threads of the engine", "engine_threads", 1),
    )),
    ("store, MiB", (("database with its log", "database_bytes", _MIB), ("pictures and latents", "blob_bytes", _MIB))),
    ("open stories", (("open stories", "open_stories", 1),)),
)  # fmt: skip


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """One panel for each kind of thing that could grow."""
    minutes = [sample["seconds"] / 60 for sample in result["samples"]]
    figure, panels = plt.subplots(len(_PANELS), 1, figsize=(8, 9), sharex=True, layout="constrained")
    for panel, (title, lines) in zip(panels, _PANELS, strict=True):
        for label, name, unit in lines:
            panel.plot(minutes, [sample[name] / unit for sample in result["samples"]], label=label, linewidth=1)
        panel.set_title(title, loc="left", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=110)
    plt.close(figure)
