"""A process that holds one client and does workloads on request, so that the variants do not warm or tire each other.

`python -m benchmarks.worker SDK --endpoint URL` reads one job a line from standard input,
`{"workload": name, "arguments": {...}}`, and answers each with a line, `{"value": number, "cpu": seconds}`, where `cpu`
is what the job took of this process's processor time. After the first `{"error": text}` it ends.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import sys
import time
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from benchmarks.subject import Subject
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SDKS = {"official": "langsmith.sandbox", "ours": "sandbox_aio"}
API_KEY = "benchmark"


@asynccontextmanager
async def subject(sdk: str, endpoint: str, sandbox: str | None = None) -> AsyncIterator[Subject | None]:
    """Open the client that is called `sdk`, and find `sandbox`; `none` gives None, to measure the machine itself."""
    if sdk == "none":
        yield None
        return
    module = importlib.import_module(SDKS[sdk])
    async with module.AsyncSandboxClient(api_endpoint=endpoint, api_key=API_KEY) as client:
        yield Subject(client=client, sandbox=sandbox and await client.get_sandbox(sandbox))


async def serve(sdk: str, endpoint: str, sandbox: str | None) -> None:
    """Do the jobs that arrive on standard input, one after another, until it ends."""
    async with subject(sdk, endpoint, sandbox) as opened:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            job = json.loads(line)
            gc.collect()
            before = time.process_time()
            value = await WORKLOADS[job["workload"]](opened, **job["arguments"])
            print(json.dumps({"value": value, "cpu": time.process_time() - before}), flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("sdk", choices=[*SDKS, "none"])
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--sandbox", help="the name of the sandbox that workloads use; without it they make their own")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--without-msgspec", action="store_true", help="behave as if msgspec were not installed")
    options = parser.parse_args()
    if options.without_msgspec:
        sys.modules["msgspec"] = None  # type: ignore[assignment]  # makes `import msgspec` raise ImportError
    warnings.simplefilter("ignore")
    try:
        anyio.run(serve, options.sdk, options.endpoint, options.sandbox, backend=options.backend)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
