"""An image that looks like the well-known one of PostgreSQL: an entry point, a user of its own, an environment.

It is made by debootstrap, which takes about a minute, once: afterwards it is found in `build/images`. `make test` makes
it before the tests begin, by `python -m tests.real.postgres_image`, which does nothing for an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from tests.real.root_trees import bootstrap, make_once

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["postgres_image"]

NAME: Final = "postgres-1"
"""To be changed when what is below changes, so that an image made before is not taken."""
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
    return make_once(NAME, _make)


def _make(root: Path) -> None:
    bootstrap(root, "postgresql")
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
    for rubbish in ("usr/share/doc", "usr/share/locale", "usr/share/man"):
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
    root.with_name(f"{NAME}.json").write_text(json.dumps(settings))


if __name__ == "__main__" and os.geteuid() == 0:
    postgres_image()
