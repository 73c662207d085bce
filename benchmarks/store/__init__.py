"""What it costs to keep stories."""
