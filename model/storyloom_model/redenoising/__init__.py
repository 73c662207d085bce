"""Re-denoising Identity Injection (IdentityStory): a second pass that gives the characters of a story their faces."""
