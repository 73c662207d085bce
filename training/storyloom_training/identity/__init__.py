"""Trains the identity encoders of the built-in model on procedural people, in the forms that published ones have."""
