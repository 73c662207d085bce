"""Trains identity adapters of the built-in model: what makes streams of the encoders' features."""
