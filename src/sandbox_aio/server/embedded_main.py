"""The server as a process of its own that dies with its owner: `python -m sandbox_aio.server.embedded_main`.

The contract with whoever starts it:

* **stdin** is the lifeline: a pipe whose other end the owner keeps and writes nothing to. When it ends, or when the
  owner is no longer this process's parent, the server destroys every sandbox and exits with code 0. The owner need do
  nothing for that, however it ends.
* **stdout** gets one line of JSON and is closed then. Either the server is ready:
  `{"endpoint": "http://127.0.0.1:PORT/api/v2/sandboxes", "api_key": "..."}`; or it cannot serve, and exits with code 1:
  `{"error": "<sentence>", "hint": "<what to do, may be empty>"}`.
* **stderr** gets warnings and errors, one line each, and is otherwise silent.
* SIGINT and SIGHUP are ignored, since a terminal sends them to owner and server alike; SIGTERM is an orderly end.

State is in a new directory of mode 0700 below `/var/tmp` (a disk, unlike `/run` and often `/tmp`; and short, as socket
paths must be). A directory whose server was killed is removed by the next server of the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox_aio.runtimes.base import RuntimeFailure

from .serve import Ready, ServeError, ServerConfig, make_runtime, raise_file_limit, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

PARENT_POLL: Final = 1.0
"""Seconds between looks at who the parent is; a child that an owner forked may hold the lifeline open."""


def main() -> int:
    """Serve until the owner is gone; return the exit code."""
    owner = os.getppid()
    logging.basicConfig(level=logging.WARNING, format="sandbox-aio: %(levelname)s: %(message)s", stream=sys.stderr)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # Not SIG_IGN, which every process in a sandbox would inherit.
    with contextlib.suppress(PermissionError):
        os.setsid()  # Out of the terminal's reach, and with us the zygote.
    raise_file_limit()
    try:
        with _state_dir() as state_dir:
            asyncio.run(_serve(state_dir, owner))
    except ServeError as error:
        _say({"error": str(error), "hint": error.hint})
        return 1
    except OSError as error:
        _say({"error": f"the embedded server cannot keep its state: {error}", "hint": "make /var/tmp or /tmp writable"})
        return 1
    except Exception as error:
        logger.exception("the embedded server failed")
        _say({"error": f"the embedded server failed: {error!r}", "hint": "its stderr has the reason; please report it"})
        return 1
    return 0


async def _serve(state_dir: Path, owner: int) -> None:
    key = secrets.token_urlsafe(32)
    config = ServerConfig(state_dir=state_dir, api_keys=(key,), ephemeral=True)
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    lifeline = asyncio.create_task(_watch_lifeline(end))
    parent = asyncio.create_task(_watch_parent(owner, end))
    sweep: asyncio.Task[None] | None = None

    def ready(server: Ready) -> None:
        nonlocal sweep
        _say({"endpoint": server.endpoint, "api_key": key})
        sweep = asyncio.create_task(_sweep(state_dir))

    try:
        await serve(config, on_ready=ready, until=end)
    finally:
        for task in (lifeline, parent, sweep):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))


async def _watch_lifeline(end: asyncio.Event) -> None:
    """Set the event when stdin ends."""
    reader = asyncio.StreamReader()
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.read(4096):
            pass
    except (ValueError, OSError) as error:
        logger.error("stdin must be a pipe: %s", error)
    end.set()


async def _watch_parent(owner: int, end: asyncio.Event) -> None:
    while os.getppid() == owner:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(PARENT_POLL)
    end.set()


def _say(message: dict[str, str]) -> None:
    """Write the one line; an owner that is gone does not read it, and is noticed elsewhere."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


# State directories: one for each server, locked while it lives.


def _prefix() -> str:
    return f"saio-{os.getuid()}-"


def _parent_dir() -> Path:
    return next((Path(path) for path in ("/var/tmp", "/tmp") if os.access(path, os.W_OK | os.X_OK)), Path("/tmp"))


@contextlib.contextmanager
def _state_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=_prefix(), dir=_parent_dir()))
    with _lock(path) as locked:
        assert locked
        yield path
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether the directory is now ours; a lock ends with its holder, however that ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


async def _sweep(own: Path) -> None:
    """Remove what killed servers of this user left."""
    for path in sorted(own.parent.glob(_prefix() + "*")):
        with contextlib.suppress(FileNotFoundError):  # another sweep may be quicker
            if path != own and not path.is_symlink() and path.stat().st_uid == os.getuid():
                with _lock(path) as stale:
                    if stale:
                        await _remove(path)


async def _remove(path: Path) -> None:
    """Remove the state of a server that is gone, unless what it has started does that right now."""
    if await asyncio.to_thread((path / "zygote.lock").exists):  # else what it has started did it, but for the keys
        runtime = make_runtime(ServerConfig(state_dir=path))
        try:
            await runtime.open(lambda id, reason: None)
            await runtime.aclose(destroy=True)
        except (OSError, RuntimeFailure) as failure:
            if isinstance(failure, RuntimeFailure) and failure.kind == "StateDirectoryInUse":
                return
            # Nothing runs there: what could not be opened was half removed already.
            logger.info("what is left in %s cannot be opened, and is removed: %s", path, failure)
    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
