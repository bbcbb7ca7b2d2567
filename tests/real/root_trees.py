"""Root file systems of the kinds that images are made of, each made here, from this machine's packages.

| name | what is in it |
|---|---|
| debian | Debian's smallest system, by debootstrap; kept in `build/images`, since it takes some 30 s |
| alpine | musl instead of glibc: its loader, programs that need it, busybox for the rest |
| busybox | one static program under many names |
| distroless | glibc and one program that needs it, users, no shell, no package manager |
| shell-less | one static program and nothing else, not even /etc |
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FOLDER", "bootstrap", "debian", "kinds", "make_once"]

FOLDER: Final = Path(__file__).parents[2] / "build/images"

GREET: Final = """\
#include <stdio.h>
#include <unistd.h>
int main(int count, char **words) {
    printf("%s says hello to uid %d", words[0], (int) getuid());
    for (int i = 1; i < count; i++) printf(" %s", words[i]);
    puts("");
    return 0;
}
"""
APPLETS: Final = ("sh", "cat", "chmod", "echo", "id", "ls", "sleep", "stat", "touch", "env", "grep")


def make_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return `build/images/NAME`, made by `make` unless it is there; whole or not at all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    image = FOLDER / name
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            draft = FOLDER / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(image)
    return image


def bootstrap(root: Path, *packages: str) -> None:
    """Make Debian's (or Ubuntu's) smallest system of the release that runs here, with some packages. Needs root."""
    release = dict(
        line.rstrip().split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    cache = FOLDER / "packages"
    cache.mkdir(exist_ok=True)
    # Its mounts are its own: if it is killed, none is left in the directory that is removed then.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--cache-dir={cache}"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    made = subprocess.run(
        [*command, release["VERSION_CODENAME"].strip('"'), str(root)], check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    for rubbish in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / rubbish, ignore_errors=True)


def debian() -> Path:
    """Debian's smallest system, some 150 MB. Needs root."""
    return make_once("debian-1", bootstrap)


def kinds(folder: Path) -> Mapping[str, Path]:
    """Make the four small ones in `folder`, and return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "greet.c"
    source.write_text(GREET)
    made = {name: folder / name for name in ("alpine", "busybox", "distroless", "shell-less")}
    for root in made.values():
        (root / "bin").mkdir(parents=True)
    _compile("musl-gcc", source, made["alpine"] / "bin/greet")
    _install_musl(made["alpine"])
    for name in ("alpine", "busybox"):
        _install_busybox(made[name])
    _compile("gcc", source, made["distroless"] / "bin/greet")
    _install_glibc(made["distroless"])
    _compile("gcc", source, made["shell-less"] / "bin/greet", "-static")
    for name in ("alpine", "distroless"):
        (made[name] / "etc").mkdir()
        accounts = "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
        (made[name] / "etc/passwd").write_text(accounts)
        (made[name] / "etc/group").write_text("root:x:0:\nnonroot:x:65532:\n")
    return made


def _compile(compiler: str, source: Path, program: Path, *options: str) -> None:
    subprocess.run([compiler, "-O1", *options, "-o", program, source], check=True)


def _install_musl(root: Path) -> None:
    (loader,) = Path("/lib").glob("ld-musl-*.so.1")
    (root / "lib").mkdir()
    shutil.copy(loader.resolve(), root / "lib" / loader.name)


def _install_busybox(root: Path) -> None:
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


def _install_glibc(root: Path) -> None:
    linked = subprocess.run(["ldd", root / "bin/greet"], check=True, capture_output=True, text=True).stdout
    for word in linked.split():
        if word.startswith("/"):
            target = root / word[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(word), target)


if __name__ == "__main__" and os.geteuid() == 0:
    debian()
