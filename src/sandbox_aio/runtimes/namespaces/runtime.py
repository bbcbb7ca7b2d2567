"""The `namespaces` runtime, as the server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import uuid
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from ...shielding import shielded
from ..base import (
    Capabilities,
    Captured,
    DaemonAddress,
    ExitCallback,
    RuntimeFailure,
    RuntimeStatus,
    SandboxSpec,
    SnapshotInfo,
    Unavailable,
)
from . import handover, probe, sandbox_directory
from .capture import capture
from .cgroups import Cgroups, remove_groups
from .file_systems import FileSystems
from .idmap import IdMap, IdSupply
from .keeper import ZygoteKeeper
from .plan import BootPlan, Preparation
from .sandbox_directory import Record
from .snapshot_host import HOST_SNAPSHOT_ID
from .state import StateDirectory

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Iterable

__all__ = ["NamespacesRuntime"]

logger: logging.Logger = logging.getLogger("sandbox_aio.runtimes")

DAEMON_ENTRY: Final = "sandbox_aio.daemon.main:run"
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


@attrs.define(eq=False, kw_only=True)
class _Sandbox:
    spec: SandboxSpec
    ids: IdMap
    state: Literal["created", "running", "stopped", "failed"] = "created"
    reason: str | None = None
    changing: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    """Held while it is created, started, stopped or destroyed."""


class NamespacesRuntime:
    """Sandboxes on this machine, each in namespaces of its own.

    `ephemeral`: the sandboxes end with the process that opened the runtime, however it ends, and nothing of them is
    left. Otherwise they run on, and a later runtime on the same directory finds them again.

    `die_with`: a descriptor; an ephemeral zygote also ends everything when it reads end of file from it.

    `daemon_entry`: `module:function`; the zygote imports it, and every sandbox calls it with its listener and its
    configuration.

    `snapshots`: names and directories of further snapshots; see `snapshot_directory`.
    """

    name = probe.NAME

    def __init__(
        self,
        state_dir: Path,
        *,
        ephemeral: bool,
        die_with: int | None = None,
        daemon_entry: str = DAEMON_ENTRY,
        snapshots: Iterable[tuple[str, Path]] = (),
    ) -> None:
        self._state = StateDirectory(Path(state_dir))
        self._ephemeral = ephemeral
        self._on_exit: ExitCallback = lambda id, reason: None
        self._capabilities: Capabilities | None = None
        self._keeper = ZygoteKeeper(
            self._state,
            ephemeral=ephemeral,
            die_with=die_with,
            daemon_entry=daemon_entry,
            on_exit=self._sandbox_ended,
            on_loss=self._zygote_lost,
        )
        self._sandboxes: dict[str, _Sandbox] = {}
        seed = zlib.crc32(os.fsencode(self._state.path))
        self._tag = f"sandbox-aio-{seed:08x}"
        self._cgroups = Cgroups(parents={}, versions={})
        self._ids = IdSupply(seed)
        self._files = FileSystems(self._state, snapshots)
        self._cleaning: asyncio.Task[None] | None = None
        self._trash_is_full = False
        self._background: set[asyncio.Task[None]] = set()

    # The runtime as a whole.

    async def open(self, on_exit: ExitCallback) -> Capabilities:
        """Make the runtime ready: see `Runtime.open`.

        Raises RuntimeFailure when the runtime is unavailable here, and when another server uses the state directory.
        Cancellation: safe; nothing is left.
        """
        self._on_exit = on_exit
        if (unavailable := probe.preconditions()) is not None:
            raise _failure(unavailable)
        self._files.open()
        await asyncio.to_thread(self._state.open)
        try:
            await self._recover()
            found = await self._try_out()
            if isinstance(found, Unavailable):
                raise _failure(found)
        except BaseException:
            await shielded(self._abandon())
            raise
        self._capabilities = found
        await self._prepare_next(HOST_SNAPSHOT_ID, ())
        return found

    async def aclose(self, *, destroy: bool) -> None:
        """Let go: see `Runtime.aclose`. An ephemeral runtime always destroys. Cancellation: it is finished all the
        same.
        """
        await shielded(self._close(destroy=destroy or self._ephemeral))

    async def probe(self) -> Capabilities | Unavailable:
        """Say what this machine allows, from a boot that was really tried. Opens and closes the runtime if it is not
        open.
        """
        if self._capabilities is not None:
            return self._capabilities
        if (unavailable := probe.preconditions()) is not None:
            return unavailable
        try:
            await asyncio.to_thread(self._state.open)
        except RuntimeFailure as failure:
            return Unavailable(runtime=self.name, reason=str(failure), hint="choose another --state-dir")
        try:
            return await self._try_out()
        finally:
            await shielded(self._abandon())

    async def _close(self, *, destroy: bool) -> None:
        if not self._state.is_open:
            return
        if self._background:
            await asyncio.wait(self._background)
        self._sandboxes.clear()
        self._capabilities = None
        if not destroy:
            self._keeper.leave()
            self._state.close()
            return
        try:
            await self._keeper.end()
            lock = await self._state.zygote_lock()
            try:
                await asyncio.to_thread(self._remove_everything)
            finally:
                os.close(lock)
        finally:
            self._state.close()

    async def _abandon(self) -> None:
        """Undo a half-done `open`, without touching the sandboxes of a persistent predecessor."""
        await self._close(destroy=self._ephemeral or not self._sandboxes)

    def _remove_everything(self) -> None:
        self._cgroups.clear()
        self._state.remove()

    async def _recover(self) -> None:
        """Come to terms with what an earlier server left: take its sandboxes over, or remove them."""
        running = await self._keeper.take_over()
        if running is None:
            await asyncio.to_thread(self._kill_orphans)
        if self._ephemeral:
            await asyncio.to_thread(self._state.clear)
            await asyncio.to_thread(Cgroups.detect(self._tag).clear)
        else:
            self._adopt(running or set())

    def _kill_orphans(self) -> None:
        for directory in self._state.sandboxes.iterdir():
            sandbox_directory.kill_orphan(directory)

    def _adopt(self, running: set[str]) -> None:
        for directory in list(self._state.sandboxes.iterdir()):
            record = Record.read(directory)
            if record is None:
                self._state.discard(directory)
                continue
            id = record.spec.id
            state: Literal["running", "stopped"] = "running" if id in running else "stopped"
            self._sandboxes[id] = _Sandbox(spec=record.spec, ids=record.ids, state=state)
        self._clean_up()

    async def _try_out(self) -> Capabilities | Unavailable:
        """Boot a sandbox that ends where its daemon would begin; learn which layers cannot be mapped on the way."""
        self._cgroups = await asyncio.to_thread(Cgroups.detect, self._tag)
        self._keeper.cgroups = [str(path) for path in self._cgroups.parents.values()]
        ids = self._ids.next
        files = self._files
        while True:
            await asyncio.to_thread(files.build)
            answer = await self._trial(ids)
            if answer["ok"]:
                return probe.capabilities(ids, self._cgroups, files.unmapped, shared_ids=files.owner != 0)
            layer = answer.get("layer")
            if layer is None or layer in files.unmapped:
                return probe.explain(answer, self._state.path)
            if files.give_up_mapping(layer):
                files.owner = self._ids.share().uid
                await asyncio.to_thread(self._state.open_layers)

    async def _trial(self, ids: IdMap) -> dict[str, Any]:
        id = str(uuid.uuid4())
        directory = self._state.sandbox(id)
        overlays = self._files.overlays(HOST_SNAPSHOT_ID, ())
        preparation = Preparation(sandboxes=str(self._state.sandboxes), ids=ids, overlays=overlays)
        plan = BootPlan(id=id, hostname="trial", preparation=preparation, with_daemon=False)
        client = await self._keeper.client()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            await asyncio.to_thread(sandbox_directory.lay, directory, ids, overlays, "trial")
            answer = await client.request("start", [null, null], plan=attrs.asdict(plan))
            await client.request("kill", id=id)  # It is ending; this waits for the end.
            return answer
        finally:
            os.close(null)
            self._state.discard(directory)
            self._clean_up()

    def _preparation(
        self,
        base: str | None,
        layers: tuple[str, ...],
        ids: IdMap,
        cgroup_files: tuple[str, ...] = (),
        profile: str = "default",
    ) -> Preparation:
        return Preparation(
            sandboxes=str(self._state.sandboxes),
            ids=ids,
            overlays=self._files.overlays(base, layers),
            shelf=self._files.shelf(layers),
            cgroup_files=cgroup_files,
            profile=profile,
        )

    # One sandbox.

    async def snapshots(self) -> list[SnapshotInfo]:
        """Return `host`, the machine's own programs in a fresh system, and the directories that were named."""
        return await self._files.snapshots()

    @property
    def layers_directory(self) -> Path:
        """Where the layers are: see `Runtime.layers_directory`."""
        return self._state.layers

    @property
    def layer_owner(self) -> int:
        """Who owns what belongs to root in a layer: see `Runtime.layer_owner`."""
        return self._files.owner

    async def create(self, spec: SandboxSpec) -> None:
        """Make a sandbox's directory: see `Runtime.create`. Nothing happens when there is such a sandbox.

        Raises RuntimeFailure for an unknown base or layer, a bad id or host name, a limit that cannot be enforced,
        and a full disk.
        """
        self._require_sane(spec)
        if spec.id in self._sandboxes:
            return
        try:
            ids = self._ids.take({sandbox.ids for sandbox in self._sandboxes.values()})
        except LookupError as error:
            raise RuntimeFailure(str(error), kind="Runtime") from error
        sandbox = _Sandbox(spec=spec, ids=ids)
        self._sandboxes[spec.id] = sandbox
        directory = self._state.sandbox(spec.id)
        async with sandbox.changing:
            try:
                await shielded(asyncio.to_thread(self._lay, sandbox, directory))
            except BaseException as error:
                self._sandboxes.pop(spec.id, None)
                self._state.discard(directory)
                self._clean_up()
                if isinstance(error, OSError):
                    raise RuntimeFailure(f"the sandbox's directory cannot be made: {error}", kind="Runtime") from error
                raise

    def _require_sane(self, spec: SandboxSpec) -> None:
        try:
            if str(uuid.UUID(spec.id)) != spec.id:
                raise ValueError
        except ValueError:
            raise RuntimeFailure(f"{spec.id!r} is not a UUID in lower case") from None
        self._files.require(spec)
        if not _HOSTNAME.fullmatch(spec.hostname):
            raise RuntimeFailure(f"{spec.hostname!r} is not a host name: letters, digits, '-' and '.', at most 63")
        self._cgroups.require(cpu_millicores=spec.cpu_millicores, mem_bytes=spec.mem_bytes)

    async def _prepare_next(self, base: str | None, layers: tuple[str, ...]) -> None:
        """Have the zygote do ahead of time what does not depend on which sandbox comes next.

        That the next one is of the same snapshot as the last is a guess; a wrong one costs time, and nothing else.
        """
        if (client := self._keeper.present) is not None:
            preparation = attrs.asdict(self._preparation(base, layers, self._ids.next))
            with contextlib.suppress(RuntimeFailure):  # Then the next start takes longer.
                await client.request("prepare", preparation=preparation)

    def _lay(self, sandbox: _Sandbox, directory: Path) -> None:
        spec = sandbox.spec
        overlays = self._files.overlays(spec.base, spec.layers)
        mount_points = self._files.mount_points(spec.base)
        sandbox_directory.lay(directory, sandbox.ids, overlays, spec.hostname, mount_points=mount_points)
        if not self._ephemeral:
            Record(spec=spec, ids=sandbox.ids).write(directory)

    async def start(self, id: str) -> DaemonAddress:
        """Boot a sandbox: see `Runtime.start`. Nothing happens when it runs.

        Raises RuntimeFailure that names the step and the kernel's reason; nothing but the sandbox's files is left then.
        Cancellation: the sandbox does not run.
        """
        sandbox = self._known(id)
        async with sandbox.changing:
            if sandbox.state != "running":
                try:
                    await self._boot(sandbox)
                except BaseException as error:
                    sandbox.state, sandbox.reason = "failed", str(error) or type(error).__name__
                    await shielded(self._end(sandbox))
                    raise
                sandbox.state, sandbox.reason = "running", None
                self._in_background(self._prepare_next(sandbox.spec.base, sandbox.spec.layers))
        return self._address(sandbox)

    async def _boot(self, sandbox: _Sandbox) -> None:
        spec = sandbox.spec
        client = await self._keeper.client()
        groups: tuple[str, ...] = ()
        if spec.cpu_millicores is not None or spec.mem_bytes is not None:
            groups = await asyncio.to_thread(
                self._cgroups.make, spec.id, cpu_millicores=spec.cpu_millicores, mem_bytes=spec.mem_bytes
            )
        preparation = self._preparation(spec.base, spec.layers, sandbox.ids, groups, spec.profile)
        plan = attrs.asdict(BootPlan(id=spec.id, hostname=spec.hostname, preparation=preparation))
        with (
            handover.listener(self._state.daemon_socket(spec.id)) as listener,
            handover.configuration(spec) as settings,
        ):
            answer = await client.request("start", [listener, settings], plan=plan)
        if not answer["ok"]:
            await asyncio.to_thread(remove_groups, groups)
            raise RuntimeFailure(
                f"sandbox {spec.id} did not start: at the step {answer.get('stage')!r}: {answer['error']}",
                kind="Runtime",
            )

    async def address(self, id: str) -> DaemonAddress | None:
        """Return where the daemon of a running sandbox listens; None when it does not run."""
        sandbox = self._sandboxes.get(id)
        return self._address(sandbox) if sandbox is not None and sandbox.state == "running" else None

    async def egress_listener(self, id: str) -> socket.socket | None:
        """Return a socket that listens in a running sandbox's network: see `Runtime.egress_listener`."""
        client = self._keeper.present
        return await client.socket("egress", id=id) if client is not None and await self.address(id) else None

    async def capture(self, id: str, layer: Path) -> Captured:
        """Copy what a sandbox has changed into a layer: see `Runtime.capture`."""
        sandbox = self._known(id)
        async with sandbox.changing:
            overlays = self._files.overlays(sandbox.spec.base, sandbox.spec.layers)
            client = await self._keeper.client() if sandbox.state == "running" else None
            directory = self._state.sandbox(id)
            offset = sandbox.ids.uid - self._files.owner if sandbox.ids.count > 1 else 0
            return await capture(directory, overlays, layer / "tree", offset=offset, client=client, id=id)

    async def stop(self, id: str) -> None:
        """Kill every process of a sandbox and keep its files. Nothing happens when it does not run, or is unknown.

        Cancellation: it is stopped all the same.
        """
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            return
        async with sandbox.changing:
            if sandbox.state == "running":
                sandbox.state = "stopped"
                await shielded(self._end(sandbox))

    async def destroy(self, id: str) -> None:
        """Kill every process of a sandbox and take its files away; nothing happens when it is unknown.

        Its files are out of reach at once; removing them goes on in the background until `aclose`.
        Cancellation: it is destroyed all the same.
        """
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            return
        async with sandbox.changing:
            if self._sandboxes.get(id) is sandbox:
                await shielded(self._destroy(sandbox))

    async def _destroy(self, sandbox: _Sandbox) -> None:
        if sandbox.state == "running":
            sandbox.state = "stopped"
            await self._end(sandbox)
        self._state.discard(self._state.sandbox(sandbox.spec.id))
        self._sandboxes.pop(sandbox.spec.id, None)
        self._clean_up()

    async def _end(self, sandbox: _Sandbox) -> None:
        """See to it that nothing of a sandbox runs or listens."""
        if (client := self._keeper.present) is not None:
            with contextlib.suppress(RuntimeFailure):  # The zygote is gone, and so is the sandbox.
                await client.request("kill", id=sandbox.spec.id)
        self._state.daemon_socket(sandbox.spec.id).unlink(missing_ok=True)

    async def list(self) -> list[RuntimeStatus]:
        """Return all sandboxes, also those that an earlier process made."""
        return [
            RuntimeStatus(id=id, state=sandbox.state, reason=sandbox.reason) for id, sandbox in self._sandboxes.items()
        ]

    def _known(self, id: str) -> _Sandbox:
        sandbox = self._sandboxes.get(id)
        if sandbox is None:
            raise RuntimeFailure(f"there is no sandbox {id!r}", kind="NotFound")
        return sandbox

    def _address(self, sandbox: _Sandbox) -> DaemonAddress:
        return DaemonAddress(path=str(self._state.daemon_socket(sandbox.spec.id)), secret=sandbox.spec.secret)

    # What happens by itself.

    def _zygote_lost(self) -> None:
        """The zygote died, and so did, or shall, every sandbox: the next start begins with a new one."""
        for id, sandbox in list(self._sandboxes.items()):
            if sandbox.state == "running":
                self._sandbox_ended(id, f"the zygote ended; {self._state.log} may say why")

    def _sandbox_ended(self, id: str, reason: str) -> None:
        sandbox = self._sandboxes.get(id)
        if sandbox is not None and sandbox.state == "running":
            sandbox.state, sandbox.reason = "failed", reason
            self._state.daemon_socket(id).unlink(missing_ok=True)
            self._on_exit(id, reason)

    # Cleaning up.

    def _clean_up(self) -> None:
        """Remove what was discarded, in the background, one thing after the other."""
        self._trash_is_full = True
        if self._cleaning is None or self._cleaning.done():
            self._cleaning = self._in_background(self._empty_trash())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something that `aclose` waits for."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _empty_trash(self) -> None:
        while self._trash_is_full:
            self._trash_is_full = False
            try:
                await asyncio.to_thread(self._state.empty_trash)
            except OSError as error:
                logger.error("cannot remove what a sandbox left: %s", error)


def _failure(unavailable: Unavailable) -> RuntimeFailure:
    return RuntimeFailure(
        f"the runtime {unavailable.runtime} cannot run here: {unavailable.reason}. To mend it: {unavailable.hint}",
        kind="RuntimeUnavailable",
    )
