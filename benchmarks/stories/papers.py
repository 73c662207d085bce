"""What the papers' tables say of methods against each other, best first, and which figure here stands for theirs.

Their models, data and metrics are others; what can be compared is who comes before whom.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.stories.built_in import IDENTITY, IDENTITY_R, TEXT


@dataclass(frozen=True)
class Order:
    """A paper's order of methods.

    Attributes:
        source: paper and table.
        figure: as the paper calls it.
        column: key of the column that stands for it here.
        methods: names of `METHODS`, best first.
    """

    source: str
    figure: str
    column: str
    methods: tuple[str, ...]


_STORYNIZOR, _IDENTITYSTORY, _STORYMAKER = (
    "Storynizor, table {}",
    "IdentityStory, project page",
    "StoryMaker, section {}",
)

ORDERS: tuple[Order, ...] = (
    # Prompt only: 41.55, 30.84, 23.44 and 33.28, 30.01, 29.01.
    Order(_STORYNIZOR.format(2), "Face Sim", IDENTITY.key, ("amsa-mask", "consistory", "storydiffusion")),
    Order(_STORYNIZOR.format(2), "CLIP-T", TEXT.key, ("amsa-mask", "storydiffusion", "consistory")),
    # With a reference: 68.36, 39.64, 27.34, 26.57; 69.00, 36.46, 24.34, 20.57; 32.46, 32.42, 28.26, 25.44.
    Order(_STORYNIZOR.format(2), "Face Sim", IDENTITY.key, ("instantid", "storynizor", "photomaker", "ip-adapter")),
    Order(
        _STORYNIZOR.format(2), "Face Sim (R)", IDENTITY_R.key, ("instantid", "storynizor", "photomaker", "ip-adapter")
    ),
    Order(_STORYNIZOR.format(2), "CLIP-T", TEXT.key, ("photomaker", "storynizor", "ip-adapter", "instantid")),
    # 36.55, 31.90, 29.90 and 32.59, 32.51, 30.46.
    Order(_STORYNIZOR.format(4), "Face Sim", IDENTITY.key, ("amsa-mask", "amsa", "none")),
    Order(_STORYNIZOR.format(4), "CLIP-T", TEXT.key, ("amsa-mask", "amsa", "none")),
    # In words: above all others but InstantID.
    Order(_STORYMAKER.format("5.2"), "face similarity", IDENTITY_R.key, ("instantid", "storymaker", "ip-adapter")),
    Order(_STORYMAKER.format("5.2"), "face similarity", IDENTITY_R.key, ("instantid", "storymaker", "photomaker")),
    # 55.5, 27.1, 23.9, 23.5, 17.1 and 35.5, 35.4, 34.9, 34.3, 34.0.
    Order(
        _IDENTITYSTORY,
        "Face-Sim",
        IDENTITY.key,
        ("identitystory", "storydiffusion", "story-adapter", "oneprompt", "consistory"),
    ),
    Order(
        _IDENTITYSTORY,
        "CLIP-T",
        TEXT.key,
        ("consistory", "identitystory", "oneprompt", "story-adapter", "storydiffusion"),
    ),
    # 55.5, 47.9 and 35.4, 34.6.
    Order(_IDENTITYSTORY, "Face-Sim", IDENTITY.key, ("identitystory", "photomaker")),
    Order(_IDENTITYSTORY, "CLIP-T", TEXT.key, ("identitystory", "photomaker")),
    # In words: re-denoising from earlier on breaks the layout, from later on no longer changes the identity.
    Order(
        "IdentityStory, sweet spot",
        "identity",
        IDENTITY_R.key,
        ("identitystory", "identitystory@redenoising.start=0.6"),
    ),
    Order("IdentityStory, sweet spot", "text", TEXT.key, ("identitystory", "identitystory@redenoising.start=0")),
    # In words: 24.8 % more consistency than others.
    Order("Character-Adapter, abstract", "consistency", IDENTITY_R.key, ("character-adapter", "ip-adapter")),
)
"""Orders that somebody may want to see here again. Each is looked at as far as its methods are in the run."""
