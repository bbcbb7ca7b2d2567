"""What `sandbox-aio snapshot` accepts."""

from __future__ import annotations

import argparse
import re

__all__ = ["add_snapshot_commands", "size"]

DEFAULT_CAPACITY = "8GiB"
DEFAULT_TIMEOUT = 3600
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", re.IGNORECASE)


def size(text: str) -> int:
    """A number of bytes: `500MB` is 500 * 1000², `8GiB` and `8G` are 8 * 1024³."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 8GiB or 500MB")
    decimal = match[2] and not match[3] and text[-1] in "bB"
    value = int(float(match[1]) * (1000 if decimal else 1024) ** " KMGT".index(match[2].upper() or " "))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte")
    return value


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def _build_arg(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def add_snapshot_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `snapshot`; `verb` says which was chosen."""
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    add = verbs.add_parser("pull", help="make a snapshot of an image of a registry")
    add.add_argument("image", metavar="IMAGE", help="such as debian:12 or registry.example.com/team/app:1")
    add.add_argument("--name", help="what to call it (default: as the image, without its registry)")
    add.add_argument("--tag", help="(default: the image's own, else latest)")
    add.add_argument("--registry", metavar="R", help="the registry, by id or name, whose credentials to use")
    _add_capacity(add, DEFAULT_CAPACITY)
    _add_waiting(add)
    add = verbs.add_parser("build", help="make a snapshot of what a Dockerfile says")
    add.add_argument("directory", metavar="DIR", help="the context, which is sent to the server")
    add.add_argument("-f", "--file", default="Dockerfile", metavar="FILE", help="within DIR (default: %(default)s)")
    add.add_argument("--name", required=True, metavar="NAME", help="what to call it; its tag is latest")
    add.add_argument(
        "--build-arg", type=_build_arg, action="append", default=[], metavar="NAME=VALUE", help="for ARG; repeatable"
    )
    add.add_argument("--target", metavar="STAGE", help="the stage to end with (default: the last)")
    _add_capacity(add, None)
    _add_waiting(add)
    add = verbs.add_parser("capture", help="make a snapshot of a sandbox's files")
    add.add_argument("sandbox", metavar="SANDBOX")
    _add_name(add)
    _add_waiting(add)
    add = verbs.add_parser("import", help="make a snapshot of an image that is here")
    add.add_argument(
        "source",
        metavar="SOURCE",
        help="what docker save has written (- for stdin), or docker:IMAGE or podman:IMAGE to ask the engine for it",
    )
    _add_name(add)
    _add_capacity(add, None)
    _add_waiting(add)
    add = verbs.add_parser("ls", help="list snapshots")
    add.add_argument("--name-contains", metavar="TEXT")
    add.add_argument("--json", action="store_true", help="as a JSON list")
    add = verbs.add_parser("tag", help="publish a snapshot under another tag or name")
    add.add_argument("reference", metavar="REF", help="a UUID, a name or name:tag")
    _add_name(add)
    add = verbs.add_parser("rm", help="remove tags, and snapshots with their last tag")
    add.add_argument("references", nargs="+", metavar="REF", help="a UUID, a name or name:tag")
    add = verbs.add_parser("push", help="push a snapshot to a registry, as an image")
    add.add_argument("reference", metavar="REF", help="a UUID, a name or name:tag")
    add.add_argument("image", metavar="IMAGE", help="what to call it, such as registry.example.com/team/app:1")
    add.add_argument("--registry", metavar="R", help="the registry, by id or name, whose credentials to use")
    _add_waiting(add)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME[:TAG]", help="what to call it (default tag: latest)")


def _add_capacity(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--capacity",
        type=size,
        default=default,
        metavar="SIZE",
        help=f"the most that its files may hold, such as 8GiB (default: {default or 'as the server chooses'})",
    )


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS", help="(default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
