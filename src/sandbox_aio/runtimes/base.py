"""The interface between the server and whatever makes sandboxes.

A runtime makes, starts, stops, destroys and lists sandboxes and tells where a sandbox's daemon listens. Commands,
files and ports are not its business: those go to the daemon. Nothing here is a process id, and the one descriptor, on
which a sandbox's way out is served, may be a bridge: the same interface fits a runtime on another machine.

Every method may be called again after a crash of its caller: `create`, `stop` and `destroy` are idempotent by id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, Protocol

import attrs

if TYPE_CHECKING:
    import socket
    from pathlib import Path

__all__ = [
    "EGRESS_PORT",
    "MAX_LAYERS",
    "Capabilities",
    "Captured",
    "DaemonAddress",
    "ExitCallback",
    "Runtime",
    "RuntimeFailure",
    "RuntimeStatus",
    "SandboxSpec",
    "SnapshotInfo",
    "Unavailable",
]

EGRESS_PORT: Final = 17_128
"""Where programs in a sandbox find the server's proxy, at 127.0.0.1. Below the ephemeral ports; IANA gave it nobody."""

MAX_LAYERS: Final = 490
"""Of one sandbox; the kernel stacks at most 500, and the base takes some of them."""


@attrs.frozen(kw_only=True)
class Capabilities:
    """What a runtime really enforces on this machine. The server prints it at start and never claims more."""

    runtime: str
    strength: Literal["process", "namespace", "syscall", "vm"]
    uids: Literal["range", "single"]
    """`range`: each sandbox has 65,536 host uids of its own; `single`: every sandbox shares one unprivileged uid."""
    memory: Literal["cgroup2", "cgroup1", "rlimit", "none"]
    cpu: Literal["cgroup2", "cgroup1", "none"]
    pids: Literal["cgroup2", "cgroup1", "rlimit", "none"]
    disk: Literal["quota", "poll", "none"]
    network: Literal["loopback", "shared"]
    """`loopback`: a network namespace with nothing but `lo`; `shared`: the host's network."""
    seccomp: bool
    notes: tuple[str, ...] = ()
    """Sentences for the operator: what is weaker than it could be, and the command that mends it."""


@attrs.frozen(kw_only=True)
class Unavailable:
    """The runtime cannot run here."""

    runtime: str
    reason: str
    hint: str
    """The one thing to do about it."""


@attrs.frozen(kw_only=True)
class SnapshotInfo:
    """A file system of the runtime's own that it can boot, and stack layers on."""

    id: str
    """UUID."""
    name: str
    tags: tuple[str, ...]
    fs_capacity_bytes: int
    work_dir: str
    env_vars: Mapping[str, str]
    user: str | None = None


@attrs.frozen(kw_only=True)
class SandboxSpec:
    """What to make. `id` is the sandbox's UUID and the key of every other call."""

    id: str
    base: str | None
    """The runtime's own snapshot below everything, such as `host`; None: the layers are all there is."""
    layers: tuple[str, ...] = ()
    """Layers over the base by their ids, topmost first: directories of `layers_directory`."""
    hostname: str
    secret: str
    """What the daemon demands in `x-sandbox-secret`."""
    work_dir: str = "/"
    user: str | None = None
    env_vars: Mapping[str, str] = attrs.field(factory=dict)
    profile: Literal["default", "build"] = "default"
    """`build`: what runs in it may mount and make namespaces, as programs that build images do. Never a user's choice:
    it opens more of the kernel to whatever runs there."""
    cpu_millicores: int | None = None
    """None: no limit. A runtime that cannot enforce a limit that is given raises `RuntimeFailure`."""
    mem_bytes: int | None = None


@attrs.frozen(kw_only=True)
class DaemonAddress:
    """Where a running sandbox's daemon listens: a unix socket, or a host and port."""

    path: str | None = None
    host: str | None = None
    port: int | None = None
    secret: str


@attrs.frozen(kw_only=True)
class RuntimeStatus:
    """One sandbox that the runtime knows."""

    id: str
    state: Literal["created", "running", "stopped", "failed"]
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Captured:
    """What a capture holds."""

    size_bytes: int
    """What its files hold."""
    entries: int
    frozen_seconds: float
    """For how long the sandbox stood still; 0 if it did not run."""


class RuntimeFailure(Exception):
    """A runtime could not do what it was asked; the message says what failed and what to do.

    `kind` is a short machine-readable word that the control plane sends as the error's type.
    """

    def __init__(self, message: str, *, kind: str = "SandboxConfig") -> None:
        super().__init__(message)
        self.kind = kind


ExitCallback = Callable[[str, str], None]
"""Called with a sandbox's id and a reason when its daemon ends without `stop` or `destroy`."""


class Runtime(Protocol):
    """What the server asks of a runtime. All methods are for one asyncio event loop."""

    name: str

    async def open(self, on_exit: ExitCallback) -> Capabilities:
        """Make the runtime ready: start what it needs, remove what a killed predecessor left.

        Raises RuntimeFailure, with a hint, when the runtime is unavailable here.
        """
        ...

    async def aclose(self, *, destroy: bool) -> None:
        """Let go. With `destroy`, every sandbox, process, mount, cgroup and directory is gone afterwards."""
        ...

    async def probe(self) -> Capabilities | Unavailable:
        """Try, in throw-away children, what this machine allows."""
        ...

    async def snapshots(self) -> list[SnapshotInfo]:
        """The file systems that can be booted as they are; `host` is always there."""
        ...

    @property
    def layers_directory(self) -> Path:
        """Where the layers are that this runtime can boot: a layer is `<id>/tree`, where the id is a number.

        Their form is that of overlayfs. Who puts one there publishes it whole, by a rename, and takes none away that a
        sandbox is made from.
        """
        ...

    @property
    def layer_owner(self) -> int:
        """The host uid and gid that id 0 of a layer has on disk, and 1, 2, ... follow; 0 wherever ids can be mapped.

        Known once the runtime is open.
        """
        ...

    async def create(self, spec: SandboxSpec) -> None:
        """Make a sandbox's directories; do not start it."""
        ...

    async def start(self, id: str) -> DaemonAddress:
        """Boot it, and return once its daemon accepts connections."""
        ...

    async def address(self, id: str) -> DaemonAddress | None:
        """Where the daemon of a running sandbox listens; None when it does not run."""
        ...

    async def egress_listener(self, id: str) -> socket.socket | None:
        """A non-blocking TCP socket that accepts what programs in a running sandbox connect to at `EGRESS_PORT`.

        The caller's to close, and then offered again to whoever asks. A runtime elsewhere bridges the connections to a
        socket here. None: the sandbox does not run, or its runtime has no way out to offer. The sandbox is asked for
        nothing: connections wait in the kernel until somebody accepts them.
        """
        ...

    async def capture(self, id: str, layer: Path) -> Captured:
        """Copy what the sandbox has changed since it was made into `layer`/tree, an empty directory beside the layers,
        in the form that layers have. A running sandbox stands still for a moment, and then runs on.

        Raises RuntimeFailure. Cancellation: the sandbox runs on; what is in the directory is worth nothing.
        """
        ...

    async def stop(self, id: str) -> None:
        """Kill every process of the sandbox; keep its files."""
        ...

    async def destroy(self, id: str) -> None:
        """Kill every process and remove every trace."""
        ...

    async def list(self) -> list[RuntimeStatus]:
        """All sandboxes, also those that an earlier process made."""
        ...
