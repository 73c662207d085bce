"""What can be wrong with the encoders of a package, as opposed to the references they are given."""

from __future__ import annotations


class EncodersError(Exception):
    """Encoders are not usable: a file or a library is missing, or a file is not what it should be. The message says
    what to do."""
