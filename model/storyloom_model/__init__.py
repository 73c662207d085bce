"""Story methods on diffusers modules: encode, step, decode.

``execution``, ``fingerprints``, ``jobs``, ``noise``, ``package``, ``prompts``, ``redenoising.plan`` and ``windows``
load without torch, so that a process which only checks requests stays small. Import the engine from
``storyloom_model.denoiser``.
"""

from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import AnchorFrame, FrameJob, StoryJob
from storyloom_model.package import ModelPackage, PackageError
from storyloom_model.prompts import ComposedPrompt, PromptError, check_prompt, compose

__all__ = [
    "AnchorFrame",
    "ComposedPrompt",
    "ExecutionOptions",
    "FrameJob",
    "ModelPackage",
    "PackageError",
    "PromptError",
    "StoryJob",
    "check_prompt",
    "compose",
]
