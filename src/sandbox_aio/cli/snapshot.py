"""`sandbox-aio snapshot`: make, list, name, move and remove the snapshots of a server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from sandbox_aio import AsyncSandboxClient, ResourceCreationError, SandboxClientError

from . import complain
from .engine import ENGINES, EngineError, engine_address, saved_image
from .progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from sandbox_aio import Snapshot

__all__ = ["default_name", "snapshot_command"]

PIECE_BYTES = 1024 * 1024
PAGE = 500
"""Snapshots that are listed with one request, the most that the protocol allows."""
PIPE_CLOSED = 141


def snapshot_command(arguments: argparse.Namespace) -> int:
    """Carry out one of the commands; return 0, or 1 when it cannot be done."""
    named = os.environ.get("LANGSMITH_ENDPOINT", "").strip() or os.environ.get("LANGCHAIN_ENDPOINT", "").strip()
    if not named or named == "local":
        complain(
            "snapshots live in a server, and LANGSMITH_ENDPOINT names none",
            "start one with: sandbox-aio serve --no-ephemeral; then export LANGSMITH_ENDPOINT=http://127.0.0.1:8080 "
            "and LANGSMITH_API_KEY",
        )
        return 1
    try:
        code = anyio.run(_run, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # The interpreter flushes once more.
        return PIPE_CLOSED
    except (SandboxClientError, ValueError) as error:
        complain(str(error))
    except EngineError as error:
        complain(str(error), error.hint)
    except OSError as error:
        complain(f"cannot read {error.filename}: {error.strerror}" if error.filename else str(error))
    else:
        return code
    return 1


async def _run(arguments: argparse.Namespace) -> int:
    async with AsyncSandboxClient() as client:
        with ProgressLine(sys.stderr, quiet=getattr(arguments, "quiet", True)) as line:
            action: Callable[[_Session], Awaitable[int]] = _ACTIONS[arguments.verb]
            return await action(_Session(arguments, client, line))


@attrs.frozen
class _Session:
    """What every command works with."""

    arguments: argparse.Namespace
    client: AsyncSandboxClient
    line: ProgressLine


def default_name(image: str) -> str:
    """What a snapshot of an image is called: the repository without its registry, such as `team/app`."""
    repository = image.partition("@")[0]
    head, slash, rest = repository.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        repository = rest
    folder, slash, last = repository.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}".removeprefix("library/").lower()


def _name_and_tag(text: str) -> tuple[str, str | None]:
    name, colon, tag = text.partition(":")
    return name, tag if colon else None


async def _pull(session: _Session) -> int:
    arguments = session.arguments
    made = await session.client.create_snapshot(
        arguments.name or default_name(arguments.image),
        arguments.image,
        arguments.capacity,
        tag=arguments.tag,
        registry_id=arguments.registry,
        timeout=arguments.timeout,
        on_progress=session.line.show,
    )
    _show_made(made)
    return 0


async def _build(session: _Session) -> int:
    """The log goes to stderr, as it comes."""
    arguments = session.arguments

    async def show(text: str) -> None:
        await anyio.to_thread.run_sync(_write_log, text)  # Whoever reads it may pause.

    try:
        made = await session.client.create_snapshot_from_dockerfile(
            arguments.name,
            arguments.file,
            arguments.capacity,
            context=arguments.directory,
            build_args=dict(arguments.build_arg),
            target=arguments.target,
            on_build_log=None if arguments.quiet else show,
            timeout=arguments.timeout,
        )
    except ResourceCreationError as error:
        complain(str(error) if arguments.quiet else str(error).partition("\n")[0].rstrip(":"))
        return 1
    _show_made(made)
    return 0


def _write_log(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


async def _capture(session: _Session) -> int:
    name, tag = _name_and_tag(session.arguments.name)
    made = await session.client.capture_snapshot(
        session.arguments.sandbox, name, tag=tag, timeout=session.arguments.timeout, on_progress=session.line.show
    )
    _show_made(made)
    return 0


async def _import(session: _Session) -> int:
    arguments = session.arguments
    name, tag = _name_and_tag(arguments.name)
    async with _archive(arguments.source, session.line) as pieces:
        made = await session.client.import_snapshot(
            name,
            pieces,
            tag=tag,
            fs_capacity_bytes=arguments.capacity,
            timeout=arguments.timeout,
            on_progress=session.line.show,
        )
    _show_made(made)
    return 0


@asynccontextmanager
async def _archive(source: str, line: ProgressLine) -> AsyncIterator[AsyncGenerator[bytes]]:
    """The bytes of an image's archive, whose number is shown as they are read."""
    engine, colon, name = source.partition(":")
    if colon and engine in ENGINES:
        async with saved_image(engine, name, engine_address(engine, os.environ)) as pieces:
            yield _counted(pieces, line, None)
    else:
        size = None if source == "-" else (await anyio.Path(source).stat()).st_size
        yield _counted(_file(source), line, size)


async def _file(source: str) -> AsyncGenerator[bytes]:
    if source == "-":
        while piece := await anyio.to_thread.run_sync(os.read, sys.stdin.fileno(), PIECE_BYTES):
            yield piece
    else:
        async with await anyio.open_file(source, "rb") as file:
            while piece := await file.read(PIECE_BYTES):
                yield piece


async def _counted(pieces: AsyncGenerator[bytes], line: ProgressLine, size: int | None) -> AsyncGenerator[bytes]:
    done = 0
    try:
        async for piece in pieces:
            done += len(piece)
            line.show(f"sending: {done / 1e6:.1f} of {(done if size is None else size) / 1e6:.1f} MB")
            yield piece
    finally:
        await pieces.aclose()


async def _list(session: _Session) -> int:
    arguments = session.arguments
    found: list[Snapshot] = []
    while True:
        page = await session.client.list_snapshots(name_contains=arguments.name_contains, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            break
    if arguments.json:
        print(json.dumps([attrs.asdict(snapshot) for snapshot in found], indent=2))
        return 0
    rows = [("NAME", "TAGS", "STATUS", "SIZE", "ID")]
    rows += [(one.name, ",".join(one.tags) or "-", one.status, _size(one.fs_used_bytes), one.id) for one in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


async def _tag(session: _Session) -> int:
    name, tag = _name_and_tag(session.arguments.name)
    tag = tag or "latest"
    made = await session.client.tag_snapshot(session.arguments.reference, tag, name=name)
    print(f"{name}:{tag}  {made.id}")
    return 0


async def _push(session: _Session) -> int:
    arguments = session.arguments
    session.line.show(f"pushing {arguments.reference} to {arguments.image}")
    digest = await session.client.push_snapshot(
        arguments.reference, arguments.image, registry_id=arguments.registry, timeout=arguments.timeout
    )
    print(digest)
    return 0


async def _remove(session: _Session) -> int:
    """All that can be removed; 1 if one could not."""
    code = 0
    for reference in session.arguments.references:
        try:
            await session.client.delete_snapshot(reference)
        except SandboxClientError as error:
            complain(str(error))
            code = 1
        else:
            print(reference)
    return code


def _show_made(made: Snapshot) -> None:
    print(f"{made.name}:{','.join(made.tags) or '-'}  {made.id}  {_size(made.fs_used_bytes)}")
    if made.status_message:
        complain(made.status_message)


def _size(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f} MB"


_ACTIONS = {
    "pull": _pull,
    "build": _build,
    "capture": _capture,
    "import": _import,
    "ls": _list,
    "tag": _tag,
    "push": _push,
    "rm": _remove,
}
