"""Finding, starting and ending the zygote."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from typing import TYPE_CHECKING

from ..base import RuntimeFailure
from . import zygote_client
from .state import PREDECESSOR_TIMEOUT_S, StateDirectory
from .zygote_client import ZygoteClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

__all__ = ["ZygoteKeeper"]

logger: logging.Logger = logging.getLogger("sandbox_aio.runtimes")


class ZygoteKeeper:
    """Keeps one zygote for a state directory whose lock this process holds.

    `on_exit` is called with a sandbox's id and a reason when it ends by itself, `on_loss` when the zygote ends by
    itself. The next request for the client then starts another.
    """

    def __init__(
        self,
        state: StateDirectory,
        *,
        ephemeral: bool,
        die_with: int | None,
        daemon_entry: str,
        on_exit: Callable[[str, str], None],
        on_loss: Callable[[], None],
    ) -> None:
        self.cgroups: Sequence[str] = ()
        """What an ephemeral zygote removes when its server dies. To be set before the first `client`."""
        self._state = state
        self._ephemeral = ephemeral
        self._die_with = die_with
        self._daemon_entry = daemon_entry
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._client: ZygoteClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._finding = asyncio.Lock()

    @property
    def present(self) -> ZygoteClient | None:
        """The client of the zygote that runs; None if none does."""
        return self._client

    async def client(self) -> ZygoteClient:
        """Return a client of the zygote, started now if there is none. Raises RuntimeFailure."""
        async with self._finding:
            if self._client is None:
                await self._reap()
                lock = await self._state.zygote_lock()
                try:
                    self._process, connection = await asyncio.to_thread(self._spawn, lock)
                except OSError as error:
                    raise RuntimeFailure(f"the zygote cannot be started: {error}", kind="Runtime") from error
                finally:
                    os.close(lock)
                self._client = ZygoteClient(connection, self._on_exit, self._lost)
                if not self._ephemeral:
                    await self._reap()
            return self._client

    async def take_over(self) -> set[str] | None:
        """Take over the persistent zygote of an earlier server and return the ids of what runs; None if there is none.

        Any other zygote has ended, by itself or because this runtime is ephemeral, when this returns None.
        Raises RuntimeFailure if it does not end within 20 s.
        """
        lock = self._state.try_zygote_lock()
        if lock is None and (connection := zygote_client.connect(self._state.control_socket)) is not None:
            client = ZygoteClient(connection, self._on_exit, self._lost)
            try:
                answer = await client.request("shutdown" if self._ephemeral else "list", timeout=PREDECESSOR_TIMEOUT_S)
            except RuntimeFailure:
                answer = {"ephemeral": True}  # It was ending already.
            if not self._ephemeral and not answer["ephemeral"]:
                self._client = client
                return set(answer["running"])
            client.close()
        os.close(lock if lock is not None else await self._state.zygote_lock())
        return None

    async def end(self) -> None:
        """End the zygote and all sandboxes, also when the connection to it is lost."""
        if self._client is None and (connection := zygote_client.connect(self._state.control_socket)) is not None:
            self._client = ZygoteClient(connection, self._on_exit, self._lost)
        if self._client is not None:
            with contextlib.suppress(RuntimeFailure):
                await self._client.request("shutdown")
        self.leave()
        await self._reap()

    def leave(self) -> None:
        """Let go of the zygote; a persistent one, and its sandboxes, run on."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _spawn(self, lock: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        descriptors = {"lock": lock}
        if self._die_with is not None:
            descriptors["die_with"] = self._die_with
        settings = {
            "ephemeral": self._ephemeral,
            "daemon_entry": self._daemon_entry,
            "state_dir": str(self._state.path),
            "cgroups": list(self.cgroups),
        }
        return zygote_client.spawn(
            self._state.control_socket, settings, descriptors, detached=not self._ephemeral, log=self._state.log
        )

    async def _reap(self) -> None:
        """Wait for the process that was spawned: the zygote, or the one that detached it."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, PREDECESSOR_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.error("the zygote, process %d, does not end; killing it", process.pid)
            process.kill()
            await asyncio.to_thread(process.wait)

    def _lost(self) -> None:
        self._client = None
        self._on_loss()
