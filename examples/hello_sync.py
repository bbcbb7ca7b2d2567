"""The smallest program: a sandbox, a command, its output."""

from __future__ import annotations

from sandbox_aio import SandboxClient


def main() -> None:
    """Say hello from inside a sandbox on this machine."""
    with SandboxClient(api_endpoint="local") as client, client.sandbox() as sandbox:
        print(sandbox.run("echo Hello from $(hostname)").stdout, end="")


if __name__ == "__main__":
    main()
