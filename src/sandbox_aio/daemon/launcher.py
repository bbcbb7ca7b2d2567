"""From an `Execute` to a process: which user, which environment, which directory, which shell (section 9.1, A21 to
A24).
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import attrs

from ..protocol.frames import Execute
from .accounts import Account, UnknownUser, find_account
from .marks import ENVIRONMENT_MARK, CommandMark, MarksExhausted, TreeKiller
from .terminal import open_terminal, take_control

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .settings import DaemonSettings

__all__ = ["LaunchError", "Launched", "Launcher"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEFAULT_SHELL = Execute(command=None, command_id=None).shell
_LAST_SHELL = "/bin/sh"
_WORD = r"""(?:[\w@%+=:,./^-]|'[^']*'|"[^"$`\\!]*")+"""
_PLAIN = re.compile(rf"[ \t]*{_WORD}(?:[ \t]+{_WORD})*[ \t\n]*")
"""A command line that means the same to every shell: words, some of them in quotes."""


class LaunchError(Exception):
    """The process cannot be made; the message is a sentence for the user."""


@attrs.frozen(kw_only=True)
class Launched:
    """A new process and our ends of its pipes, none of which block. With a terminal, `stdin` and `stdout` are both
    its descriptor.
    """

    pid: int
    mark: CommandMark
    stdin: int | None
    stdout: int
    stderr: int | None
    terminal: bool


class Launcher:
    """Makes processes for one sandbox."""

    def __init__(self, settings: DaemonSettings, marks: TreeKiller) -> None:
        self._settings = settings
        self._marks = marks

    def launch(self, execute: Execute) -> Launched:
        """Start a command. Blocks for about a millisecond, until the shell has replaced the child.

        Raises:
            LaunchError: there is no such user, directory or shell, or the sandbox can hold no more processes.
        """
        config = execute.run_config or {}
        try:
            account = find_account(_text(config, "user") or self._settings.user)
            mark = self._marks.issue()
        except (UnknownUser, MarksExhausted) as exc:
            raise LaunchError(str(exc)) from None
        cwd = os.path.join(self._settings.work_dir, execute.cwd or _text(config, "work_dir") or "")
        environment = self._environment(execute, account, mark)
        arguments = _arguments(execute)
        try:
            return self._start(arguments, cwd, environment, account, mark, execute)
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            raise LaunchError(_explain(exc, arguments[0], cwd)) from None

    def _environment(self, execute: Execute, account: Account, mark: int) -> dict[str, str]:
        environment = {
            "PATH": _PATH,
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "SHELL": account.shell,
        }
        if self._settings.hostname:
            environment["HOSTNAME"] = self._settings.hostname
        if execute.pty:
            environment["TERM"] = "xterm-256color"
        layers = (self._settings.env_vars, (execute.run_config or {}).get("env_vars") or {}, execute.env)
        for layer in layers:
            if not isinstance(layer, dict) or not all(isinstance(value, str) for value in layer.values()):
                raise LaunchError("env_vars must map names to texts")
            environment.update(layer)
        environment[ENVIRONMENT_MARK] = f"{mark:x}"
        return environment

    def _start(
        self,
        arguments: list[str],
        cwd: str,
        environment: dict[str, str],
        account: Account,
        mark: int,
        execute: Execute,
    ) -> Launched:
        ends = _Ends(execute, account)
        try:
            process = subprocess.Popen(
                arguments,
                stdin=ends.stdin[0],
                stdout=ends.stdout[1],
                stderr=ends.stderr[1],
                cwd=cwd,
                env=environment,
                start_new_session=True,
                preexec_fn=take_control if execute.pty else None,
                **_identity(account),
            )
        except BaseException:
            ends.close(ours=True)
            raise
        ends.close(ours=False)
        process.returncode = 0  # the reaper waits for it; Popen is not to
        return Launched(
            pid=process.pid,
            mark=CommandMark(mark, process.pid),
            stdin=ends.stdin[1],
            stdout=ends.stdout[0],
            stderr=None if execute.pty else ends.stderr[0],
            terminal=execute.pty,
        )


class _Ends:
    """Both ends of everything that a process reads and writes. Which end is ours depends on the direction."""

    def __init__(self, execute: Execute, account: Account) -> None:
        self._theirs: set[int] = set()
        self._ours: set[int] = set()
        self.stdin: tuple[int, int | None]
        try:
            if execute.pty:
                ours, theirs = open_terminal(account.uid)
                self._ours, self._theirs = {ours}, {theirs}
                self.stdin, self.stdout, self.stderr = (theirs, ours), (ours, theirs), (ours, theirs)
                return
            if execute.close_stdin:
                self.stdin = (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), None)
                self._theirs.add(self.stdin[0])
            else:
                self.stdin = (theirs, ours) = self._pipe(ours_is=1)
            self.stdout = self._pipe(ours_is=0)
            self.stderr = self._pipe(ours_is=0)
        except OSError:
            self.close(ours=True)
            raise

    def _pipe(self, *, ours_is: int) -> tuple[int, int]:
        ends = os.pipe()
        self._ours.add(ends[ours_is])
        self._theirs.add(ends[1 - ours_is])
        os.set_blocking(ends[ours_is], False)
        return ends

    def close(self, *, ours: bool) -> None:
        for fd in self._theirs | (self._ours if ours else set()):
            os.close(fd)


def _identity(account: Account) -> dict[str, Any]:
    """Return what makes Popen become another user; nothing for our own, for which the child is made in the cheapest
    way.
    """
    if account.uid == os.geteuid() and account.gid == os.getegid():
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


def _arguments(execute: Execute) -> list[str]:
    """Return what to run. In an image that has no shell, a command line that needs none is run without one.

    Raises:
        LaunchError: it needs one.
    """
    shell = execute.shell
    if shell == _DEFAULT_SHELL and not os.path.exists(shell):
        shell = _LAST_SHELL
        if not os.path.exists(shell):
            words = shlex.split(execute.command) if _PLAIN.fullmatch(execute.command or "") else [""]
            if words[0] and "=" not in words[0]:
                return words
            raise LaunchError(
                f"the sandbox has neither {_DEFAULT_SHELL} nor {_LAST_SHELL}, and this command needs a shell: "
                "give a program and its plain arguments, or name another shell"
            )
    return [shell] if execute.command is None else [shell, "-c", execute.command]


def _text(config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise LaunchError(f"run_config: {name} must be a text")
    return value


def _explain(exc: Exception, program: str, cwd: str) -> str:
    """Return a sentence that says what to mend."""
    if isinstance(exc, ValueError):
        return f"the command cannot be started: {exc}"
    if not isinstance(exc, OSError):
        return "the command cannot be started: its terminal cannot be made its own"
    if exc.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return f"the sandbox has no room for another command: {exc.strerror}"
    if exc.errno == errno.E2BIG:
        return "the command and its environment are too long for the system: put the text into a file"
    if not os.path.isdir(cwd):
        return f"the working directory {cwd!r} {'is no directory' if os.path.exists(cwd) else 'does not exist'}"
    if exc.errno == errno.EINVAL:
        return "the sandbox has no user or group of that number"
    if exc.filename == cwd:
        return f"the working directory {cwd!r} cannot be entered: {exc.strerror}"
    if exc.errno == errno.ENOENT and exc.filename == program:
        if "/" in program and os.path.lexists(program):
            return f"the program {program!r} is there, but not what it needs: its interpreter or its loader"
        return f"the program {program!r} does not exist in the sandbox"
    if exc.errno == errno.EPERM:
        return "the command may not be run as that user: the sandbox's daemon is not privileged"
    if exc.errno == errno.ENOEXEC:
        return f"the program {program!r} is not one that this machine can run"
    return f"the command cannot be started with {program!r}: {exc.strerror}"
