"""Fault injection: kills, full disks, damage. `python -m tests.faults` does all of it; the suite does a sample."""
