"""A long story on the real server: do the last frames show who the first ones do, and does a frame cost the same?

`run` makes the stories and writes what it found (`python -m benchmarks.long`, `make long-story`); `figures` is what is
computed of them.
"""
