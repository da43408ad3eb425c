"""Who has pages: a conversation that opens gets them of those that nobody has used for longest.

A device that already has more than its share of them takes from itself first, and else only what
nobody has used for a while. So one that opens ten thousand conversations takes nobody's who is
here; and whoever has left for good keeps no page from those who go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """A conversation that has pages; `busy` while a step of it is under way."""

    device: str
    name: str
    pages: int
    last_used: float
    busy: bool


@dataclass(frozen=True, slots=True)
class Room:
    """There is room, once these have given up theirs."""

    leaving: tuple[Tenant, ...] = ()


@dataclass(frozen=True, slots=True)
class Busy:
    """Not now: all that could leave are in use. It may be otherwise after so many seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class Never:
    """It can never fit, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """`total` pages; who was used within `idle_seconds` stays.

    Devices that were used within `away_seconds` have a share of them.
    """

    total: int
    idle_seconds: float = 2.0
    away_seconds: float = 10.0


def make_room(
    rules: Rules, device: str, pages: int, tenants: Sequence[Tenant], now: float
) -> Room | Busy | Never:
    """Room for so many more pages of one device's conversation."""
    if pages > rules.total:
        return Never(f"it takes {pages} pages, and there are {rules.total} in all")
    lacking = pages - (rules.total - sum(tenant.pages for tenant in tenants))
    if lacking <= 0:
        return Room()
    may_leave = _candidates(rules, device, pages, tenants, now)
    ready = [one for one in may_leave if not one.busy and _idle(rules, one, now)]
    leaving: list[Tenant] = []
    for one in ready:
        if lacking <= 0:
            break
        leaving.append(one)
        lacking -= one.pages
    if lacking > 0:
        return Busy(_patience(rules, may_leave, now))
    return Room(tuple(leaving))


def _candidates(
    rules: Rules, device: str, pages: int, tenants: Sequence[Tenant], now: float
) -> list[Tenant]:
    """Whose pages it may get, the first to leave first."""
    held = Counter[str]({device: 0})
    for tenant in tenants:
        held[tenant.device] += tenant.pages
    here = {tenant.device for tenant in tenants if not _away(rules, tenant, now)} | {device}
    if held[device] and held[device] + pages > rules.total / len(here):
        own = [tenant for tenant in tenants if tenant.device == device]
        left = [one for one in tenants if one.device != device and _away(rules, one, now)]
        return sorted(own, key=_last_used) + sorted(left, key=_last_used)
    share = rules.total / len(held)
    return sorted(tenants, key=lambda one: (held[one.device] <= share, one.last_used))


def _last_used(tenant: Tenant) -> float:
    return tenant.last_used


def _away(rules: Rules, tenant: Tenant, now: float) -> bool:
    return not tenant.busy and now - tenant.last_used >= rules.away_seconds


def _idle(rules: Rules, tenant: Tenant, now: float) -> bool:
    return now - tenant.last_used >= rules.idle_seconds


def _patience(rules: Rules, tenants: Sequence[Tenant], now: float) -> float:
    """Seconds until the next one may be idle."""
    waits = [rules.idle_seconds - (now - one.last_used) for one in tenants if not one.busy]
    return max(0.1, min([*waits, rules.idle_seconds]))
