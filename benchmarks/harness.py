"""Take numbers: processes to measure, processes to measure against, and rounds in which the variants take turns."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs

from benchmarks.images import REGISTRY_VARIABLE, push_images
from benchmarks.rows import Row, Variant
from benchmarks.worker import API_KEY
from tests.registry import registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.workloads import Number

ROOT = Path(__file__).parent.parent
SANDBOX_AIO = Path(sys.executable).with_name("sandbox-aio")
JOB_DEADLINE = 180.0
"""Seconds after which a job is given up, which no sound client needs."""
READY_DEADLINE = 30.0
"""Seconds that a server has to say its address."""
STOP_DEADLINE = 15.0
"""Seconds that a process has to end after its standard input did, or after SIGTERM."""


class BenchmarkError(Exception):
    """A number could not be taken; the text says why."""


class Process:
    """A child with line-wise pipes that is certain to be gone when its block is left."""

    def __init__(self, *command: str | Path, stderr: int | None = None) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, text=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close its standard input, wait for it to end, and kill it if it does not."""
        with self._child:
            assert self._child.stdin is not None
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            try:
                self._child.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                self._child.kill()

    def terminate(self) -> None:
        """Ask it to end by SIGTERM; leaving the block still waits for it."""
        self._child.terminate()

    def ask(self, line: str) -> str:
        """Send one line and return the line that answers it. Raises `BenchmarkError` if none comes in time."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # What it said before it ended is still there to be read.
            print(line, file=self._child.stdin, flush=True)
        return self.line(JOB_DEADLINE)

    def line(self, seconds: float) -> str:
        """Return the next line of its output. Raises `BenchmarkError` if it ends first, or takes longer."""
        assert self._child.stdout is not None
        readable, _, _ = select.select([self._child.stdout], [], [], seconds)
        line = self._child.stdout.readline() if readable else None
        if line:
            return line
        if line is None:
            self._child.kill()
            raise BenchmarkError(f"no answer within {seconds:g} s")
        raise BenchmarkError(f"the process ended with status {self._child.wait(STOP_DEADLINE)}")


@contextmanager
def stub_server() -> Iterator[str]:
    """Run the stub and yield the base URL of its control plane."""
    with Process(sys.executable, "-m", "benchmarks.stub") as stub:
        yield f"http://127.0.0.1:{int(stub.line(READY_DEADLINE))}/api/v2/sandboxes"


@contextmanager
def real_server() -> Iterator[str]:
    """Run `sandbox-aio serve` with a state directory of its own and yield the base URL of its control plane."""
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-aio-benchmark-", dir="/var/tmp") as state,
        Process(
            SANDBOX_AIO,
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--state-dir",
            state,
            "--api-key",
            API_KEY,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        ready = server.line(READY_DEADLINE)
        address = re.search(r"http://[\w.]+:\d+", ready)
        if address is None:
            raise BenchmarkError(f"the server's first line names no address: {ready!r}")
        try:
            yield f"{address[0]}/api/v2/sandboxes"
        finally:
            server.terminate()


@contextmanager
def far_server() -> Iterator[str]:
    """Run the stub at the end of a long way: 10 ms in either direction, whatever the bandwidth."""
    with stub_server() as endpoint:
        near = urlsplit(endpoint)
        with Process(sys.executable, "-m", "benchmarks.distance", str(near.port), "0.01") as distance:
            yield f"http://127.0.0.1:{int(distance.line(READY_DEADLINE))}{near.path}"


@contextmanager
def image_server() -> Iterator[str]:
    """Run a registry with the images that rows are about, and a real server, and yield the base URL of its control
    plane. Needs root.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-aio-benchmark-", dir="/var/tmp") as folder:
        with registry(Path(folder, "registry")) as hub:
            push_images(hub, Path(folder, "images"))
            os.environ[REGISTRY_VARIABLE] = hub.host
            with real_server() as endpoint:
                yield endpoint


SERVERS = {"stub": stub_server, "sandbox-aio": real_server, "far": far_server, "images": image_server}


@attrs.frozen
class Sample:
    """What one job answered."""

    value: float
    cpu: float
    """Seconds of processor time that its process used, all of its threads together."""


@attrs.define
class Series:
    """The samples of one variant in one row, in the order in which they were taken; or why there are none."""

    variant: Variant
    samples: list[Sample] = attrs.Factory(list)
    error: str | None = None


def measure(row: Row, rounds: int) -> list[Series]:
    """Take `rounds` numbers (or the row's minimum) of every variant, after a first round that is dropped.

    In every round each variant has one turn, in an order that is reversed from one round to the next, so that a drift
    of the machine meets them all alike.
    """
    variants = [row.baseline, *row.variants]
    series = [Series(variant) for variant in variants]
    with ExitStack() as stack:
        try:
            endpoint = stack.enter_context(SERVERS[row.server]())
        except BenchmarkError as error:
            return [attrs.evolve(one, error=f"{row.server}: {error}") for one in series]
        workers: dict[Variant, Process] = {}
        if not row.fresh:
            workers = {variant: stack.enter_context(_worker(row, variant, endpoint)) for variant in variants}
        for number in range(max(rounds, row.rounds) + 1):
            for one in series if number % 2 else reversed(series):
                if one.error is not None:
                    continue
                try:
                    sample = _sample(row, one.variant, workers, endpoint)
                except BenchmarkError as error:
                    one.error = str(error)
                    continue
                if number:
                    one.samples.append(sample)
    return series


def _worker(row: Row, variant: Variant, endpoint: str) -> Process:
    arguments = ["benchmarks.worker", variant.sdk, "--endpoint", endpoint, "--backend", variant.backend]
    if row.server in ("stub", "far"):
        arguments += ["--sandbox", "stub"]
    if not variant.msgspec:
        arguments.append("--without-msgspec")
    return Process(sys.executable, "-m", *arguments)


def _sample(row: Row, variant: Variant, workers: Mapping[Variant, Process], endpoint: str) -> Sample:
    workload, arguments = row.workload, row.arguments
    if variant is row.baseline:
        workload = row.baseline_workload or workload
        arguments = arguments if row.baseline_arguments is None else row.baseline_arguments
    if variant in workers:
        return _job(workers[variant], workload, arguments)
    with _worker(row, variant, endpoint) as worker:
        return _job(worker, workload, arguments)


def _job(worker: Process, workload: str, arguments: Mapping[str, Number]) -> Sample:
    answer = json.loads(worker.ask(json.dumps({"workload": workload, "arguments": arguments})))
    if "error" in answer:
        raise BenchmarkError(answer["error"])
    return Sample(value=answer["value"], cpu=answer["cpu"])
