"""The encoders of references: what faces, pictures and masks say of a character."""
