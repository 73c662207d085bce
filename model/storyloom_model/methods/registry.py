"""The story methods that stories may name."""

from __future__ import annotations

from collections.abc import Mapping

from storyloom_model.methods.consistory import ConsiStory
from storyloom_model.methods.fastcomposer import FastComposer
from storyloom_model.methods.method import Method
from storyloom_model.methods.names import MethodName
from storyloom_model.methods.oneprompt import OnePrompt
from storyloom_model.methods.storyadapter import StoryAdapter
from storyloom_model.methods.storydiffusion import StoryDiffusion

REGISTRY: Mapping[MethodName, Method] = {
    "storynizor": Method(),
    "storydiffusion": StoryDiffusion(),
    "consistory": ConsiStory(),
    "oneprompt": OnePrompt(),
    "fastcomposer": FastComposer(),
    "story-adapter": StoryAdapter(),
}
