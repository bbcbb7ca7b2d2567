"""The directory of one sandbox, and the plan to boot from it.

    root/                    where its file systems are mounted, in its own mount namespace only
    upper/, work/            what it has changed in its root directory
    usr.upper/, usr.work/    what it has changed in /usr; likewise for /bin, /lib, ... that are directories
    record.json              what a later server must know of it; only if sandboxes outlive the server
    process.json             its first process; only if sandboxes outlive the server

Everything below `root`, `*upper` and `*work` belongs to the sandbox's own root.
"""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..base import SandboxSpec
from .idmap import IdMap
from .plan import Layer, Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Record", "kill_orphan", "lay", "overlays", "write_process"]


@attrs.frozen(kw_only=True)
class Record:
    """What is written down of a sandbox."""

    spec: SandboxSpec
    ids: IdMap

    def write(self, directory: Path) -> None:
        """Write it, whole or not at all."""
        draft = directory / "record.draft"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(attrs.asdict(self), file)
        draft.rename(directory / "record.json")

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """Read it; None if the sandbox was never completed."""
        try:
            data: dict[str, Any] = json.loads((directory / "record.json").read_text(encoding="utf-8"))
            spec = {**data["spec"], "layers": tuple(data["spec"]["layers"])}
            return cls(spec=SandboxSpec(**spec), ids=IdMap(**data["ids"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def overlays(skeleton: Path, system_directories: Iterable[str], unmapped: frozenset[str]) -> tuple[Overlay, ...]:
    """Return the file systems of a sandbox of snapshot `host`. `unmapped` are the layers whose ids cannot be mapped."""

    def overlay(target: str, layer: str, prefix: str) -> Overlay:
        layers = (Layer(path=layer, mapped=layer not in unmapped),)
        return Overlay(target=target, layers=layers, upper=f"{prefix}upper", work=f"{prefix}work")

    system = (overlay(name, f"/{name}", f"{name}.") for name in system_directories)
    return (overlay("", str(skeleton), ""), *system)


def lay(
    directory: Path,
    ids: IdMap,
    plan: Iterable[Overlay],
    hostname: str,
    *,
    mount_points: Mapping[str, int] | None = None,
) -> None:
    """Create the directory, with a host name and nothing else of its own but `mount_points`, by name and mode.

    Raises OSError; what it made then stays.
    """
    base = str(directory)
    for path in (base, f"{base}/root"):
        _make_directory(path, 0o711)
    theirs = [name for overlay in plan for name in (overlay.upper, overlay.work)]
    theirs.append("upper/etc")
    modes = {f"upper/{name}": mode for name, mode in (mount_points or {}).items()}
    theirs += modes
    for name in theirs:
        _make_directory(f"{base}/{name}", modes.get(name, 0o755))
    files = {
        "upper/etc/hostname": f"{hostname}\n",
        "upper/etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback {hostname}\n",
    }
    for name, text in files.items():
        descriptor = os.open(f"{base}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(descriptor, 0o644)
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    if ids.count > 1:
        for name in [*theirs, *files]:
            os.chown(f"{base}/{name}", ids.uid, ids.gid)


def _make_directory(path: str, mode: int) -> None:
    os.mkdir(path)
    os.chmod(path, mode)  # The caller's umask must not show inside.


def write_process(directory: str, pid: int) -> None:
    """Write down a sandbox's first process, so that it can be found when its zygote is gone."""
    with open(f"{directory}/process.json", "w", encoding="utf-8") as file:
        json.dump({"pid": pid, "start_time": _start_time(pid)}, file)


def kill_orphan(directory: Path) -> None:
    """Kill the sandbox's first process if it still runs though its zygote is gone, and wait up to 10 s for its end."""
    try:
        process = json.loads((directory / "process.json").read_text(encoding="utf-8"))
        pidfd = os.pidfd_open(process["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    try:
        if _start_time(process["pid"]) == process["start_time"]:  # Otherwise the number belongs to another process now.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll(10_000)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; with its pid, that is its name until the next boot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        raise ProcessLookupError(pid) from error
    return int(stat.rpartition(")")[2].split()[19])
