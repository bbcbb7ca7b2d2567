"""The rows of the table: what is measured, against what, and the bar that has to be met."""

from __future__ import annotations

import attrs

from benchmarks.workloads import Number

MIB = 1 << 20
BULK_FRAME = 32 << 10
"""The size of a frame of bulk output: what a daemon sends of a process that writes as fast as it can."""


@attrs.frozen(kw_only=True)
class Variant:
    """One column of numbers: a client (`official`, `ours`, or `none` for the machine itself) and how it is run."""

    sdk: str
    backend: str = "asyncio"
    msgspec: bool = True

    @property
    def label(self) -> str:
        """What the table calls it."""
        extras = [self.backend] * (self.backend != "asyncio") + ["msgspec"] * (self.msgspec and self.sdk == "ours")
        return "+".join([self.sdk, *extras])


OFFICIAL = Variant(sdk="official")
SYSTEM = Variant(sdk="none")
OURS = Variant(sdk="ours", msgspec=False)
OURS_FAST = Variant(sdk="ours")
OURS_TRIO = Variant(sdk="ours", backend="trio", msgspec=False)


@attrs.frozen(kw_only=True)
class Bar:
    """The ratio that a row asks for, as a speed-up (`at_least`) or as a share of the baseline (`at_most`)."""

    at_least: float | None = None
    at_most: float | None = None

    def ratio(self, baseline: float, ours: float) -> float:
        """Return the ratio that this bar is about, of two numbers of which less is better."""
        return baseline / ours if self.at_least is not None else ours / baseline

    def met(self, ratio: float) -> bool:
        """Tell whether `ratio` is good enough."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is None or ratio <= self.at_most

    def __str__(self) -> str:
        return f">= {self.at_least:g}x" if self.at_least is not None else f"<= {self.at_most:g}x"


@attrs.frozen(kw_only=True)
class Row:
    """One question: a workload, what it is given, who is compared, and how many pairs of numbers are taken at least."""

    id: str
    what: str
    workload: str
    arguments: dict[str, Number]
    bar: Bar
    unit: str = "s"
    baseline: Variant = OFFICIAL
    baseline_workload: str | None = None
    baseline_arguments: dict[str, Number] | None = None
    variants: tuple[Variant, ...] = (OURS, OURS_FAST, OURS_TRIO)
    server: str = "stub"
    rounds: int = 1
    fresh: bool = False
    """Start a new process for every number."""


def _output(size: int, frame: int) -> dict[str, Number]:
    return {"command": f"output {size // frame} {frame}", "size": size // frame * frame}


RESUME: dict[str, Number] = {"command": "resume 30 32768 10", "size": 30 * 32768, "drops": 2}

ROWS = (
    Row(
        id="P1",
        what="run() of 200 MiB in 32 KiB frames",
        workload="run",
        arguments=_output(200 * MIB, BULK_FRAME),
        bar=Bar(at_least=1.0),
    ),
    Row(
        id="P2",
        what="iterate over 200 MiB in 32 KiB frames",
        workload="iterate",
        arguments=_output(200 * MIB, BULK_FRAME),
        bar=Bar(at_least=1.5),
    ),
    Row(
        id="P3",
        what="iterate over 100,000 frames of 80 bytes",
        workload="iterate",
        arguments=_output(8_000_000, 80),
        bar=Bar(at_least=3.0),
    ),
    Row(
        id="P4",
        what="iterate over 50 MiB in 4 KiB frames",
        workload="iterate",
        arguments=_output(50 * MIB, 4096),
        bar=Bar(at_least=1.9),
    ),
    Row(
        id="P5",
        what="tiny run(), one after another",
        workload="sequence",
        arguments={"command": "tiny", "times": 300},
        bar=Bar(at_least=1.4),
    ),
    Row(
        id="P6",
        what="tiny run(), FIN one second late",
        workload="sequence",
        arguments={"command": "tiny-late 1", "times": 50},
        bar=Bar(at_least=10.0),
    ),
    Row(
        id="P9",
        what="tiny run(), 100 at once",
        workload="concurrent",
        arguments={"command": "tiny", "times": 1000, "at_once": 100},
        bar=Bar(at_least=1.6),
    ),
    Row(
        id="P9b",
        what="tiny run(), 1,000 at once",
        workload="concurrent",
        arguments={"command": "tiny", "times": 2000, "at_once": 1000},
        bar=Bar(at_least=1.4),
    ),
    Row(
        id="P13",
        what="memory to iterate over 1,000 MiB",
        workload="memory",
        unit="B",
        arguments=_output(1000 * MIB, BULK_FRAME),
        bar=Bar(at_most=0.008),
        fresh=True,
    ),
    Row(id="P15", what="resume after the server says 1001", workload="resume", arguments=RESUME, bar=Bar(at_most=0.05)),
    Row(id="P16", what="input to its echo, median", workload="echo", arguments={"times": 500}, bar=Bar(at_most=0.95)),
    Row(
        id="P20d",
        what="tunnel: 200 MiB from the sandbox",
        workload="tunnel_down",
        arguments={"size": 200 * MIB},
        variants=(OURS, OURS_TRIO),
        bar=Bar(at_least=1.4),
    ),
    Row(
        id="P20u",
        what="tunnel: 200 MiB into the sandbox",
        workload="tunnel_up",
        arguments={"size": 200 * MIB},
        variants=(OURS, OURS_TRIO),
        bar=Bar(at_least=0.85),
    ),
    Row(
        id="P20r",
        what="tunnel: 64 bytes there and back, median",
        workload="tunnel_echo",
        arguments={"times": 2000},
        variants=(OURS, OURS_TRIO),
        bar=Bar(at_most=0.85),
    ),
    Row(
        id="P20c",
        what="tunnel: connect, one byte there and back, close",
        workload="tunnel_connect",
        arguments={"times": 500},
        variants=(OURS, OURS_TRIO),
        bar=Bar(at_least=1.5),
    ),
    Row(
        id="P21",
        what="tunnel: 100 MiB from the sandbox, 20 ms there and back",
        workload="tunnel_down",
        arguments={"size": 100 * MIB},
        variants=(OURS, OURS_TRIO),
        server="far",
        bar=Bar(at_least=6.0),
    ),
    Row(
        id="T1",
        what="tunnel: pgbench -S -c 16, one transaction",
        workload="pgbench",
        arguments={"options": "-S -c 16 -j 2", "seconds": 5},
        variants=(OURS, OURS_TRIO),
        server="sandbox-aio",
        bar=Bar(at_least=1.1),
    ),
    Row(
        id="T2",
        what="tunnel: pgbench -S -C -c 16, one transaction",
        workload="pgbench",
        arguments={"options": "-S -C -c 16 -j 2", "seconds": 5},
        variants=(OURS, OURS_TRIO),
        server="sandbox-aio",
        bar=Bar(at_least=1.3),
    ),
    Row(
        id="S0",
        what="create, run `true`, delete; against posix_spawn of true",
        workload="lifecycle",
        arguments={"snapshot": "host"},
        baseline=SYSTEM,
        baseline_workload="spawn",
        baseline_arguments={"path": "/bin/true"},
        variants=(OURS,),
        server="sandbox-aio",
        rounds=50,
        bar=Bar(at_most=45.0),
    ),
    Row(
        id="I1",
        what="pull and unpack an image; against skopeo and umoci",
        workload="image_pull",
        arguments={},
        baseline=SYSTEM,
        baseline_workload="skopeo_umoci",
        variants=(OURS,),
        server="images",
        bar=Bar(at_least=2.0),
    ),
    Row(
        id="I2",
        what="capture 100 MiB in one file; against buildah commit",
        workload="capture",
        arguments={"image": "debian:1", "files": 1, "size": 100 * MIB},
        baseline=SYSTEM,
        baseline_workload="buildah_commit",
        variants=(OURS,),
        server="images",
        bar=Bar(at_least=1.0),
    ),
    Row(
        id="I3",
        what="capture 100 MB in 5,000 files; against buildah commit",
        workload="capture",
        arguments={"image": "debian:1", "files": 5000, "size": 20_000},
        baseline=SYSTEM,
        baseline_workload="buildah_commit",
        variants=(OURS,),
        server="images",
        bar=Bar(at_least=1.0),
    ),
    Row(
        id="I4",
        what="boot an image of 20 layers; against one of one",
        workload="boot",
        arguments={"image": "debian:20"},
        baseline=attrs.evolve(OURS),
        baseline_arguments={"image": "debian:1"},
        variants=(OURS,),
        server="images",
        rounds=50,
        bar=Bar(at_most=1.2),
    ),
    Row(
        id="I5",
        what="fork: capture and 10 creates; against 10 creates",
        workload="fork",
        arguments={"image": "debian:1", "times": 10},
        baseline=attrs.evolve(OURS),
        baseline_workload="create_many",
        variants=(OURS,),
        server="images",
        bar=Bar(at_most=3.0),
    ),
)

DEFAULT_ROWS = (
    *("P1", "P2", "P3", "P5", "P15", "P20d", "P20u", "P20r", "P20c", "P21"),
    *("T1", "T2", "S0", "I1", "I2", "I3", "I4", "I5"),
)
