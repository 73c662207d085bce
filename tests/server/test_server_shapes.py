"""Which jobs may take a step together."""

from dataclasses import replace
from typing import Any

import pytest

from storyloom_model.jobs import Identity
from storyloom_server import messages
from storyloom_server.engine.shapes import compatibility_key, story_spec
from tests.server.engines import job
from tests.server.null_backend import NullBackend

KEPT: list[dict[str, Any]] = [
    {"steps": 7}, {"guidance_scale": 1.0}, {"solver": "unipc"}, {"negative_prompt": "rain"}, {"adapter": ""},
    {"identity_adapter": "storynizor"}, {"loras": (("ink", 0.0),)}, {"method": "consistory"}, {"method": "storynizor"},
]  # fmt: skip
PARTED: list[dict[str, Any]] = [
    {"width": 64}, {"adapter": "amsa"}, {"loras": (("ink", 0.5),)},
    {"identities": (Identity("mia", b""),), "identity_adapter": "storynizor"}, {"method": "oneprompt"},
]  # fmt: skip


def test_the_order_of_loras_does_not_matter() -> None:
    loras = (("ink", 0.5), ("wash", 1.0))
    one, other = (replace(job(), loras=order) for order in (loras, loras[::-1]))
    assert compatibility_key("mini", one) == compatibility_key("mini", other)


@pytest.mark.parametrize("change", KEPT)
def test_what_may_differ(change: dict[str, Any]) -> None:
    assert compatibility_key("mini", replace(job(), **change)) == compatibility_key("mini", job())


def test_in_the_engine_references_part_jobs_only_where_weights_differ() -> None:
    mia = (Identity("mia", b""),)
    changes: list[dict[str, Any]] = [
        {}, {"identities": mia, "identity_adapter": "storynizor"}, {"identities": mia, "identity_adapter": "changing"},
    ]  # fmt: skip
    submits = [messages.Submit("job", "mini", replace(job(), **change)) for change in changes]
    plain, streams, changing = (story_spec(submit, NullBackend(0.0)).key for submit in submits)
    assert plain == streams != changing


def test_in_the_engine_methods_of_other_shapes_part_jobs() -> None:
    submits = [
        messages.Submit("job", "mini", replace(job(), method=method))
        for method in ("storynizor", "consistory", "oneprompt")
    ]
    plain, same, apart = (story_spec(submit, NullBackend(0.0)).key for submit in submits)
    assert plain == same != apart


@pytest.mark.parametrize("change", PARTED)
def test_what_must_not_differ(change: dict[str, Any]) -> None:
    assert compatibility_key("mini", replace(job(), **change)) != compatibility_key("mini", job())
