"""The methods that are compared: what each sets in a request. A new one is a line of `METHODS`.

A name may go on with settings to be changed: `identitystory@redenoising.start=0.4+steps=12`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from pydantic import ValidationError

from storyloom import Settings

ADAPTER, IDENTITY_ADAPTER = "adapter:", "identity:"
WITH, AND = "@", "+"
"""What stands between a method's name and its changes, and between these."""


@dataclass(frozen=True)
class Method:
    """A way to make stories.

    Attributes:
        about: a few words for the report.
        settings: changes of the request's settings, as `Story.with_settings` takes them.
        references: the characters' reference pictures are sent, where they have some.
        discovers: characters without a reference are found by the server first, from their descriptions.
    """

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    references: bool = False
    discovers: bool = False


def _shared(adapter: str) -> dict[str, Any]:
    return {"consistency": {"enabled": True, "adapter": adapter}, "identity_adapter": "none"}


def _told(method: str) -> dict[str, Any]:
    """A method that needs no training, on the base weights."""
    return {"consistency": {"enabled": True, "adapter": "none", "method": method}, "identity_adapter": "none"}


def _shown(identity_adapter: str, **more: Any) -> dict[str, Any]:
    """References, on top of the attention across frames that the package has by default."""
    return {"identity_adapter": identity_adapter} | more


_ALONE = {"enabled": False}


METHODS: dict[str, Method] = {
    "default": Method("all as the model package has it"),
    "none": Method("every frame on its own", {"consistency": {"enabled": False, "adapter": "none"}}),
    "amsa": Method("auto-mask self-attention", _shared("amsa")),
    "amsa-mask": Method("auto-mask self-attention, trained with the mask loss", _shared("amsa-mask")),
    "storydiffusion": Method("random positions of the first four frames", _told("storydiffusion")),
    "consistory": Method(
        "the characters of the first two frames, thinned out; a second run with features of the first; FreeU",
        {
            "consistency": {"adapter": "none", "method": "consistory", "feature_injection": True},
            "freeu": {"enabled": True},
            "identity_adapter": "none",
        },
    ),
    "oneprompt": Method("all frames told of in one text", _told("oneprompt")),
    "storynizor": Method(
        "auto-mask self-attention and references by the ID-Injector", _shown("storynizor"), references=True
    ),
    "storymaker": Method(
        "auto-mask self-attention and references by StoryMaker", _shown("storymaker"), references=True
    ),
    "ip-adapter": Method(
        "references by IP-Adapter, every frame on its own",
        _shown("ip-adapter", consistency=_ALONE),
        references=True,
    ),
    "photomaker": Method(
        "persons of references fused into the text by PhotoMaker, every frame on its own",
        _shown("photomaker", consistency=_ALONE),
        references=True,
    ),
    "instantid": Method(
        "references by InstantID and its IdentityNet, every frame on its own",
        _shown("instantid", consistency=_ALONE),
        references=True,
    ),
    "character-adapter": Method(
        "references by IP-Adapter, a stream for each part of a character, every frame on its own",
        _shown("character-adapter", consistency=_ALONE),
        references=True,
    ),
    "fastcomposer": Method(
        "references by the ID-Injector from three tenths of the steps on, every frame on its own",
        _shown("storynizor", consistency={"method": "fastcomposer"}),
        references=True,
    ),
    "story-adapter": Method(
        "five rounds (the authors: eleven), each with the pictures of the one before as references of an IP-Adapter",
        {"consistency": {"enabled": True, "adapter": "none", "method": "story-adapter", "rounds": {"count": 5}}},
    ),
    "identitystory": Method(
        "references, or discovered characters where there are none, by the ID-Injector in a second pass, in their own "
        "places",
        _shown("storynizor", consistency=_ALONE, redenoising={"enabled": True}),
        references=True,
        discovers=True,
    ),
}
"""Method name -> what to set."""


def method(name: str) -> Method:
    """The method of a name: one of `METHODS`, `adapter:NAME` for any adapter of the served model, or `identity:NAME`
    for any of its identity adapters, which is sent references. `@SETTING=VALUE+SETTING=VALUE` behind it changes its
    settings.

    Raises:
        ValueError: there is no such method or setting, or a value is out of its range.
    """
    known, _, changes = name.partition(WITH)
    found = _named(known)
    return replace(found, about=f"{found.about}; {changes}", settings=_changed(found, changes)) if changes else found


def _named(name: str) -> Method:
    if name in METHODS:
        return METHODS[name]
    if name.startswith(ADAPTER):
        adapter = name.removeprefix(ADAPTER)
        return Method(f"the adapter {adapter}", _shared(adapter))
    if name.startswith(IDENTITY_ADAPTER):
        adapter = name.removeprefix(IDENTITY_ADAPTER)
        return Method(f"references by {adapter}", {"identity_adapter": adapter}, references=True)
    raise ValueError(
        f"there is no method {name!r}; choose from {', '.join(METHODS)}, {ADAPTER}NAME and {IDENTITY_ADAPTER}NAME"
    )


def _changed(found: Method, changes: str) -> dict[str, Any]:
    """The settings of a method with changes as `redenoising.start=0.4+steps=12` in them, checked."""
    settings = dict(found.settings)
    for change in changes.split(AND):
        path, equals, value = change.partition("=")
        outer, _, inner = path.partition(".")
        if not (equals and path):
            raise ValueError(f"{change!r} changes no setting; write SETTING=VALUE or SETTING.SETTING=VALUE")
        given = yaml.safe_load(value)
        settings[outer] = {**settings.get(outer, {}), inner: given} if inner else given
    try:
        Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{changes}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return settings


def evaluations(settings: Settings) -> float:
    """UNet evaluations of one frame as its settings tell: a row a step for each guidance branch, in every round.

    What a method does beside that (a second pass, the anchors of later windows) only the server knows.

    Args:
        settings: with every default filled in.
    """
    branches = 1 if settings.guidance_scale == 1 else 2
    rounds = settings.consistency.rounds
    return float((settings.steps or 0) * branches * ((rounds.count or 1) if rounds is not None else 1))
