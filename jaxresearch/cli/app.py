"""The `jaxresearch` group, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback

import click

import jaxresearch
from jaxresearch.cli.signals import interruptible
from jaxresearch.cli.uncollected import uncollected
from jaxresearch.errors import JaxresearchError

_COMMANDS = {
    "doctor": "doctor",
    "prepare": "prepare",
    "train": "train",
    "run": "study",
    "resume": "study",
    "pause": "control",
    "stop": "control",
    "status": "show",
    "show": "show",
    "verify": "verify",
    "replay": "replay",
    "report": "report",
    "serve": "serve",
    "compare": "compare",
    "confirm": "confirm",
    "ablate": "ablate",
    "export": "export",
    "sample": "sample",
    "strategies": "listing",
    "subjects": "listing",
    "hooks": "hooks",
    "cloud": "cloud",
}
"""Command -> its module in this package, imported only when it is used."""

INTERRUPTED = 130


class Group(click.Group):
    """Lists every command with the whole first sentence of its help, on several lines where it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=500)) for name, each in commands if each])


class _Commands(Group):
    """All commands in the order of a user's day, each imported on demand, so that `--help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        with uncollected():
            return getattr(importlib.import_module(f"jaxresearch.cli.{_COMMANDS[cmd_name]}"), cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(jaxresearch.__version__, prog_name="jaxresearch")
def cli() -> None:
    """Autonomous ML research on JAX whose results can be believed.

    \b
    Start with:  jaxresearch run          a whole study: no key, no GPU, about five minutes
    Then:        jaxresearch show STUDY   what was tried, and why it was kept or not
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with interruptible():
        status = _status(arguments or ["--help"])
    sys.exit(status)


def _status(arguments: list[str]) -> int:
    try:
        return cli.main(args=arguments, prog_name="jaxresearch", standalone_mode=False) or 0
    except JaxresearchError as error:
        return _fail(arguments, error.message, error.fix, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"Try '{error.ctx.command_path} --help'."
        status = 2 if isinstance(error, click.UsageError) else 1
        return _fail(arguments, _in_plain_words(error.format_message()), hint, status)
    except (click.Abort, KeyboardInterrupt):
        return _fail(arguments, "Interrupted.", "The same command begins again, with what is there.", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has gone; there is nobody to tell
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(arguments, f"{what}.", "Check the disk and your rights; --debug shows what was tried.", 1)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        return _fail(arguments, f"{type(error).__name__}: {line}", "Run again with --debug to see where.", 1)


def _in_plain_words(message: str) -> str:
    """click calls a number with bounds `a valid integer range`."""
    message = re.sub("is not a valid integer( range)?", "is not a whole number", message)
    return re.sub("is not a valid float( range)?", "is not a number", message)


def _fail(arguments: list[str], message: str, fix: str, status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    label = "" if status == INTERRUPTED else "Error: "
    print(f"{label}{message} {fix}".rstrip(), file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": message, "fix": fix, "exit_status": status}))
    return status
