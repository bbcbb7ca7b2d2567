"""The `namespaces` runtime: sandboxes out of Linux namespaces, overlays and nothing that pip does not bring."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import uuid
import zlib
from pathlib import Path
from typing import Any, Final

import attrs

from ..base import (
    Capabilities,
    DaemonAddress,
    ExitCallback,
    RuntimeFailure,
    RuntimeStatus,
    SandboxSpec,
    SnapshotInfo,
    Unavailable,
)
from . import snapshot_host, zygote_client
from .idmap import SLOTS, IdMap
from .plan import BootPlan, Layer, Overlay
from .snapshot_host import HOST_SNAPSHOT_ID
from .state import StateDirectory
from .zygote_client import ZygoteClient

__all__ = ["NamespacesRuntime"]

_HOSTNAME_MAX: Final = 63
_WORK_DIR: Final = "/home/user"
_PATH: Final = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": _PATH, "LANG": "C.UTF-8"}
_DAEMON_ENTRY: Final = "sandbox_aio.daemon.main:run"


@attrs.define(eq=False, kw_only=True)
class _Sandbox:
    spec: SandboxSpec
    ids: IdMap
    state: str = "created"
    reason: str | None = None
    changing: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """Held while it is started, stopped or destroyed."""


class NamespacesRuntime:
    """Sandboxes on this machine, each in namespaces of its own.

    `ephemeral`: the sandboxes end with the process that opened the runtime, however it ends, and a later runtime on the same
    directory finds none. Otherwise they run on, and a later runtime finds them again.
    `die_with`: a descriptor; an ephemeral zygote also ends everything when it reads end of file from it.
    `daemon_entry`: `module:function`, imported by the zygote; called in every sandbox with the listening socket and the configuration.
    """

    name = "namespaces"

    def __init__(
        self, state_dir: Path, *, ephemeral: bool, die_with: int | None = None, daemon_entry: str = _DAEMON_ENTRY
    ) -> None:
        self._state = StateDirectory(Path(state_dir))
        self._ephemeral = ephemeral
        self._die_with = die_with
        self._daemon_entry = daemon_entry
        self._client: ZygoteClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting_zygote = asyncio.Lock()
        self._on_exit: ExitCallback = lambda id, reason: None
        self._sandboxes: dict[str, _Sandbox] = {}
        self._skeleton: Path | None = None
        self._next_slot = zlib.crc32(os.fsencode(self._state.path)) % SLOTS
        self._cleaning: set[asyncio.Task[None]] = set()

    async def open(self, on_exit: ExitCallback) -> Capabilities:
        self._on_exit = on_exit
        await asyncio.to_thread(self._state.open)
        self._skeleton = await asyncio.to_thread(snapshot_host.build_skeleton, self._state.snapshots)
        await self._zygote()
        result = await self.probe()
        assert isinstance(result, Capabilities)
        return result

    async def probe(self) -> Capabilities | Unavailable:
        return Capabilities(
            runtime=self.name, strength="namespace", uids="range" if os.geteuid() == 0 else "single",
            memory="none", cpu="none", pids="rlimit", disk="none", network="loopback", seccomp=True,
        )

    async def snapshots(self) -> list[SnapshotInfo]:
        return [SnapshotInfo(id=HOST_SNAPSHOT_ID, name="host", tags=("latest",), fs_capacity_bytes=shutil.disk_usage(self._state.path).total, work_dir=_WORK_DIR, env_vars=_ENVIRONMENT)]

    async def create(self, spec: SandboxSpec) -> None:
        if spec.id in self._sandboxes:
            return
        ids = self._new_ids()
        sandbox = self._sandboxes[spec.id] = _Sandbox(spec=spec, ids=ids)
        await asyncio.to_thread(self._lay_directories, sandbox)

    def _new_ids(self) -> IdMap:
        if os.geteuid() != 0:
            return IdMap.of_this_user()
        taken = {sandbox.ids.uid for sandbox in self._sandboxes.values()}
        while (ids := IdMap.of_slot(self._next_slot)).uid in taken:
            self._next_slot = (self._next_slot + 1) % SLOTS
        self._next_slot = (self._next_slot + 1) % SLOTS
        return ids

    def _lay_directories(self, sandbox: _Sandbox) -> None:
        directory = str(self._state.sandbox(sandbox.spec.id))
        mode = 0o711
        os.mkdir(directory, mode)
        os.mkdir(f"{directory}/root", mode)
        names = ["upper", "work"]
        for system in snapshot_host.system_directories():
            names += [f"{system}.upper", f"{system}.work"]
        for name in [*names, "upper/etc"]:
            os.mkdir(f"{directory}/{name}", 0o755)
        hostname = sandbox.spec.hostname
        files = {"hostname": f"{hostname}\n", "hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost\n"}
        for name, text in files.items():
            with open(f"{directory}/upper/etc/{name}", "w") as file:
                file.write(text)
        if sandbox.ids.count > 1:
            for name in [*names, "upper/etc", "upper/etc/hosts", "upper/etc/hostname"]:
                os.chown(f"{directory}/{name}", sandbox.ids.uid, sandbox.ids.gid)

    async def start(self, id: str) -> DaemonAddress:
        sandbox = self._sandboxes[id]
        client = await self._zygote()
        spec = sandbox.spec
        path = self._state.daemon_socket(id)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(4096)
            config = os.memfd_create("configuration")
            stack.callback(os.close, config)
            settings = {
                "sandbox_id": spec.id, "secret": spec.secret, "work_dir": spec.work_dir, "user": spec.user,
                "env_vars": dict(spec.env_vars), "files_root": _WORK_DIR, "hostname": spec.hostname,
            }
            os.write(config, json.dumps(settings).encode())
            os.lseek(config, 0, os.SEEK_SET)
            answer = await client.request("start", [listener.fileno(), config], plan=self._plan(sandbox).to_message())
        if not answer["ok"]:
            path.unlink(missing_ok=True)
            raise RuntimeFailure(f"sandbox {id} did not start, at {answer['stage']!r}: {answer['error']}")
        sandbox.state = "running"
        return DaemonAddress(path=str(path), secret=spec.secret)

    def _plan(self, sandbox: _Sandbox) -> BootPlan:
        mapped = sandbox.ids.count > 1
        root = Overlay(target="", layers=(Layer(path=str(self._skeleton), mapped=mapped),), upper="upper", work="work")
        system = [
            Overlay(target=name, layers=(Layer(path=f"/{name}", mapped=mapped),), upper=f"{name}.upper", work=f"{name}.work")
            for name in snapshot_host.system_directories()
        ]
        return BootPlan(id=sandbox.spec.id, directory=str(self._state.sandbox(sandbox.spec.id)), ids=sandbox.ids, overlays=(root, *system), hostname=sandbox.spec.hostname)

    async def address(self, id: str) -> DaemonAddress | None:
        sandbox = self._sandboxes.get(id)
        if sandbox is None or sandbox.state != "running":
            return None
        return DaemonAddress(path=str(self._state.daemon_socket(id)), secret=sandbox.spec.secret)

    async def stop(self, id: str) -> None:
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            return
        sandbox.state = "stopped"
        await (await self._zygote()).request("kill", id=id)
        self._state.daemon_socket(id).unlink(missing_ok=True)

    async def destroy(self, id: str) -> None:
        if id not in self._sandboxes:
            return
        await self.stop(id)
        del self._sandboxes[id]
        self._state.discard(self._state.sandbox(id))
        task = asyncio.create_task(asyncio.to_thread(self._state.empty_trash))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def list(self) -> list[RuntimeStatus]:
        return [RuntimeStatus(id=id, state=s.state, reason=s.reason) for id, s in self._sandboxes.items()]

    async def aclose(self, *, destroy: bool) -> None:
        if self._client is not None:
            await self._client.request("shutdown")
            self._client.close()
            self._client = None
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        for s in list(self._sandboxes):
            self._state.discard(self._state.sandbox(s))
        await asyncio.gather(*self._cleaning)
        await asyncio.to_thread(self._state.clear)
        await asyncio.to_thread(self._state.empty_trash)
        self._state.close()

    async def _zygote(self) -> ZygoteClient:
        async with self._starting_zygote:
            if self._client is None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with listener:
                    self._state.control_socket.unlink(missing_ok=True)
                    listener.bind(str(self._state.control_socket))
                    listener.listen(8)
                    connection.connect(str(self._state.control_socket))
                    log = os.open(self._state.path / "zygote.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    settings = dict(control=listener.fileno(), ephemeral=self._ephemeral, die_with=self._die_with, daemon_entry=self._daemon_entry, trash=[])
                    self._process = await asyncio.to_thread(zygote_client.spawn, settings, [listener.fileno()], detached=not self._ephemeral, log=log)
                self._client = ZygoteClient(connection, self._exited, self._lost)
            return self._client

    def _exited(self, id: str, reason: str) -> None:
        if (s := self._sandboxes.get(id)) is not None:
            s.state, s.reason = "failed", reason
            self._on_exit(id, reason)

    def _lost(self) -> None:
        self._client = None
