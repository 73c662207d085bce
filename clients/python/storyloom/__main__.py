"""``python -m storyloom`` is the ``storyloom`` command."""

from storyloom.cli import app

if __name__ == "__main__":
    app()
