"""jaxresearch: autonomous ML research on JAX whose results can be believed."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxresearch.config import StudyConfig as StudyConfig
    from jaxresearch.report.build import read_record as read_record
    from jaxresearch.report.page import render_report as render_report
    from jaxresearch.report.record import StudyRecord as StudyRecord
    from jaxresearch.study.study import Study as Study

try:
    __version__ = version("jaxresearch")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "Study": "jaxresearch.study.study",
    "StudyConfig": "jaxresearch.config",
    "StudyRecord": "jaxresearch.report.record",
    "read_record": "jaxresearch.report.build",
    "render_report": "jaxresearch.report.page",
}
"""What the Python API names, and the module that each is fetched from when it is first used: importing stays fast."""

__all__ = ["Study", "StudyConfig", "StudyRecord", "__version__", "read_record", "render_report"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
