"""A server to talk to, and a story to send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storyloom import Story, StoryClient
from tests.clients.blocking import BlockingClient, Connect
from tests.clients.scripted import ScriptedServer


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests may have one.
    monkeypatch.delenv("STORYLOOM_TOKEN", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer()
    yield running
    running.stop()


@pytest.fixture
def story() -> Story:
    return Story.model_validate(
        {
            "title": "A day out",
            "style": "an illustration of",
            "characters": {"mia": "a young woman", "tom": {"description": "an elderly man"}},
            "frames": ["{mia} is walking", {"prompt": "waving", "characters": ["tom"], "seed": 7}, "a lake"],
            "settings": {"steps": 4, "preview_interval": 2, "guidance_scale": 5.1},
        }
    )


@pytest.fixture(params=[StoryClient, BlockingClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Opens either client; both are used the same way."""
    opener: Connect = request.param
    return opener
