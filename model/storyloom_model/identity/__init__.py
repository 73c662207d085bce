"""Identity: from reference pictures of characters to streams of the UNet's cross-attention."""
