"""What keeps a server from starting, and is for its operator to put right."""


class SetupError(Exception):
    """The server cannot be set up as asked. The message says what is wrong and what to change."""
