"""Draw the state diagrams of the protocol from the tables that it executes.

Every table `NAME_TRANSITIONS` in `sandbox_aio/protocol/states.py` and its siblings becomes `docs/states/name.md`: a
mermaid diagram, and what each state means, which is the docstring below its member. A state that no other leads to is
drawn as a beginning, one that allows nothing as an end.

Usage: ``python tools/draw_states.py`` writes the files. With ``--check`` it writes nothing, prints what differs and
exits with 1 if anything does, a file that no table accounts for included.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_aio.protocol import states, tunnel_states, yamux_states

if TYPE_CHECKING:
    from types import ModuleType

Table = Mapping[Enum, Mapping[Enum, Enum]]

FOLDER = Path(__file__).parent.parent / "docs/states"
SUFFIX = "_TRANSITIONS"
MODULES = (states, tunnel_states, yamux_states)
HEADER = "<!-- Drawn by tools/draw_states.py from src/sandbox_aio/protocol/{}.py. Do not edit: run `make gen`. -->"


def tables(module: ModuleType) -> dict[str, Table]:
    """Return the transition tables of `module` by the lower-case name of what they are about."""
    return {name.removesuffix(SUFFIX).lower(): table for name, table in vars(module).items() if name.endswith(SUFFIX)}


def meanings(source: str) -> dict[str, dict[str, str]]:
    """Return the docstring of every enum member in `source`, by class name and member name."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = {}
        for member, following in zip(node.body, node.body[1:], strict=False):
            match member, following:
                case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str(text))):
                    found[node.name][name] = " ".join(text.split())
                case _:
                    pass
    return found


def beginnings(table: Table) -> list[Enum]:
    """Return the first state, and every other that no other state leads to."""
    led_to = {after for before, inputs in table.items() for after in inputs.values() if after is not before}
    return [state for position, state in enumerate(table) if position == 0 or state not in led_to]


def diagram(table: Table) -> str:
    """Return `table` as a mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}" for state in beginnings(table)]
    for before, inputs in table.items():
        arrows: dict[Enum, list[str]] = {}
        for cause, after in inputs.items():
            arrows.setdefault(after, []).append(str(cause.value))
        lines += [f"    {before.name} --> {after.name}: {', '.join(causes)}" for after, causes in arrows.items()]
        if not inputs:
            lines.append(f"    {before.name} --> [*]")
    return "\n".join(lines)


def page(name: str, table: Table, meaning: dict[str, str], module: str = "states") -> str:
    """Return the whole text of the page about `table`, which stands in `module`."""
    rows = [
        f"| `{state.name}` | {meaning.get(state.name, '')} | {', '.join(str(i.value) for i in inputs) or 'nothing'} |"
        for state, inputs in table.items()
    ]
    lines = [HEADER.format(module), "", f"# States: {name}", "", "```mermaid", diagram(table), "```", ""]
    return "\n".join([*lines, "| state | meaning | allows |", "|---|---|---|", *rows, ""])


def pages() -> dict[Path, str]:
    """Return the text of every page, by its path."""
    found = {}
    for module in MODULES:
        meaning = meanings(inspect.getsource(module))
        for name, table in tables(module).items():
            text = page(name, table, meaning[type(next(iter(table))).__name__], module.__name__.rpartition(".")[2])
            found[FOLDER / f"{name}.md"] = text
    return found


def differences(expected: dict[Path, str], folder: Path) -> list[str]:
    """Return, as a unified diff, how the files of `folder` differ from `expected`."""
    lines: list[str] = []
    for path in sorted({*expected, *folder.glob("*.md")}):
        actual = path.read_text() if path.exists() else ""
        lines += difflib.unified_diff(
            actual.splitlines(), expected.get(path, "").splitlines(), f"{path} (is)", f"{path} (should be)", lineterm=""
        )
    return lines


def main(arguments: list[str]) -> int:
    """Write or check the pages and return the exit status."""
    if arguments == ["--check"]:
        lines = differences(pages(), FOLDER)
        print("\n".join(lines) or f"{FOLDER.name}: up to date")
        return 1 if lines else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stale in set(FOLDER.glob("*.md")) - set(pages()):
        stale.unlink()
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
