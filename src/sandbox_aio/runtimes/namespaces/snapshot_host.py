"""Snapshot `host`: the machine's own programs, and otherwise a fresh system with nothing of the machine's.

/usr (and /bin, /lib, ... where they are directories of their own) are the host's, seen through a writable overlay.
Everything else is a *skeleton*: a small tree that is built once for a state directory, and again when the host has
changed. The skeleton takes from the host's /etc only what the list below names; nothing on it is secret on any
distribution.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from ... import removal
from ..base import SnapshotInfo
from . import python_environment
from .handover import FILES_ROOT

__all__ = ["HOST_SNAPSHOT_ID", "SYSTEM_DIRECTORIES", "build_skeleton", "describe", "system_directories"]

HOST_SNAPSHOT_ID: Final = "5a1d8c0e-7f3b-4b62-9c57-0e6f2a9b4d10"
"""The same everywhere and for ever, so that an example can name it."""

_PATH: Final = f"/{python_environment.VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SYSTEM_DIRECTORIES: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_VERSION: Final = "1"
"""Change it whenever the skeleton's content changes."""

_COPIED_FROM_ETC: Final = (
    "alternatives",
    "bash.bashrc",
    "ca-certificates.conf",
    "debian_version",
    "default/locale",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "login.defs",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "pam.conf",
    "perl",
    "profile",
    "protocols",
    "python3",
    "python3.11",
    "rpc",
    "services",
    "shells",
    "skel",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "xattr.conf",
)
_FILES: Final = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "bin:x:2:2:bin:/bin:/usr/sbin/nologin\n"
        "sys:x:3:3:sys:/dev:/usr/sbin/nologin\n"
        "man:x:6:12:man:/var/cache/man:/usr/sbin/nologin\n"
        "mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n"
        "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
        "_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n"
        "user:x:1000:1000:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": (
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nman:x:12:\nwww-data:x:33:\n"
        "shadow:x:42:\nutmp:x:43:\nstaff:x:50:\nusers:x:100:\nuser:x:1000:\nnogroup:x:65534:\n"
    ),
    "etc/nsswitch.conf": (
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
        "networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n"
    ),
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "sandbox\n",
    "etc/resolv.conf": "",
    "etc/fstab": "",
    "etc/environment": "",
    "etc/apt/apt.conf.d/90sandbox": 'APT::Sandbox::User "root";\n',
    "etc/machine-id": "",
    "root/.profile": "",
    "var/lib/dpkg/status": "",
}
_DIRECTORIES: Final = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "home/user": 0o755,
    "mnt": 0o755,
    "media": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "run/lock": 0o1777,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
    "var/cache": 0o755,
    "var/cache/apt/archives/partial": 0o755,
    "var/lib": 0o755,
    "var/lib/apt/lists/partial": 0o755,
    "var/lib/dpkg/info": 0o755,
    "var/lib/dpkg/updates": 0o755,
    "var/log": 0o755,
    "var/log/apt": 0o755,
    "var/mail": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,
}
_LINKS: Final = {"var/run": "/run", "var/lock": "/run/lock", "etc/mtab": "/proc/self/mounts"}
_USER: Final = 1000


def describe(state_dir: Path) -> SnapshotInfo:
    """Return what there is to know about the snapshot where sandboxes keep their files in `state_dir`."""
    return SnapshotInfo(
        id=HOST_SNAPSHOT_ID,
        name="host",
        tags=("latest",),
        fs_capacity_bytes=shutil.disk_usage(state_dir).total,
        work_dir=FILES_ROOT,
        env_vars={"PATH": _PATH, "LANG": "C.UTF-8"},
    )


def system_directories() -> tuple[str, ...]:
    """Return which of the host's system directories are directories of their own; `usr` comes first."""
    return tuple(name for name in SYSTEM_DIRECTORIES if stat.S_ISDIR(_mode(f"/{name}")))


def build_skeleton(snapshots: Path, owner: int = 0) -> Path:
    """Return the skeleton below `snapshots`/host, built now unless the one that is there fits the host as it is.

    `owner` is the host uid and gid of what shall belong to the sandbox's root, and counts as root only. Blocks: some
    0.1 s when it has to be built. What was built for an earlier state of the host is removed.
    """
    home = snapshots / "host"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)
    finished = home / _fingerprint(owner)
    if not finished.is_dir():
        for stale in list(home.iterdir()):
            removal.remove_tree(str(stale))
        draft = home / "draft"
        draft.mkdir()
        _fill(draft)
        _settle(draft, owner)
        draft.rename(finished)
    return finished


def _fill(root: Path) -> None:
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in SYSTEM_DIRECTORIES:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            (root / name).mkdir(exist_ok=True)
    for name, content in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    for name in _COPIED_FROM_ETC:
        _copy(Path("/etc", name), root / "etc" / name)
    _describe_processors(root)
    python_environment.lay(root)


def _settle(root: Path, owner: int) -> None:
    """Set owners and modes, whatever the umask was: all can read everything, and the sandbox's root can write it."""
    for path in (root, *root.rglob("*")):
        if os.geteuid() == 0:
            user = owner + (_USER if path == root / "home/user" else 0)
            os.chown(path, user, user, follow_symlinks=False)
        if path.is_symlink():
            continue
        wanted = _DIRECTORIES.get(str(path.relative_to(root)))
        path.chmod(wanted or (0o755 if path.is_dir() else path.stat().st_mode & 0o111 | 0o644))


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read: files, links and directories. Links that lead out of /etc and /usr become files."""
    mode = _mode(source)
    if stat.S_ISLNK(mode):
        destination = os.path.realpath(source)
        if destination.startswith("/usr/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(destination)
        elif os.path.dirname(source.readlink()) == "":
            target.symlink_to(source.readlink())
        elif stat.S_ISREG(_mode(destination)):
            _copy(Path(destination), target)
    elif stat.S_ISDIR(mode) and mode & 0o005 == 0o005:
        target.mkdir(parents=True, exist_ok=True)
        for entry in sorted(source.iterdir()):
            _copy(entry, target / entry.name)
    elif stat.S_ISREG(mode) and mode & 0o004:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode & 0o777)


def _describe_processors(root: Path) -> None:
    """Put down what programs read in /sys to learn how many processors there are. There is no other /sys."""
    for name in ("online", "possible", "present"):
        source = Path("/sys/devices/system/cpu", name)
        if source.is_file():
            target = root / str(source)[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text())


def _mode(path: str | Path) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _fingerprint(owner: int) -> str:
    """Return a name for the state of everything on the host that goes into the skeleton."""
    digest = hashlib.sha256(f"{_VERSION} {os.geteuid()} {owner} {system_directories()}".encode())
    interpreter = python_environment.system_interpreter()
    for path in [f"/etc/{name}" for name in _COPIED_FROM_ETC] + ([str(interpreter)] if interpreter else []):
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path} {status.st_mtime_ns} {status.st_size}\n".encode())
    return digest.hexdigest()[:16]
