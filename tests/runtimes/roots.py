"""Root file systems for tests, and layers over them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = ("sh", "cat", "id", "ls", "stat", "touch", "chown")


def small_root(root: Path) -> Path:
    """A root file system with a few programs and what they are linked to, two users, and hardly a directory."""
    for name in PROGRAMS:
        program = Path(shutil.which(name) or "")
        _copy(program, root / "bin" / name)
        linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for word in linked.split():
            if word.startswith("/"):
                _copy(Path(word), root / word[1:])
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nalice:x:1234:1234::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nalice:x:1234:\n")
    return root


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def lay_layer(layers: Path, id: str, content: Mapping[str, str | None]) -> str:
    """Publish a layer of these files, by path and text. None hides what is below; a path with a slash at the end is
    a directory that hides all it had below.
    """
    tree = layers / id / "tree"
    tree.mkdir(parents=True)
    for name, text in content.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
            os.setxattr(path, "user.overlay.opaque", b"y")
        elif text is None:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        else:
            path.write_text(text)
    return id
