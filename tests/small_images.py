"""Images for tests that boot what they pull: a shell, or a shell and a Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.registry import make_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["python_image", "shell_image"]

APPLETS: Final = ("sh", "cat", "echo", "env", "id", "ls", "mkdir", "pwd", "rm", "sleep", "touch")
LEFT_OUT: Final = ("test", "*-packages", "idlelib", "tkinter", "ensurepip", "lib2to3", "__pycache__", "config-*", "*.a")
ACCOUNTS: Final = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:alice:/home/alice:/bin/sh\n"


def shell_image(folder: Path, config: Mapping[str, Sequence[str]] | None = None) -> Path:
    """An OCI layout with busybox, the users root and alice, and the options of `umoci config`."""
    return make_image(folder, [_add_shell, _add_accounts], config)


def python_image(folder: Path) -> Path:
    """An OCI layout with busybox and, as `python` and `python3`, a copy of the Python that runs this."""
    return make_image(folder, [_add_shell, _add_accounts, _add_python])


def _add_shell(root: Path) -> None:
    (root / "bin").mkdir()
    (root / "tmp").mkdir(mode=0o1777)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


def _add_accounts(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(ACCOUNTS)
    (root / "etc/group").write_text("root:x:0:\nalice:x:1000:\n")


def _add_python(root: Path) -> None:
    program, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    target = root / str(program)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    shutil.copytree(library, root / str(library)[1:], ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ("python", "python3"):
        (root / "bin" / name).symlink_to(program)
    for file in (program, *library.glob("lib-dynload/*.so")):
        linked = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout
        for name in re.findall(r"(/\S+) \(0x", linked):
            copy = root / name[1:]
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(name).resolve(), copy)
