"""Who calls, and how much they may have: tokens become tenants, and tenants have limits.

``python -m storyloom_server.access new TENANT`` makes a token.
"""

import asyncio
import ipaddress
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from storyloom_server import errors
from storyloom_server.file_watch import FileWatch
from storyloom_server.logs import fields
from storyloom_server.rate_limit import TokenBucket
from storyloom_server.scheduler import Priority
from storyloom_server.tenants import ANONYMOUS_NAME, Tenant, TenantsFileError, digest, new_token, read_tenants

log = logging.getLogger("storyloom.access")

_WATCH_SECONDS = 2.0
# A rate of 60 a minute lets 10 through at once.
_BURST_SHARE = 1 / 6


class Gate:
    """Tells tenants apart by their tokens, and keeps them within their limits. For one event loop.

    Args:
        path: the tokens file; None: everybody is the one anonymous tenant.
        anonymous_admin: whether that one may load and unload models.
        clock: monotonic seconds.

    Raises:
        TenantsFileError: the file cannot be used.
    """

    def __init__(
        self, path: Path | None, *, anonymous_admin: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._anonymous = Tenant(ANONYMOUS_NAME, max_priority=Priority.HIGH, admin=anonymous_admin)
        self._watch = FileWatch([path] if path else [])
        self._tenants = read_tenants(path) if path else {}
        self._buckets: dict[str, tuple[float, TokenBucket]] = {}

    def tenant(self, metadata: Iterable[tuple[str, str | bytes]]) -> Tenant:
        """The tenant whose token the call brings, in ``authorization: Bearer TOKEN``.

        Raises:
            StoryError: UNAUTHENTICATED; there is no token, or not a known one.
        """
        if self._path is None:
            return self._anonymous
        given = [value for key, value in metadata if key == "authorization"]
        if not given:
            raise errors.unauthenticated(
                "TOKEN_MISSING", "the call brings no token; send it as metadata `authorization: Bearer TOKEN`"
            )
        scheme, _, token = str(given[0]).partition(" ")
        # Looked up by digest: how long that takes tells nothing about any token.
        tenant = self._tenants.get(digest(token.strip()))
        if len(given) > 1 or scheme.lower() != "bearer" or tenant is None:
            raise errors.unauthenticated(
                "TOKEN_UNKNOWN", "the token is not known here; ask for a new one, and send it as `Bearer TOKEN`"
            )
        return tenant

    def require_admin(self, tenant: Tenant) -> None:
        """Refuses whoever may not load and unload models."""
        if not tenant.admin:
            raise errors.permission_denied(
                "ADMIN_REQUIRED",
                tenant.name,
                f"{tenant.name} may not control models; use the token of a tenant that is admin",
            )

    def check_priority(self, tenant: Tenant, asked: Priority) -> None:
        """Refuses a priority above what the tenant may have."""
        if asked > tenant.max_priority:
            raise errors.permission_denied(
                "PRIORITY_TOO_HIGH",
                tenant.name,
                f"priority {asked.name.lower()} is too high; {tenant.max_priority.name.lower()} is allowed",
            )

    def count_story(self, tenant: Tenant) -> None:
        """Counts a new story against the tenant's rate, or refuses it."""
        if tenant.limits.stories_per_minute is not None:
            self._take(tenant, tenant.limits.stories_per_minute)

    def named(self, name: str) -> Tenant:
        """The tenant of this name, for stories that were accepted before; one without rights if it is gone."""
        known = (tenant for tenant in (self._anonymous, *self._tenants.values()) if tenant.name == name)
        return next(known, Tenant(name))

    def _take(self, tenant: Tenant, per_minute: float) -> None:
        rate, bucket = self._buckets.get(tenant.name, (0.0, None))
        if bucket is None or rate != per_minute:
            bucket = TokenBucket(per_minute / 60, per_minute * _BURST_SHARE, self._clock)
            self._buckets[tenant.name] = (per_minute, bucket)
        wait_seconds = bucket.take()
        if wait_seconds > 0:
            raise errors.quota_exceeded(
                "TOO_MANY_STORIES",
                tenant.name,
                f"more than {per_minute:g} stories a minute; try again in {wait_seconds:.3g} s",
                limit=per_minute,
                retry_seconds=wait_seconds,
            )

    def reload(self) -> bool:
        """Reads the tokens file again, on SIGHUP. A file that cannot be used changes nothing; False then."""
        if self._path is None:
            return True
        try:
            self._tenants = read_tenants(self._path)
        except TenantsFileError as error:
            log.error("the tokens file cannot be used; the old tokens stay", extra=fields(problem=str(error)))
            return False
        names = {tenant.name for tenant in self._tenants.values()}
        log.info("tokens read", extra=fields(tenants=len(names), tokens=len(self._tenants)))
        return True

    async def watch(self, seconds: float = _WATCH_SECONDS) -> None:
        """Reloads the file whenever it changes, until it is cancelled."""
        while self._path is not None:
            await asyncio.sleep(seconds)
            if self._watch.changed():
                self.reload()


def exposure_warning(host: str, *, tokens: bool, encrypted: bool) -> str | None:
    """What is unwise about listening on ``host`` like this, or None."""
    if _is_loopback(host) or encrypted:
        return None
    if tokens:
        return f"tokens are sent in the clear to {host}; give --tls-cert and --tls-key, or let a proxy encrypt"
    return f"anybody who can reach {host} can use the server; give --tokens, and --tls-cert and --tls-key"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: Sequence[str]) -> int:
    """Makes a token for a tenant; only its digest is to be kept."""
    match list(arguments):
        case ["new", name]:
            token = new_token()
            print(f"token, shown only now: {token}")
            print(f"for the tokens file:\n\ntenants:\n  {name}:\n    tokens:\n      - {digest(token)}")
            return 0
        case _:
            print("usage: python -m storyloom_server.access new TENANT", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
