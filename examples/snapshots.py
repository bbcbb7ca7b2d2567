"""Prepare a sandbox once, capture it, and start as many as you like from there.

python examples/snapshots.py                                  from this machine's own files
python examples/snapshots.py registry.example.com/app:1       from an image of a registry
"""

from __future__ import annotations

import sys

from sandbox_aio import SandboxClient

GIB = 1024**3


def main(image: str | None) -> None:
    """Prepare, capture, start from the capture."""
    with SandboxClient(api_endpoint="local") as client:
        base = "host"
        if image is not None:
            base = client.create_snapshot("base", image, 2 * GIB, on_progress=print).id

        with client.sandbox(snapshot=base) as sandbox:
            sandbox.write("/srv/answer", "42\n")  # or install packages, clone a repository, ...
            prepared = sandbox.capture_snapshot("prepared", tag="v1")

        for _ in range(3):
            with client.sandbox(snapshot="prepared:v1") as sandbox:
                print(sandbox.run("cat /srv/answer").stdout, end="")

        client.tag_snapshot(prepared.id, "stable")
        print("tags:", *sorted(tag.tag for tag in client.list_snapshot_tags("prepared")))
        client.delete_snapshot(prepared.id)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
