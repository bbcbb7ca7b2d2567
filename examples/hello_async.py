"""The smallest async program: a sandbox, a command, its output as it comes."""

from __future__ import annotations

import asyncio

from sandbox_aio import AsyncSandboxClient


async def main() -> None:
    """Count inside a sandbox on this machine."""
    async with AsyncSandboxClient(api_endpoint="local") as client, client.sandbox() as sandbox:
        async for chunk in await sandbox.run("for n in 1 2 3; do echo $n; sleep 0.1; done", wait=False):
            print(chunk.data, end="", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
