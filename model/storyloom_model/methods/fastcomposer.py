"""FastComposer's delayed subject conditioning (Xiao et al. 2023; mit-han-lab/fastcomposer), with any identity adapter.

From the authors' code: every picture is made on its own. In the first (1 - 0.7) of the steps the text alone decides, so
that the layout follows it; from then on the subjects' looks come in. Reconstructed: the looks come as the streams of
the identity adapter that the story names, each in the region that the maps give its character, in place of
FastComposer's trained fusion of embeddings into tokens; its localisation of cross-attention is a training loss, and
these regions stand for it. A story without references is one of plain frames.
"""

from __future__ import annotations

from typing import ClassVar

from storyloom_model.methods.method import Method

TEXT_ONLY_PERCENT = 30


class FastComposer(Method):
    """Identities act late, and frames do not see each other."""

    crosses_frames: ClassVar[bool] = False

    def identity_weight(self, step: int, steps: int) -> float:
        return 0.0 if step * 100 <= steps * TEXT_ONLY_PERCENT else 1.0
