"""The rule of ARCHITECTURE.md, held: who may import whom, how pure the core is, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.sources import PACKAGE, ROOT, Source, sources

PUBLIC = {"errors", "models"}
ARROWS = {
    "": PUBLIC | {"proxy_rules"},
    "errors": set(),
    "models": {"errors"},
    "proxy_rules": set(),
    "protocol": PUBLIC,
    "drivers": PUBLIC | {"protocol"},
    "client": PUBLIC | {"protocol", "drivers"},
    "sync": PUBLIC | {"client"},
    "daemon": PUBLIC | {"protocol"},
    "removal": set(),
    "shielding": set(),
    "runtimes": PUBLIC | {"daemon", "removal", "shielding"},
    "images": PUBLIC | {"removal", "shielding"},
    "server": PUBLIC | {"protocol", "runtimes", "images", "removal", "shielding"},
    "cli": PUBLIC | {"", "client", "server"},
}
"""For each room, the other rooms that it may import; "" is the package itself, whose lazy names reach everywhere."""

FOR_TYPES = {"": {"client", "sync"}, "client": {"sync"}}
"""What a room may name in annotations beyond that: the package says what it loads lazily."""

BETWEEN_LOOPS = {"errors", "models", "protocol", "drivers", "client"}
"""The rooms that are correct on asyncio and on trio, so they name neither."""

IMPURE = {
    "asyncio", "concurrent", "multiprocessing", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil",
    "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip
"""Modules of the standard library that the core has no use for: they do I/O, read a clock, draw lots, hold threads."""

CORE_PACKAGES = {
    "attrs": None,
    "cattrs": {"codec.py"},
    "msgspec": {"codec_msgspec.py"},
    "wsproto": {"masking.py", "upgrade.py", "websocket.py"},
}
"""What the core imports of others, and in which of its files; None stands for any."""

NOT_LOADED_WITH_CORE = {"asyncio", "socket", "ssl", "selectors", "concurrent", "anyio", "httpx", "trio"}

MAX_FILE_LINES = 450
MAX_TEST_FILE_LINES = 600
"""A list of cases reads well at a length at which code does not."""
MAX_FUNCTION_LINES = 50
LONGER: dict[str, str] = {
    "src/sandbox_aio/client/sandbox.py": "a sandbox's whole public face: mostly signatures and docstrings",
    "src/sandbox_aio/client/client.py": "a client's whole public face: mostly signatures and docstrings",
    "src/sandbox_aio/models.py": "data classes: mostly fields and what they mean",
    "src/sandbox_aio/protocol/command.py": "one state machine, to be read from top to bottom; a third of it is prose",
    "src/sandbox_aio/protocol/yamux.py": "one state machine, to be read from top to bottom",
    "src/sandbox_aio/runtimes/namespaces/runtime.py": "the runtime's interface, over one set of records",
    "src/sandbox_aio/runtimes/namespaces/zygote.py": "one loop over descriptors, to be read from top to bottom",
    "src/sandbox_aio/sync/_generated.py": "generated: as long as the async client's public face",
}
"""Files that may be longer, or hold longer functions, each with its reason."""

LAZY = {
    "src/sandbox_aio/cli/__init__.py": "each command starts without what only the other needs",
    "src/sandbox_aio/cli/serve.py": "the server's extra may be missing, which deserves a sentence",
    "src/sandbox_aio/server/serve.py": "only the runtime that was chosen is loaded",
}
"""Files that may import ours inside a function, each with its reason. The arrows hold there all the same."""

SRC = sources(f"src/{PACKAGE}")
CORE = [source for source in SRC if source.room == "protocol"]


def by_name(source: Source) -> str:
    return source.name


def room_of(module: str) -> str | None:
    """Return the room of a module of ours, "" for another name of the package, None for a module of others."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return None if first != PACKAGE else room if room in ARROWS else ""


@pytest.mark.parametrize("source", SRC, ids=by_name)
def test_imports_follow_the_arrows(source: Source) -> None:
    for item in source.imports():
        room = room_of(item.module)
        if room is None or room == source.room:
            continue
        allowed = ARROWS[source.room] | (FOR_TYPES.get(source.room, set()) if item.for_types else set())
        assert room in allowed, f"{source.name}:{item.line} imports {item.module}; {source.room} may use {allowed}"


@pytest.mark.parametrize("source", [s for s in SRC if s.name not in LAZY], ids=by_name)
def test_no_import_of_ours_hides_in_a_function(source: Source) -> None:
    hidden = [item for item in source.imports() if item.in_function and room_of(item.module) is not None]
    assert not hidden, f"{source.name}: an import inside a function hides an arrow that points the wrong way: {hidden}"


@pytest.mark.parametrize("source", SRC, ids=by_name)
def test_nothing_imports_the_official_client(source: Source) -> None:
    assert not [item for item in source.imports() if item.module.partition(".")[0] == "langsmith"]


@pytest.mark.parametrize("source", [s for s in SRC if s.room in BETWEEN_LOOPS], ids=by_name)
def test_client_side_names_no_event_loop(source: Source) -> None:
    assert not [item for item in source.imports() if item.module.partition(".")[0] in ("asyncio", "trio")]


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_core_imports_nothing_impure(source: Source) -> None:
    for item in source.imports():
        top = item.module.partition(".")[0]
        assert top not in IMPURE, f"{source.name}:{item.line}"
        if top != PACKAGE and top not in sys.stdlib_module_names:
            files = CORE_PACKAGES.get(top, set())
            assert files is None or source.path.name in files, f"{source.name}:{item.line} imports {item.module}"


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_core_never_awaits_and_opens_nothing(source: Source) -> None:
    waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    for node in ast.walk(source.tree):
        assert not isinstance(node, waits), f"{source.name}:{node.lineno} waits"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "__import__"), f"{source.name}:{node.lineno} does I/O"


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names of the modules that a clean interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=30)
    return {module.partition(".")[0] for module in run.stdout.split()}


def test_core_loads_no_network_in_a_clean_interpreter() -> None:
    modules = "\n".join(f"import {PACKAGE}.protocol.{source.path.stem}" for source in CORE)
    assert not loaded_by(modules) & NOT_LOADED_WITH_CORE


def test_package_loads_no_network_before_a_client_is_named() -> None:
    assert not loaded_by(f"import {PACKAGE}") & NOT_LOADED_WITH_CORE


def test_daemon_loads_neither_client_nor_server() -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import {PACKAGE}.daemon, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    rooms = {room_of(module) for module in run.stdout.split()}
    assert not rooms & {"client", "drivers", "sync", "server", "runtimes", "cli"}


def test_every_room_is_in_the_drawing() -> None:
    assert {source.room for source in SRC} <= ARROWS.keys(), "a new room needs its arrows here and in ARCHITECTURE.md"
    drawing = (ROOT / "ARCHITECTURE.md").read_text()
    assert not [room for room in ARROWS if room and room not in drawing]


@pytest.mark.parametrize("source", [s for s in CORE if any(s.functions())], ids=by_name)
def test_each_core_module_has_a_test_file_of_its_own(source: Source) -> None:
    assert (ROOT / f"tests/protocol/test_{source.path.stem}.py").exists()


EVERYTHING = [s for folder in ("src", "tools", "tests", "examples", "benchmarks") for s in sources(folder)]


@pytest.mark.parametrize("source", EVERYTHING, ids=by_name)
def test_a_file_fits_in_a_head(source: Source) -> None:
    assert source.path.stem not in ("utils", "util", "helpers", "helper", "common", "misc")
    if source.name in LONGER:
        return
    lines = len(source.text.splitlines())
    limit = MAX_TEST_FILE_LINES if source.name.startswith("tests/") else MAX_FILE_LINES
    assert lines <= limit, f"{source.name} has {lines} lines, {lines - limit} too many"
    for function in source.functions():
        length = body_lines(function)
        assert length <= MAX_FUNCTION_LINES, f"{source.name}:{function.lineno} {function.name} has {length} lines"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines `function` has, its signature and docstring aside."""
    assert function.end_lineno
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_every_exception_is_still_there() -> None:
    assert not [name for name in {**LONGER, **LAZY} if not (ROOT / name).exists()]
