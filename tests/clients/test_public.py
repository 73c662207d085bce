"""The public face: its names, its version, and that it stands without the model's dependencies."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import storyloom

_ROOT = Path(__file__).resolve().parents[2]

_IMPORT_ALL = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "numpy", "diffusers", "transformers", "storyloom_server",
                                      "storyloom_model", "storyloom_kernels", "storyloom_training"}:
            raise ImportError("the client must not import " + name)

sys.meta_path.insert(0, Refuse())
import storyloom
names = [info.name for info in pkgutil.walk_packages(storyloom.__path__, "storyloom.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_the_exported_names_are_pinned() -> None:
    assert sorted(storyloom.__all__) == [
        "Accepted",
        "AsyncStoryClient",
        "Blend",
        "Character",
        "CharacterRecord",
        "Consistency",
        "ControlKind",
        "DeadlineRefused",
        "DiscoveryLoop",
        "Done",
        "ErrorDetails",
        "FailedPrecondition",
        "FailureRecord",
        "Frame",
        "FrameDone",
        "FreeU",
        "Health",
        "InvalidRequest",
        "InvalidStory",
        "Keep",
        "Limits",
        "ModelInfo",
        "NotFound",
        "OnDisconnect",
        "PermissionDenied",
        "Picture",
        "Pose",
        "Preview",
        "Priority",
        "Problem",
        "Progress",
        "Redenoising",
        "Reference",
        "RequestIdReused",
        "RetryPolicy",
        "Role",
        "Rounds",
        "ServerBusy",
        "ServerError",
        "ServerUnavailable",
        "Settings",
        "Solver",
        "Stage",
        "Story",
        "StoryCancelled",
        "StoryClient",
        "StoryEvent",
        "StoryFailed",
        "StoryFileError",
        "StoryRecord",
        "StoryResult",
        "StoryState",
        "StoryTimeout",
        "StoryloomError",
        "Timings",
        "TlsOptions",
        "Unauthenticated",
        "Violation",
        "__version__",
    ]
    assert all(hasattr(storyloom, name) for name in storyloom.__all__)


def test_every_client_module_imports_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL],
        env={"PYTHONPATH": str(_ROOT / "clients" / "python")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == storyloom.__version__
