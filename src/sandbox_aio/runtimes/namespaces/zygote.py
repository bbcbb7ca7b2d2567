"""The process from which every sandbox is forked.

It is started fresh, with an empty environment and no arguments, so that nothing of its owner's memory reaches a
sandbox; it has one thread, and everything that a daemon needs is imported before the first fork. It serves one server
at a time over its control socket:

    {"op": "prepare", "seq": n, "preparation": {...}}                      have an init ready for such a start
    {"op": "start", "seq": n, "plan": {...}} + [listener, configuration]   boot a sandbox
    {"op": "kill", "seq": n, "id": id}                                     kill all of it; answered when it is gone
    {"op": "egress", "seq": n, "id": id}                                   answered with {...} + [socket]: see child.py
    {"op": "list", "seq": n}                                               answered with {"running": [id, ...]}
    {"op": "shutdown", "seq": n}                                           kill everything and end

Each is answered with the same `seq` and either `"ok": true` or `"error"`, `"stage"` and `"errno"`. Unasked it says
`{"event": "exit", "id": id, "reason": text}` when a sandbox ends by itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import resource
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import attrs

from . import child, control, sandbox_directory, syscalls
from .cgroups import remove_groups
from .plan import BootPlan, Preparation, plan_from_json, preparation_from_json
from .sandbox_process import LayerError, SandboxProcess
from .state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

BOOT_TIMEOUT_S: Final = 20.0
LOCK_PATIENCE_S: Final = 1.0
MAX_SPARES: Final = 2
MAX_REASON: Final = 8000
"""Characters of what a process says about its own end."""
_STANDARD_MODULES: Final = (
    "asyncio",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "encodings.utf_8_sig",
    "linecache",
    "tracemalloc",
    "traceback",
    "warnings",
)
"""What the standard library imports only when it needs it."""


@attrs.frozen(kw_only=True)
class _Settings:
    """What the server says at the start. Descriptors are inherited under these numbers."""

    control: int
    """The control socket, which listens."""
    lock: int
    """A lock that is held as long as this process lives, and not used otherwise."""
    die_with: int | None = None
    """When it reads end of file, everything goes."""
    ephemeral: bool
    """When the server goes away, everything goes."""
    detached: bool
    """Leave the process that was started, which the server waits for."""
    daemon_entry: str
    """`module:function`."""
    state_dir: str
    cgroups: tuple[str, ...]
    """The groups that hold the sandboxes' own."""


def main() -> NoReturn:
    """Run the zygote with the settings, one line of JSON, that stdin brings. Never returns."""
    settings = _Settings(**json.loads(sys.stdin.buffer.readline()))
    if settings.detached and os.fork():
        os._exit(0)
    os.environ.clear()  # Python itself may have set LC_CTYPE.
    syscalls.overwrite_arguments()
    syscalls.set_process_name("sandbox-zygote")
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # Each sandbox takes three descriptors.
    entry = _load(settings.daemon_entry)
    gc.collect()
    gc.freeze()
    _Zygote(settings, entry).run()
    os._exit(0)


def _load(daemon_entry: str) -> child.DaemonEntry:
    for name in _STANDARD_MODULES:
        importlib.import_module(name)
    module, _, function = daemon_entry.partition(":")
    return cast("child.DaemonEntry", getattr(importlib.import_module(module), function))


def _remove_everything(settings: _Settings) -> None:
    """Do what the server did not live to do. If another one has taken the directory by now, it does it."""
    for group in settings.cgroups:
        with contextlib.suppress(OSError):
            os.rmdir(group)
    state = StateDirectory(Path(settings.state_dir))
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while time.monotonic() < deadline:
        if state.try_lock():
            state.remove()
            return
        time.sleep(0.005)  # The server's descriptors are closed one by one.


class _Zygote:
    """One loop over descriptors: the server's messages, the children's messages, and the ends of processes."""

    def __init__(self, settings: _Settings, entry: child.DaemonEntry) -> None:
        self._settings = settings
        self._entry = entry
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(fileno=settings.control)
        self._server: socket.socket | None = None
        self._all: set[SandboxProcess] = set()
        self._sandboxes: dict[str, SandboxProcess] = {}
        self._spares: dict[Preparation, SandboxProcess] = {}
        self._finishing = False
        self._goodbye: int | None = None

    def run(self) -> None:
        """Serve until told to end and nothing is left."""
        self._watch(self._listener.fileno(), self._accept)
        if self._settings.die_with is not None:
            self._watch(self._settings.die_with, self._finish)
        while not self._finishing or self._all:
            for key, _ in self._selector.select(self._patience()):
                if self._selector.get_map().get(key.fd) is key:  # An earlier event of this batch may have taken it out.
                    key.data()
            self._give_up_slow_boots()
            self._thaw_late()
            self._reap_strangers()
        if self._goodbye is not None:
            self._answer(self._goodbye)
        elif self._settings.ephemeral:
            _remove_everything(self._settings)

    def _watch(self, descriptor: int, act: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, act)

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)

    def _finish(self) -> None:
        """Kill everything, and leave the loop once it is gone."""
        if self._finishing:
            return
        self._finishing = True
        if self._settings.die_with is not None:
            self._unwatch(self._settings.die_with)
        self._unwatch(self._listener.fileno())
        for sandbox in list(self._all):
            self._kill(sandbox)

    # The server.

    def _accept(self) -> None:
        server, _ = self._listener.accept()
        if self._server is not None:
            self._unwatch(self._server.fileno())
            self._server.close()
        server.setblocking(False)
        self._server = server
        self._watch(server.fileno(), self._on_request)

    def _on_request(self) -> None:
        assert self._server is not None
        try:
            received = control.receive(self._server)
        except BlockingIOError:
            return
        except OSError:
            received = None
        except control.MessageError as error:
            self._tell({"event": "confused", "reason": str(error)})
            return
        if received is None:
            self._server_left()
            return
        message, descriptors = received
        try:
            self._obey(message, descriptors)
        except Exception as error:  # Whatever a request brings, the zygote lives on, and says what was wrong.
            reason = f"{type(error).__name__}: {error}"
            self._answer(message.get("seq"), error=reason, errno=getattr(error, "errno", None))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _server_left(self) -> None:
        assert self._server is not None
        self._unwatch(self._server.fileno())
        self._server.close()
        self._server = None
        self._thaw_late(all=True)
        if self._settings.ephemeral:
            self._finish()

    def _obey(self, message: dict[str, Any], descriptors: list[int]) -> None:
        seq = int(message["seq"])
        match message["op"]:
            case "start":
                listener, config = descriptors
                self._start(seq, plan_from_json(message["plan"]), listener, config)
            case "prepare":
                self._prepare(preparation_from_json(message["preparation"]))
                self._answer(seq)
            case "kill":
                sandbox = self._sandboxes.get(str(message["id"]))
                if sandbox is None:
                    self._answer(seq)
                else:
                    sandbox.kills.append(seq)
                    self._kill(sandbox)
            case "init":
                self._answer(seq, init=self._sandboxes[str(message["id"])].init)
            case "freeze":
                frozen = self._sandboxes[str(message["id"])]
                frozen.freeze(time.monotonic())
                self._answer(seq, init=frozen.init)
            case "thaw":
                thawed = self._sandboxes.get(str(message["id"]))
                self._answer(seq, thawed=thawed is not None and thawed.thaw())
            case "egress":
                egress = self._sandboxes[str(message["id"])].egress
                self._answer(seq, [] if egress is None else [egress])
            case "list":
                running = [id for id, sandbox in self._sandboxes.items() if sandbox.running]
                self._answer(seq, running=running, ephemeral=self._settings.ephemeral)
            case "shutdown":
                self._goodbye = seq
                self._finish()
            case unknown:
                raise ValueError(f"there is no operation {unknown!r}")

    def _tell(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        if self._server is None:
            return
        try:
            control.send(self._server, message, descriptors)
        except BlockingIOError:
            self._server_left()  # It has left a full socket buffer of answers unread: it hangs.
        except OSError:
            return  # It is gone; its end of file comes next.

    def _answer(self, seq: object, descriptors: list[int] | None = None, **fields: Any) -> None:
        self._tell({"seq": seq, "ok": "error" not in fields, **fields}, descriptors)

    # A boot.

    def _prepare(self, preparation: Preparation) -> None:
        """Keep an init for this preparation, and none of an older one beyond the last few."""
        if preparation in self._spares or self._finishing:
            return
        while len(self._spares) >= MAX_SPARES:
            self._kill(self._spares.pop(next(iter(self._spares))))
        self._spares[preparation] = self._fork(preparation)

    def _start(self, seq: int, plan: BootPlan, listener: int, config: int) -> None:
        if plan.id in self._sandboxes:
            raise RuntimeError(f"sandbox {plan.id} runs already")
        if self._finishing:
            raise RuntimeError("the zygote is ending")
        sandbox = self._take_spare(plan.preparation) or self._fork(plan.preparation)
        sandbox.plan = plan
        sandbox.seq = seq
        sandbox.deadline = time.monotonic() + BOOT_TIMEOUT_S
        sandbox.handover = (os.dup(listener), os.dup(config))
        self._sandboxes[plan.id] = sandbox
        if sandbox.usher_fd is None:
            self._hand_over(sandbox)

    def _take_spare(self, preparation: Preparation) -> SandboxProcess | None:
        spare = self._spares.pop(preparation, None)
        return spare if spare is not None and spare.is_alive() else None

    def _fork(self, preparation: Preparation) -> SandboxProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                usher = os.fork()
            except OSError:
                ours.close()
                raise
            if usher == 0:
                child.boot(preparation, theirs, self._entry, dies_with_zygote=self._settings.ephemeral)
        ours.setblocking(False)
        usher_fd = os.pidfd_open(usher)
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        sandbox = SandboxProcess(
            preparation=preparation, channel=ours, usher=usher, usher_fd=usher_fd, deadline=deadline
        )
        self._all.add(sandbox)
        self._watch(ours.fileno(), lambda: self._on_child_message(sandbox))
        self._watch(usher_fd, lambda: self._on_usher_end(sandbox))
        return sandbox

    def _hand_over(self, sandbox: SandboxProcess) -> None:
        assert sandbox.plan is not None
        if not self._settings.ephemeral and sandbox.init is not None:
            directory = os.path.join(sandbox.preparation.sandboxes, sandbox.plan.id)
            sandbox_directory.write_process(directory, sandbox.init)
        sandbox.hand_over(sandbox.plan)

    def _on_child_message(self, sandbox: SandboxProcess) -> None:
        try:
            received = control.receive(sandbox.channel)
        except BlockingIOError:
            return
        except control.MessageError as error:
            received = ({"failed": "the handshake", "errno": None, "message": str(error)}, [])
        except ConnectionResetError:
            received = None
        if received is None:
            self._unwatch(sandbox.channel.fileno())  # The process is ending; its pidfd says the rest.
            return
        message, descriptors = received
        if "egress" in message and sandbox.egress is None and descriptors and not sandbox.running:
            sandbox.egress = descriptors.pop()
        for descriptor in descriptors:
            os.close(descriptor)
        if "failed" in message:
            self._fail(sandbox, str(message["failed"]), message.get("errno"), str(message.get("message"))[:MAX_REASON])
        elif "init" in message and sandbox.init is None:
            sandbox.init = int(message["init"])
            sandbox.init_fd = os.pidfd_open(sandbox.init)
        elif sandbox.ending or sandbox.running:
            return
        elif "unshared" in message:
            self._map_ids(sandbox)
        elif "ready" in message:
            sandbox.running = True
            self._unwatch(sandbox.channel.fileno())  # From here on it only holds a last word, read at the end.
            self._answer(sandbox.seq)

    def _map_ids(self, sandbox: SandboxProcess) -> None:
        try:
            sandbox.map_ids()
        except OSError as error:
            layer = error.layer if isinstance(error, LayerError) else None
            self._fail(sandbox, "map user ids", error.errno, str(error), layer=layer)

    def _give_up_slow_boots(self) -> None:
        now = time.monotonic()
        for sandbox in self._all:
            if not sandbox.running and sandbox.deadline <= now:
                sandbox.deadline = now + BOOT_TIMEOUT_S
                self._fail(sandbox, "start", None, f"it took longer than {BOOT_TIMEOUT_S:g} s")
                if sandbox.usher_fd is not None:
                    signal.pidfd_send_signal(sandbox.usher_fd, signal.SIGKILL)

    def _thaw_late(self, *, all: bool = False) -> None:
        """Let sandboxes go on that nobody lets go on: a server has died, or takes too long."""
        now = time.monotonic()
        for sandbox in self._all:
            if sandbox.stopped and (all or sandbox.thaw_at <= now):
                sandbox.thaw()

    def _patience(self) -> float | None:
        """Return how long, in seconds, the loop may sleep."""
        deadlines = [sandbox.thaw_at if sandbox.running else sandbox.deadline for sandbox in self._all]
        soonest = min(deadlines, default=math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    # An end.

    def _fail(
        self, sandbox: SandboxProcess, stage: str, number: int | None, message: str, *, layer: str | None = None
    ) -> None:
        """Remember why a sandbox ends, and see that it does. The server hears of it when nothing is left."""
        if sandbox.failure is None:
            sandbox.failure = {"stage": stage, "errno": number, "error": message, "layer": layer}
        self._kill(sandbox)

    def _kill(self, sandbox: SandboxProcess) -> None:
        """Kill the init, and so the whole sandbox; or, before there is one, cut its handshake off."""
        sandbox.ending = True
        if sandbox.usher_fd is None and sandbox.init_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(sandbox.init_fd, signal.SIGKILL)
        else:
            with contextlib.suppress(OSError):
                sandbox.channel.shutdown(socket.SHUT_RDWR)

    def _on_usher_end(self, sandbox: SandboxProcess) -> None:
        assert sandbox.usher_fd is not None
        while sandbox.init is None and sandbox.has_message():
            self._on_child_message(sandbox)
        self._unwatch(sandbox.usher_fd)
        os.close(sandbox.usher_fd)
        sandbox.usher_fd = None
        os.waitpid(sandbox.usher, 0)
        if sandbox.init_fd is None:
            self._forget(sandbox, "it ended before its first process began")
            return
        self._watch(sandbox.init_fd, lambda: self._on_init_end(sandbox))
        if sandbox.ending:
            self._kill(sandbox)
        else:
            with contextlib.suppress(OSError):  # The init is dead already; its pidfd says so next.
                control.send(sandbox.channel, {"adopted": True})
            if sandbox.plan is None:
                sandbox.deadline = math.inf
            else:
                self._hand_over(sandbox)

    def _on_init_end(self, sandbox: SandboxProcess) -> None:
        assert sandbox.init is not None
        assert sandbox.init_fd is not None
        while sandbox.has_message():
            self._on_child_message(sandbox)
        self._unwatch(sandbox.init_fd)
        os.close(sandbox.init_fd)
        _, status = os.waitpid(sandbox.init, 0)
        code = os.waitstatus_to_exitcode(status)
        ending = f"code {code}" if code >= 0 else signal.Signals(-code).name
        self._forget(sandbox, f"its first process ended with {ending}")

    def _forget(self, sandbox: SandboxProcess, outcome: str) -> None:
        """Take leave of a sandbox of which nothing is left, and tell whoever waits for that."""
        self._unwatch(sandbox.channel.fileno())
        sandbox.channel.close()
        sandbox.close_descriptors()
        remove_groups(sandbox.preparation.cgroup_files)
        self._all.remove(sandbox)
        if sandbox.plan is None:
            if self._spares.get(sandbox.preparation) is sandbox:
                del self._spares[sandbox.preparation]
            return
        del self._sandboxes[sandbox.plan.id]
        failure = sandbox.failure or {"stage": "the daemon", "errno": None, "error": outcome, "layer": None}
        if not sandbox.running:
            self._answer(sandbox.seq, **failure)
        elif not sandbox.kills:
            self._tell({"event": "exit", "id": sandbox.plan.id, "reason": f"{failure['stage']}: {failure['error']}"})
        for seq in sandbox.kills:
            self._answer(seq)

    def _reap_strangers(self) -> None:
        """Reap an orphan whose usher was killed before it could name it; everyone else is reaped by pidfd."""
        known = {pid for sandbox in self._all for pid in (sandbox.usher, sandbox.init)}
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and dead.si_pid not in known:
                os.waitpid(dead.si_pid, 0)
