"""Readers of published files: IP-Adapter and its FaceID forms, InstantID, StoryMaker, LoRA."""

from storyloom_model.identity.published.adapters import METHODS, read_adapter
from storyloom_model.identity.published.files import read_weights, sha256
from storyloom_model.identity.published.forms import Form, detect
from storyloom_model.identity.published.layers import AttentionLayer, attention_layers

__all__ = ["METHODS", "AttentionLayer", "Form", "attention_layers", "detect", "read_adapter", "read_weights", "sha256"]
