"""Makes model packages of what others have published: `storyloom models add`."""
