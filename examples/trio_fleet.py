"""A fleet on trio: ten sandboxes at once, one deadline for all of them, and nothing left when it passes."""

from __future__ import annotations

import trio

from sandbox_aio import AsyncSandboxClient

DEADLINE = 1.5
"""Seconds that the whole fleet has. Odd members need longer, and are killed with their sandboxes."""


async def work(client: AsyncSandboxClient, n: int) -> None:
    """Run one member's command in a sandbox of its own."""
    async with client.sandbox() as sandbox:
        result = await sandbox.run(f"sleep {1000 * (n % 2)}; echo member {n} is done")
        print(result.stdout, end="", flush=True)


async def main() -> None:
    """Start ten, give them a deadline, and look at what is left."""
    async with AsyncSandboxClient(api_endpoint="local") as client:
        await client.list_sandboxes()  # The first call starts the server.
        with trio.move_on_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for n in range(10):
                    nursery.start_soon(work, client, n)
        print(f"left: {len(await client.list_sandboxes())} sandboxes")


if __name__ == "__main__":
    trio.run(main)
