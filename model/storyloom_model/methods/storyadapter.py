"""Story-Adapter (Mao et al., "Story-Adapter: A Training-free Iterative Framework for Long Story Visualization", 2024;
UCSC-VLAA/story-adapter), with an IP-Adapter of the model package.

From the authors' code: the story is made eleven times, frame by frame. The first round is made from the text alone. In
every later one each frame attends, in all cross-attention layers and all steps, to the image-prompt tokens of all
pictures of the round before, in one softmax over all tokens; what that says is added to the text's attention with a
weight that goes from 0.3 in the second round to 0.5 in the last in even steps. Under the negative prompt each picture
counts as an empty one. Frames see nothing else of each other, and each frame keeps its noise in all rounds.

Here a frame has its own seed, where the code makes all with one. Rounds are of the server (``rounds`` and
``StoryJob.global_references``): a job of this method is one window of one of them.
"""

from __future__ import annotations

from typing import ClassVar

from storyloom_model.methods.method import Method


class StoryAdapter(Method):
    """Frames do not see each other; in later rounds they see all pictures of the round before."""

    crosses_frames: ClassVar[bool] = False
