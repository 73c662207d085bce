"""Story methods: how the frames of a story come to look alike, one file each. ``names`` loads without torch."""
