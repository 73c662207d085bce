"""What can go wrong with the store. Each message says what is wrong and what to do."""


class StoreError(Exception):
    """Something is wrong with the store, or with what it was asked for."""


class StoreSetupError(StoreError):
    """The store cannot be opened as told."""


class StoreBusyError(StoreError):
    """Somebody else held the database for longer than a call waits. The same call may succeed later."""


class StoreUnavailableError(StoreError):
    """The database or the blob storage does not answer. The same call may succeed later."""


class StorageFullError(StoreError):
    """The disk, the quota of the file system or the database is full. Nothing of the call was stored."""


class NotFoundError(StoreError):
    """There is no such thing, or it belongs to another tenant."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"there is no {what} {name}; it never was, or its time to be kept is over")
        self.what = what
        self.name = name


class RequestMismatchError(StoreError):
    """The request id was used before, for another request."""

    def __init__(self, request_id: str, story_id: str) -> None:
        super().__init__(f"request_id {request_id} was used for another request before; make a new one")
        self.request_id = request_id
        self.story_id = story_id


class QuotaExceededError(StoreError):
    """The tenant has as much as it may have. ``what`` is "size_bytes" or "open_stories"."""

    def __init__(self, what: str, used: int, limit: int) -> None:
        super().__init__(f"{used} of {limit} {what} are in use; wait until stories are finished, or too old to be kept")
        self.what = what
        self.used = used
        self.limit = limit


class StoryLostError(StoreError):
    """The story ended, or another server owns it by now: stop working on it."""

    def __init__(self, story_id: str, why: str) -> None:
        super().__init__(f"story {story_id} {why}; stop working on it")
        self.story_id = story_id


class SequenceError(StoreError):
    """An event's number does not follow those before it."""


class PageTokenError(StoreError):
    """The page token does not come from an earlier page of the same list."""

    def __init__(self) -> None:
        super().__init__(
            "the page token is damaged, or belongs to another list; pass next_page_token of the page before, "
            "with the same filter, or none to start again"
        )


class BlobMissingError(StoreError):
    """The blob storage has nothing under this key."""


class BlobDamagedError(StoreError):
    """What lies in the blob storage is not what was put there."""
