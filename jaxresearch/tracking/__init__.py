"""Trackers: what follows a study beside the terminal. JSON lines always, TensorBoard and others where asked for."""

from jaxresearch.tracking.lines import JsonLines, metrics_lines
from jaxresearch.tracking.metrics import metrics_of
from jaxresearch.tracking.trackers import Trackers, check_trackers

__all__ = ["JsonLines", "Trackers", "check_trackers", "metrics_lines", "metrics_of"]
