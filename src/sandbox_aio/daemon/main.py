"""The entry of the daemon."""

from __future__ import annotations

import asyncio
import asyncio.unix_events
import codecs
import concurrent.futures.thread
import linecache
import os
import resource
import signal
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from .service import Service
from .settings import DaemonSettings

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

__all__ = ["run"]

_DESCRIPTORS = 65536

_PRELOADED = (concurrent.futures.thread, asyncio.unix_events, linecache, traceback)
"""Modules that the standard library imports only when it needs them; inside a sandbox that is too late."""
for _name in ("ascii", "latin-1", "utf-8", "idna"):
    codecs.lookup(_name)


def run(listener: socket.socket, config: Mapping[str, Any]) -> NoReturn:
    """Become the daemon of a sandbox: serve on `listener`, which must be listening, until SIGTERM, then exit.

    Call it on the main thread of a process that has no event loop and no other threads. Nothing is imported from here
    on.

    Args:
        config: members of `DaemonSettings`: `sandbox_id`, `secret`, and if they are not the defaults, `work_dir`,
        `user`, `env_vars`,
            `files_root`, `hostname`, `limits`.

    Raises:
        TypeError: the config has unknown members, or lacks some.
    """
    settings = DaemonSettings.from_config(config)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # what is ignored here, a command ignores too; an init ignores it anyway
    os.umask(0o022)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
    listener.setblocking(False)
    with asyncio.Runner(debug=False, loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_serve(settings, listener))
    os._exit(0)  # without waiting for a search that nobody needs


def _reset_signals() -> None:
    """Ignore nothing, since commands would inherit that; an interrupt from a terminal that we share is none of our
    business.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE}:  # which Popen restores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, lambda *_: None)


async def _serve(settings: DaemonSettings, listener: socket.socket) -> None:
    await Service(settings).serve(listener)
