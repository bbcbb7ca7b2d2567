"""An image that looks like the well-known one of PostgreSQL: an entry point, a user of its own, an environment.

It is made by debootstrap, which takes about a minute, once: afterwards it is found in `build/images`. `make test` makes
it before the tests begin, by `python -m tests.real.postgres_image`, which does nothing for an ordinary user.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["postgres_image"]

FOLDER: Final = Path(__file__).parents[2] / "build/images"
VERSION: Final = 1
"""To be raised when what is below changes, so that an image made before is not taken."""
UID: Final = 999

ENTRY_POINT: Final = """\
#!/bin/sh
# Makes a cluster in $PGDATA if there is none, and runs the server as the user postgres.
set -eu
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
        echo "set POSTGRES_HOST_AUTH_METHOD=trust: this image knows no passwords" >&2
        exit 1
    fi
    initdb --username=postgres --auth=trust --no-sync >/dev/null
    echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
"""


def postgres_image() -> Path:
    """Return the image's root directory, with its settings beside it; make it if it is not there. Needs root."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    image = FOLDER / f"postgres-{VERSION}"
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            draft = FOLDER / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            _bootstrap(draft)
            _furnish(draft)
            draft.rename(image)
    return image


def _bootstrap(root: Path) -> None:
    release = dict(
        line.rstrip().split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    # Its mounts are its own: if it is killed, none is left in the directory that is removed then.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", "--include=postgresql", suite, str(root)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]


def _furnish(root: Path) -> None:
    (programs,) = (root / "usr/lib/postgresql").iterdir()
    script = root / "usr/local/bin/docker-entrypoint.sh"
    script.write_text(ENTRY_POINT)
    script.chmod(0o755)
    before = subprocess.run(["chroot", root, "id", "-u", "postgres"], check=True, capture_output=True, text=True)
    for command in (["groupmod", "--gid", f"{UID}", "postgres"], ["usermod", "--uid", f"{UID}", "postgres"]):
        subprocess.run(["chroot", root, *command], check=True)
    for folder, _, names in os.walk(root / "var"):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            if os.lstat(path).st_uid == int(before.stdout):
                os.lchown(path, UID, UID)
    for rubbish in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / rubbish, ignore_errors=True)
    binaries = f"/{programs.relative_to(root)}/bin"
    settings = {
        "work_dir": "/",
        "env_vars": {
            "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{binaries}",
            "PGDATA": "/var/lib/postgresql/data",
            "LANG": "C.UTF-8",
        },
    }
    root.with_name(f"postgres-{VERSION}.json").write_text(json.dumps(settings))


if __name__ == "__main__" and os.geteuid() == 0:
    postgres_image()
