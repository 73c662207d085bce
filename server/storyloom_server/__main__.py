"""``python -m storyloom_server``."""

from storyloom_server.main import main

# The engine process imports this module again, under another name.
if __name__ == "__main__":
    raise SystemExit(main())
