"""The ``storyloom`` command."""

from storyloom.cli._app import app

__all__ = ["app"]
