"""The command line: click commands, thin, no logic."""

from jaxresearch.cli.app import main

__all__ = ["main"]
