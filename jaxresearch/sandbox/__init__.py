"""Isolation tiers behind one function. A tier is used only after it has proved itself on this machine."""

from jaxresearch.sandbox.isolation import Isolated, Sandbox, SandboxOutcome, write_tree
from jaxresearch.sandbox.selftest import TierReport, choose_sandbox, examine_tiers
from jaxresearch.sandbox.worker_tier import WorkerTier, choose_worker_tier

__all__ = [
    "Isolated",
    "Sandbox",
    "SandboxOutcome",
    "TierReport",
    "WorkerTier",
    "choose_sandbox",
    "choose_worker_tier",
    "examine_tiers",
    "write_tree",
]
