"""Picture quality: do made stories show what their prompts say, with the same person in every frame?

`reader` trains a small network that names what a picture shows; `run` makes stories and scores them with it.
"""
