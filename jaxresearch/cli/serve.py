"""`serve`: the live dashboard."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.errors import JaxresearchError


@click.command(epilog="Example: jaxresearch serve studies --port 8080")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any that is free."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address than loopback needs a token.")
@click.option("--token", help="What visitors must show; made and printed if needed and left out.")
@output_options
def serve(folder: Path, port: int, host: str, token: str | None, output: Output) -> None:
    """Show the studies under DIR in a browser, live. It only reads: it starts, changes and stops nothing."""
    if not folder.is_dir():
        raise JaxresearchError(f"There is no folder {folder}.", fix="Give a study, or a folder that holds studies.")
    try:
        from jaxresearch.report.server import DashboardServer
    except ModuleNotFoundError as error:
        raise JaxresearchError(
            f"The dashboard needs {error.name}.", fix='Install it: pip install "jaxresearch[dashboard]".'
        ) from None
    if token is None and not _is_loopback(host):
        token = secrets.token_urlsafe(24)
    given = token
    server = DashboardServer(
        folder,
        host=host,
        port=port,
        token=given,
        on_started=lambda bound: _announce(output, folder, host, bound, given),
    )
    try:
        server.run()
    except SystemExit:
        raise JaxresearchError(f"Port {port} of {host} cannot be used.", fix="Choose another with --port.") from None
    except KeyboardInterrupt:
        return


def _announce(output: Output, folder: Path, host: str, port: int, token: str | None) -> None:
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}/" + (f"?token={token}" if token else "")
    output.result(
        {"url": url, "folder": str(folder)},
        lambda console: console.print(f"Dashboard of {folder}: {url}   (Ctrl-C stops it)", markup=False),
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
