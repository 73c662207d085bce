"""Settings keep their values, and their absence, on the way to the server and back."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from storyloom import Consistency, Frame, FreeU, Redenoising, Rounds, Settings, Solver, Story
from storyloom._wire import settings_from, story_message

_uint32 = st.integers(0, 2**32 - 1)
_size = st.none() | st.integers(1, 2**32 - 1)
_scale = st.none() | st.sampled_from([0.0, 0.6, 1.1, 4.0])
_settings = st.builds(
    Settings,
    model=st.text(max_size=20),
    steps=_size,
    guidance_scale=st.none() | st.decimals(1, 30, places=3).map(float),
    solver=st.none() | st.sampled_from(Solver),
    width=_size,
    height=_size,
    seed=st.none() | st.integers(0, 2**64 - 1),
    consistency=st.builds(
        Consistency,
        enabled=st.none() | st.booleans(),
        adapter=st.text(max_size=20),
        rounds=st.none()
        | st.builds(
            Rounds,
            count=st.none() | st.integers(1, 32),
            first_scale=st.none() | st.sampled_from([0.0, 0.3]),
            last_scale=st.none() | st.sampled_from([0.5, 2.0]),
        ),
        feature_injection=st.none() | st.booleans(),
    ),
    freeu=st.none() | st.builds(FreeU, enabled=st.none() | st.booleans(), b1=_scale, b2=_scale, s1=_scale, s2=_scale),
    redenoising=st.none()
    | st.builds(
        Redenoising,
        enabled=st.none() | st.booleans(),
        start=st.none() | st.sampled_from([0.0, 0.2, 0.75]),
        mask_margin=st.none() | st.integers(0, 512),
        mask_growth=st.none() | st.integers(0, 512),
        retries=st.none() | st.integers(0, 4),
    ),
    preview_interval=_uint32,
)


@given(_settings)
def test_settings_come_back_as_they_were(settings: Settings) -> None:
    message = story_message(Story(frames=(Frame(prompt="a"),), settings=settings))
    received = type(message).FromString(message.SerializeToString())
    assert settings_from(received.settings) == settings


@given(st.floats(1, 30, width=32))
def test_any_guidance_of_the_wire_is_kept_exactly(value: float) -> None:
    settings = Settings(guidance_scale=value)
    back = settings_from(story_message(Story(frames=(Frame(prompt="a"),), settings=settings)).settings)
    assert back.guidance_scale is not None
    assert struct.pack("f", back.guidance_scale) == struct.pack("f", value)
