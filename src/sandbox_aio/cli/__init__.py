"""The `sandbox-aio` command."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .snapshot_parser import add_snapshot_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 2 for a wrong command line, 1 for what cannot be done."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Split here: versions of argparse differ in what they do to a second "--", which is the command's.
    options, dashes, command = _partition(words)
    parser = _parser()
    arguments = parser.parse_args(options)
    if arguments.action is _run:
        arguments.command += command
        if not arguments.command:
            parser.error("run: the command is missing")
    elif dashes:
        parser.error("only run takes a command after --")
    try:
        return int(arguments.action(arguments))
    except KeyboardInterrupt:
        return 130


def _partition(words: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in words:
        return words, False, []
    position = words.index("--")
    return words[:position], True, words[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sandbox-aio", description="Sandboxes in which agents run commands.")
    parser.add_argument("--version", action="version", version=f"sandbox-aio {version('sandbox-aio')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(
        commands.add_parser("serve", help="serve sandboxes to clients", description="Serve sandboxes to clients.")
    )
    _add_run(
        commands.add_parser(
            "run",
            help="run a command in a new sandbox",
            description="Run a command in a new sandbox, and delete the sandbox. "
            "Without LANGSMITH_ENDPOINT, a server is started for it.",
        )
    )
    snapshot = commands.add_parser(
        "snapshot",
        help="make and keep what sandboxes start from",
        description="Make, list, name, move and remove the snapshots of the server at LANGSMITH_ENDPOINT.",
    )
    add_snapshot_commands(snapshot)
    snapshot.set_defaults(action=_snapshot_action)
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _snapshot(text: str) -> tuple[str, Path]:
    name, equals, directory = text.partition("=")
    if not (name and equals and directory):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIRECTORY")
    return name, Path(directory)


def _mirror(text: str) -> tuple[str, str]:
    registry, equals, url = text.partition("=")
    if not (registry and equals and url.startswith(("http://", "https://"))):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST=URL, such as docker.io=https://mirror.example.com")
    return registry, url


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8080, help="port to listen on; 0 lets the system choose (default: %(default)s)")
    add("--state-dir", metavar="DIR", help="where sandboxes live (default: /var/lib/sandbox-aio, or below the home)")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that clients may use; repeatable. Other users of the machine can read it here, "
        "but not in the variable SANDBOX_AIO_API_KEYS (separated by commas)",
    )
    add("--runtime", default="namespaces", help="how sandboxes are made (default: %(default)s)")
    add(
        "--ephemeral",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether stopping the server destroys its sandboxes and snapshots; with --no-ephemeral they, and the "
        "commands that run in them, go on and are found by the next server on the same --state-dir (default: yes)",
    )
    add(
        "--snapshot",
        type=_snapshot,
        action="append",
        default=[],
        metavar="NAME=DIRECTORY",
        help="offer an unpacked root file system as a snapshot; repeatable. DIRECTORY.json may set its user, work_dir "
        "and env_vars",
    )
    add(
        "--builds",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether clients may build images, in sandboxes that may mount and make namespaces of their own "
        "(default: yes, where buildah is installed)",
    )
    add("--public-url", metavar="URL", help="the origin that clients reach, behind a proxy")
    add(
        "--service-domain",
        metavar="DOMAIN",
        default="localhost",
        help="services are at SANDBOX_ID--PORT.DOMAIN; needs a wildcard record (default: %(default)s)",
    )
    _add_egress(parser)
    _add_registries(parser)
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", metavar="FILE", help="private key, PEM")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="(default: %(default)s)")
    parser.set_defaults(action=_serve)


def _add_egress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--egress",
        choices=("open", "closed"),
        default="open",
        help="whether sandboxes may reach public addresses, through the server's proxy (default: %(default)s)",
    )
    parser.add_argument(
        "--egress-allow",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="a host that sandboxes may reach wherever it is, even if egress is closed; repeatable",
    )


def _add_registries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registry-mirror",
        type=_mirror,
        action="append",
        default=[],
        metavar="HOST=URL",
        help="ask a mirror before an image registry, such as docker.io=https://mirror.example.com; repeatable",
    )
    parser.add_argument(
        "--registry-insecure",
        action="append",
        default=[],
        metavar="HOST",
        help="speak to an image registry without TLS; repeatable",
    )
    parser.add_argument("--registry-ca", metavar="FILE", help="certificates to trust in image registries, PEM")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--snapshot", metavar="S", help="what the sandbox boots: a UUID, a name or name:tag")
    add("--timeout", type=int, default=0, metavar="SECONDS", help="kill the command after this time (default: never)")
    add("--tty", action="store_true", help="give the command a terminal")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable; repeatable")
    add("--cwd", metavar="DIR", help="where the command runs")
    add("command", nargs="*", metavar="COMMAND", help="one word: a shell command line; several: a program's arguments")
    parser.set_defaults(action=_run)


def _serve(arguments: argparse.Namespace) -> int:
    from .serve import serve_command

    return serve_command(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from .run import run_command

    return run_command(arguments)


def _snapshot_action(arguments: argparse.Namespace) -> int:
    from .snapshot import snapshot_command

    return snapshot_command(arguments)


def complain(message: str, hint: str = "") -> None:
    """One sentence on stderr."""
    print(f"sandbox-aio: {message}" + (f" ({hint})" if hint else ""), file=sys.stderr)
