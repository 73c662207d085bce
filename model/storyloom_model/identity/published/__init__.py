"""Readers of published files: IP-Adapter and its FaceID forms, InstantID, StoryMaker, LoRA."""
