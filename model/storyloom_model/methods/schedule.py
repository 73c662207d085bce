"""Which steps of a run of ConsiStory do what. Plain numbers: loads without torch.

Of the authors' code, for a run of n steps that are counted from 0: queries are mixed in steps 1 to n / 10, features are
injected in steps n / 10 to n / 3, both ends included.
"""

_QUERY_PART, _FIRST_INJECTED, _LAST_INJECTED = 10, 10, 3


def mixed_steps(steps: int) -> range:
    """Steps that mix queries with those of a plain pass, and so take twice as many rows."""
    return range(1, steps // _QUERY_PART + 1)


def injected_steps(steps: int) -> range:
    """Steps of the second run that inject features of the first."""
    return range(steps // _FIRST_INJECTED, steps // _LAST_INJECTED + 1)
