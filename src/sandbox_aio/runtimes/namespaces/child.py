"""What a fork of the zygote does until it is a daemon.

Two processes share the work. The *usher* is the zygote's child: it enters new namespaces, has its ids mapped, forks
the *init*, and leaves. The init is process 1 of the sandbox. Until here, all sandboxes are alike, so an init can be
prepared before it is wanted. Once it is told which sandbox it is, it mounts that sandbox's files, enters them, gives
up every privilege that reaches outside, and becomes the daemon.

Both report to the zygote over one socket; a stage that fails is named there, and then the process ends.

    usher -> zygote   {"unshared": true}                  only with a range of ids
    zygote -> usher   {"mapped": true} + layers           the id maps are written; the layers are detached mounts
    usher -> zygote   {"init": pid}                       and the usher ends
    init -> zygote    {"egress": true} + [socket]         it listens in the sandbox's own network, for the server
    zygote -> init    {"adopted": true}                   the usher is reaped: the zygote is the init's parent now
    zygote -> init    {"plan": ...} + [listener, config]
    init -> zygote    {"ready": true}
    either -> zygote  {"failed": stage, "errno": number, "message": text}
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..base import EGRESS_PORT
from . import control, mounts, privileges, syscalls

if TYPE_CHECKING:
    from .plan import Preparation

__all__ = ["DaemonEntry", "boot"]

DaemonEntry = Callable[[socket.socket, dict[str, Any]], None]
Stage = tuple[str, Callable[[], None]]

HANDSHAKE_TIMEOUT_S: Final = 20.0
EGRESS_BACKLOG: Final = 128
"""Connections that wait in the kernel for the server to accept them."""

_NAMESPACES: Final = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


def boot(preparation: Preparation, channel: socket.socket, entry: DaemonEntry, *, dies_with_zygote: bool) -> NoReturn:
    """Turn this fork of the zygote into a sandbox. Never returns, whatever happens."""
    child = _Child(preparation, channel, dies_with_zygote=dies_with_zygote)
    try:
        child.run(child.usher_stages())
        if pid := os.fork():
            child.name_init(pid)
            os._exit(0)
        child.run(child.preparing_stages())
        with_daemon = child.wait_for_plan()
        child.run(child.booting_stages())
        if with_daemon:
            child.become_daemon(entry)
        else:
            control.send(channel, {"ready": True})
            os._exit(0)
    except BaseException as error:
        child.report(error)
    finally:
        os._exit(1)


class _Child:
    """The stages of a boot, in order. The name of a stage is part of the message when it fails."""

    def __init__(self, preparation: Preparation, channel: socket.socket, *, dies_with_zygote: bool) -> None:
        self._preparation = preparation
        self._channel = channel
        self._dies_with_zygote = dies_with_zygote
        self._stage = "begin"
        self._trees: list[int] = []
        self._id = ""
        self._hostname = ""
        self._listener = -1
        self._config = -1

    def run(self, stages: Sequence[Stage]) -> None:
        """Do one stage after the other."""
        for self._stage, act in stages:
            act()

    def report(self, error: BaseException) -> None:
        """Tell the zygote what failed."""
        text = str(error) if isinstance(error, OSError) else "".join(traceback.format_exception(error))
        message = {"failed": self._stage, "errno": getattr(error, "errno", None), "message": text[-8000:]}
        try:
            self._channel.setblocking(False)
            control.send(self._channel, message)
        except OSError:
            return  # The zygote is gone; nobody is left to tell.

    # The usher.

    def usher_stages(self) -> Sequence[Stage]:
        return (
            ("forget the zygote", self._forget_the_zygote),
            ("join the cgroup", self._join_cgroup),
            ("enter the state directory", lambda: os.chdir(self._preparation.sandboxes)),
            ("create namespaces", lambda: syscalls.unshare(_NAMESPACES)),
            ("map user ids", self._map_ids),
            ("become root inside", self._become_root),
        )

    def _forget_the_zygote(self) -> None:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.umask(0o022)
        syscalls.set_process_name("sandbox-spare")
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        syscalls.close_all_except(frozenset({self._channel.fileno()}))
        self._channel.settimeout(HANDSHAKE_TIMEOUT_S)

    def _join_cgroup(self) -> None:
        for path in self._preparation.cgroup_files:
            with open(path, "w") as file:
                file.write("0")

    def _map_ids(self) -> None:
        if self._preparation.ids.count == 1:
            self._preparation.ids.write("self")
            self._trees = [syscalls.detached_clone(layer.path) for layer in self._preparation.trees]
            return
        control.send(self._channel, {"unshared": True})
        _, self._trees = self._expect("mapped")

    def _become_root(self) -> None:
        if self._preparation.ids.count > 1:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def name_init(self, pid: int) -> None:
        """Tell the zygote, which alone will know the init from now on, its process id."""
        try:
            control.send(self._channel, {"init": pid})
        except OSError:  # The zygote has given this boot up, and will never know the init.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    # The init, whatever sandbox it will be.

    def preparing_stages(self) -> Sequence[Stage]:
        return (
            ("hide this process", privileges.hide_this_process),
            ("limit capabilities", lambda: privileges.limit_capabilities(self._preparation.profile)),
            ("limit resources", privileges.limit_resources),
            ("bring lo up", syscalls.loopback_up),
            ("listen for egress", self._listen_for_egress),
            ("wait for the zygote", self._be_adopted),
            ("warm up", _warm_up),
        )

    def _listen_for_egress(self) -> None:
        """Open the sandbox's only way out, and keep nothing of it: who accepts connections there is the server."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", EGRESS_PORT))
            listener.listen(EGRESS_BACKLOG)
            control.send(self._channel, {"egress": True}, [listener.fileno()])

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

    def wait_for_plan(self) -> bool:
        """Wait, for as long as it takes, to hear which sandbox this is; return whether it gets a daemon."""
        self._stage = "wait for the plan"
        self._channel.settimeout(None)
        plan, (self._listener, self._config) = self._expect("plan")
        syscalls.set_process_name("sandbox-daemon")
        self._id = plan["id"]
        self._hostname = plan["hostname"]
        return bool(plan["with_daemon"])

    # The init, as this sandbox.

    def booting_stages(self) -> Sequence[Stage]:
        return (
            ("make mounts private", mounts.make_private),
            ("enter the sandbox's directory", lambda: os.chdir(self._id)),
            ("mount the layers", lambda: mounts.mount_overlays(self._preparation, self._trees)),
            ("mount /dev", mounts.mount_dev),
            ("mount /proc", mounts.mount_proc),
            ("enter the root directory", mounts.enter),
            ("protect /proc", mounts.protect_proc),
            ("set the host name", lambda: socket.sethostname(self._hostname)),
            ("drop privileges", lambda: privileges.drop(self._preparation.profile)),
        )

    def become_daemon(self, entry: DaemonEntry) -> None:
        """Read the configuration, which went past the zygote, and serve."""
        self._stage = "read the daemon's configuration"
        with open(self._config, "rb", buffering=0) as file:
            config: dict[str, Any] = json.loads(file.readall())
        listener = socket.socket(fileno=self._listener)
        listener.setblocking(False)
        _forget_how_to_import()
        control.send(self._channel, {"ready": True})
        self._stage = "the daemon"
        gc.enable()
        entry(listener, config)

    def _expect(self, word: str) -> tuple[dict[str, Any], list[int]]:
        received = control.receive(self._channel)
        if received is None or word not in received[0]:
            os._exit(0)  # The zygote has given this boot up.
        return received


def _warm_up() -> None:
    """Turn an event loop once, as the daemon will: the memory that this writes to is copied now and not then."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(asyncio.sleep(0))


def _forget_how_to_import() -> None:
    """Make every further import fail.

    From here on the file system is the sandbox's: a module found there would be its code, run in this process.
    """
    sys.path[:] = []
    sys.meta_path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
