"""Row counts that a batch step is padded to, so that a device sees few different shapes."""

_LARGE = 16


def bucket(rows: int) -> int:
    """The row count that ``rows`` are padded to: 1, 2, 4, 8, 16, then multiples of 16."""
    if rows > _LARGE:
        return -(-rows // _LARGE) * _LARGE
    return 1 << max(rows - 1, 0).bit_length()
