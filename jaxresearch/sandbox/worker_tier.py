"""Which tier a worker runs in: the worker loads programs that a verifier has passed, and is confined all the same.

Its box holds Python, the laboratory's own package and what its settings name. A run on several machines needs a network;
that is a weaker tier with a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxresearch.levels import TIERS, Level, Tier, level_of, meets
from jaxresearch.sandbox.selftest import examine, unmet


@dataclass(frozen=True)
class WorkerTier:
    """The tier that a worker runs in. reason: why in none, when it is `subprocess`."""

    tier: Tier
    network: bool = False
    reason: str = ""

    @property
    def level(self) -> Level:
        return level_of(self.tier, network=self.network)

    def __str__(self) -> str:
        """As each run records it."""
        return f"unsandboxed ({self.reason})" if self.tier == "subprocess" else self.level


async def choose_worker_tier(
    require: str | None = None, *, network: bool = False, accelerators: bool = False
) -> WorkerTier:
    """The strongest tier that passes its self-test with what the worker must be given.

    network: leave it open, for runs on several machines. accelerators: with their device nodes, and new processes.
    Raises `JaxresearchError` when that is below `require`.
    """
    failures = []
    for tier in TIERS:
        if not meets(level_of(tier, network=network), require):
            break
        if tier == "subprocess":
            reason = "; ".join(f"{failure.tier}: {failure.detail}" for failure in failures)
            return WorkerTier(tier, network, reason)
        report = await examine(tier, network=network, accelerators=accelerators)
        if report.works:
            return WorkerTier(tier, network)
        failures.append(report)
    raise unmet(require, failures, what="the worker")
