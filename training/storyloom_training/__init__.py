"""Training of Storyloom's models: procedural data, losses and trainers on plain PyTorch."""
