"""Shares the device between tenants by weight: whoever has had least of its share goes next.

Every tenant has a virtual time: the device seconds that it used, divided by its weight. The backlogged tenant with the
least opens the next batch, and what a batch costs is charged to all whose stories were in it. This is deficit round
robin with the quantum taken to nothing: no tenant that always has work is behind another by more than one batch.

What is not carried over: time in which a tenant had nothing to do (it comes back level with the one served last), and
debts and claims beyond ``debt_seconds`` (a tenant that used what others left is not made to wait for ever for it).
"""

from __future__ import annotations

from collections.abc import Iterable


class FairShare:
    """Virtual times of tenants.

    Args:
        debt_seconds: how far in device seconds (at weight 1) a tenant can be ahead of the one served last, or behind.

    Raises:
        ValueError: ``debt_seconds`` is not positive.
    """

    def __init__(self, debt_seconds: float = 30.0) -> None:
        if not debt_seconds > 0:
            raise ValueError(f"debt_seconds is {debt_seconds}; set it above 0")
        self._debt = debt_seconds
        self._now = 0.0
        self._used: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def join(self, tenant: str, weight: float) -> None:
        """The tenant has work, or work again. Its weight is the newest one given."""
        if tenant not in self._weights:
            self._used[tenant] = max(self._used.get(tenant, self._now), self._now)
        self._weights[tenant] = weight

    def leave(self, tenant: str) -> None:
        """The tenant has no work left. It is forgotten unless it is in debt; so are others whose debt is over."""
        del self._weights[tenant]
        for name in [name for name, used in self._used.items() if name not in self._weights and used <= self._now]:
            del self._used[name]

    def used(self, tenant: str) -> float:
        """The tenant's virtual time in seconds."""
        return self._used[tenant]

    def after(self, tenant: str, seconds: float) -> float:
        """The virtual time that a charge would bring the tenant to, before debt is bounded."""
        return self._used[tenant] + seconds / self._weights[tenant]

    def order(self, tenants: Iterable[str]) -> list[str]:
        """These tenants, the one entitled to the device first; ties by name."""
        return sorted(tenants, key=lambda tenant: (self._used[tenant], tenant))

    def serve(self, tenant: str) -> None:
        """The tenant opens a batch: nobody who comes back later may claim time from before this.

        Its own claim is bounded as well: it may have been kept from work for long by want of room.
        """
        self._used[tenant] = max(self._used[tenant], self._now - self._debt)
        self._now = max(self._now, self._used[tenant])

    def charge(self, tenant: str, seconds: float) -> None:
        """The tenant used the device for so long. One without work (it left meanwhile) is charged nothing."""
        if tenant in self._weights:
            self._used[tenant] = min(self._used[tenant] + seconds / self._weights[tenant], self._now + self._debt)
