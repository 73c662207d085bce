"""What runs in the engine process: one loop over a scheduler and the loaded models."""
