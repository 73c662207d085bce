"""What is kept of a finished frame comes back as it was."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server.frames import FinishedFrame

frames = st.builds(
    FinishedFrame,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    latents=st.binary(max_size=200),
    looks=st.dictionaries(st.text(max_size=20), st.binary(max_size=60), max_size=5),
)


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: FinishedFrame) -> None:
    back = FinishedFrame.from_bytes(frame.to_bytes())
    assert back == frame
    assert list(back.looks) == list(frame.looks)


@given(st.dictionaries(st.text(min_size=1), st.lists(st.floats(width=32, allow_nan=False), max_size=9), max_size=3))
def test_looks_are_arrays_again(looks: dict[str, list[float]]) -> None:
    frame = FinishedFrame(8, 8, b"", {name: np.array(look, "<f4").tobytes() for name, look in looks.items()})
    found = FinishedFrame.from_bytes(frame.to_bytes()).looks_by_name
    assert {name: look.tolist() for name, look in found.items()} == looks
