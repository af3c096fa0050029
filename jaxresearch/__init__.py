"""jaxresearch: autonomous ML research on JAX whose results can be believed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("jaxresearch")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
