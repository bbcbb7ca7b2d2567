"""What a fork of the zygote does until it is a daemon.

Two processes share the work. The *usher* is the zygote's child: it enters the new namespaces, has its ids mapped, forks
the *init*, and leaves. The init is process 1 of the sandbox: it mounts, enters, gives up every privilege that reaches outside, and
becomes the daemon. Both report to the zygote over one socket; a stage that fails is named there, and then the process ends.

    usher -> zygote   {"unshared": true}                only with a range of ids
    zygote -> usher   {"mapped": true} + layers         the id maps are written; the layers are detached mounts
    usher -> zygote   {"init": pid}                     and the usher ends
    zygote -> init    {"adopted": true}                 the usher is reaped: the zygote is the init's parent now
    init -> zygote    {"ready": true}
    either -> zygote  {"failed": stage, "errno": number, "message": text}
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import control, mounts, seccomp, syscalls

if TYPE_CHECKING:
    from .plan import BootPlan

__all__ = ["DaemonEntry", "boot"]

DaemonEntry = Callable[[socket.socket, dict[str, Any]], None]

HANDSHAKE_TIMEOUT_S: Final = 20.0

_NAMESPACES: Final = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)
_KEPT_CAPABILITIES: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""All of them hold over the sandbox's own user namespace only. CAP_SYS_ADMIN and CAP_NET_ADMIN are gone: much of the
kernel is reachable only with them."""

_MAX_PROCESSES: Final = 16_384
_MAX_OPEN_FILES: Final = 65_536


def boot(
    plan: BootPlan,
    channel: socket.socket,
    listener: int,
    config: int,
    entry: DaemonEntry | None,
    *,
    dies_with_zygote: bool,
) -> NoReturn:
    """Turn this fork of the zygote into a sandbox. Never returns, whatever happens."""
    stage = "start"
    try:
        child = _Child(plan, channel, listener, config, dies_with_zygote=dies_with_zygote)
        for stage, act in child.usher_stages():
            act()
        if pid := os.fork():
            _name_init(channel, pid)
            os._exit(0)
        for stage, act in child.init_stages():
            act()
        if entry is None or not plan.with_daemon:
            control.send(channel, {"ready": True})
            os._exit(0)
        stage = "the daemon's configuration"
        listening = socket.socket(fileno=listener)
        listening.setblocking(False)
        settings = child.read_config()
        _forget_how_to_import()
        control.send(channel, {"ready": True})
        stage = "the daemon"
        gc.enable()
        entry(listening, settings)
    except BaseException as error:
        _report(channel, stage, error)
    finally:
        os._exit(1)


def _name_init(channel: socket.socket, pid: int) -> None:
    try:
        control.send(channel, {"init": pid})
    except OSError:  # The zygote has given this boot up, and will never know the init.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _report(channel: socket.socket, stage: str, error: BaseException) -> None:
    text = str(error) if isinstance(error, OSError) else "".join(traceback.format_exception(error))
    try:
        channel.setblocking(False)
        control.send(channel, {"failed": stage, "errno": getattr(error, "errno", None), "message": text[-8000:]})
    except OSError:
        return  # The zygote is gone; nobody is left to tell.


def _forget_how_to_import() -> None:
    """Make every further import fail.

    From here on the file system is the sandbox's: a module found there would be its code, run in this process.
    """
    sys.path[:] = []
    sys.meta_path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()


class _Child:
    """The stages of a boot, in order; each is one line of a failure message."""

    def __init__(
        self, plan: BootPlan, channel: socket.socket, listener: int, config: int, *, dies_with_zygote: bool
    ) -> None:
        self._plan = plan
        self._channel = channel
        self._listener = listener
        self._config = config
        self._dies_with_zygote = dies_with_zygote
        self._layers: list[list[int]] = []

    def usher_stages(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("forget the zygote", self._forget_the_zygote),
            ("join the cgroup", self._join_cgroup),
            ("enter the sandbox's directory", lambda: os.chdir(self._plan.directory)),
            ("create namespaces", lambda: syscalls.unshare(_NAMESPACES)),
            ("map user ids", self._map_ids),
            ("become root inside", self._become_root),
        ]

    def init_stages(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("hide this process", _hide_this_process),
            ("make mounts private", mounts.make_private),
            ("mount the layers", lambda: mounts.mount_overlays(self._plan.overlays, self._layers)),
            ("mount /dev", mounts.device_nodes),
            ("mount /proc", mounts.mount_proc),
            ("enter the root directory", mounts.enter),
            ("protect /proc", mounts.protect_proc),
            ("set the host name", lambda: socket.sethostname(self._plan.hostname)),
            ("bring lo up", syscalls.loopback_up),
            ("wait for the zygote", self._be_adopted),
            ("drop privileges", _drop_privileges),
            ("limit resources", _limit_resources),
            ("filter system calls", _filter_system_calls),
        ]

    def read_config(self) -> dict[str, Any]:
        """Read the daemon's configuration, which the zygote never saw: its memory is copied into every sandbox."""
        with open(self._config, encoding="utf-8") as file:
            settings: dict[str, Any] = json.load(file)
        return settings

    def _forget_the_zygote(self) -> None:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.umask(0o022)
        syscalls.set_process_name("sandbox-daemon")
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        syscalls.close_all_except(frozenset({self._channel.fileno(), self._listener, self._config}))
        self._channel.settimeout(HANDSHAKE_TIMEOUT_S)

    def _join_cgroup(self) -> None:
        for path in self._plan.cgroup_files:
            with open(path, "w") as file:
                file.write("0")

    def _map_ids(self) -> None:
        overlays = self._plan.overlays
        if self._plan.ids.count == 1:
            self._plan.ids.write("self")
            self._layers = [[syscalls.detached_clone(layer.path) for layer in overlay.layers] for overlay in overlays]
            return
        control.send(self._channel, {"unshared": True})
        _, descriptors = self._expect("mapped")
        rest = iter(descriptors)
        self._layers = [[next(rest) for _ in overlay.layers] for overlay in overlays]

    def _become_root(self) -> None:
        if self._plan.ids.count > 1:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def _be_adopted(self) -> None:
        """Wait until the zygote is this process's parent, then, perhaps, tie this life to the zygote's.

        The signal fires when the *current* parent dies: asked for any earlier, it would come with the usher's end.
        """
        self._expect("adopted")
        if self._dies_with_zygote:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            gone = select.poll()
            gone.register(self._channel, 0)
            if gone.poll(0):
                os._exit(0)

    def _expect(self, word: str) -> tuple[dict[str, Any], list[int]]:
        received = control.receive(self._channel)
        if received is None or word not in received[0]:
            os._exit(0)  # The zygote has given this boot up.
        return received


def _drop_privileges() -> None:
    """Keep only harmless capabilities, also for programs that root starts, and never gain any by starting a program."""
    kept = frozenset(_KEPT_CAPABILITIES.values())
    syscalls.bounding_set_drop(kept)
    syscalls.capabilities_set(sum(1 << number for number in kept))
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _limit_resources() -> None:
    """Bound what the kernel would otherwise bound by the host's settings. A hard limit is only ever lowered.

    A core limit of one byte is the value at which Linux also leaves a `core_pattern` that pipes into a host program alone.
    """
    for limit, wanted in (
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        _, hard = resource.getrlimit(limit)
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (bound, bound))


def _filter_system_calls() -> None:
    seccomp.install(seccomp.program(syscalls.ARCHITECTURE))


def _hide_this_process() -> None:
    """Close /proc/1/{environ,exe,fd,maps,mem,root} to the sandbox: they are the zygote's, hence the host's."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
