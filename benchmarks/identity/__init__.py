"""Does the person of the reference pictures come back in the frames? Measured on people that no training saw."""
