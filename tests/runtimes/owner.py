"""A process that opens a runtime, starts some sandboxes, says so in one line of JSON, and then waits to be killed.

Of kind `freezing`, it first stops its sandboxes as for a capture.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import attrs

from sandbox_aio.runtimes.namespaces import NamespacesRuntime
from tests.runtimes.machine import ENTRY, spec


async def main(state_dir: str, kind: str, count: str, die_with: str = "") -> None:
    """Run; the arguments are those of the command line."""
    runtime = NamespacesRuntime(
        Path(state_dir), ephemeral=kind == "ephemeral", die_with=int(die_with) if die_with else None, daemon_entry=ENTRY
    )
    await runtime.open(lambda id, reason: None)
    addresses = {}
    for _ in range(int(count)):
        wanted = spec()
        await runtime.create(wanted)
        addresses[wanted.id] = attrs.asdict(await runtime.start(wanted.id))
    if kind == "freezing":
        client = await runtime._keeper.client()
        for id in addresses:
            assert (await client.request("freeze", id=id))["ok"]
    print(json.dumps(addresses), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
