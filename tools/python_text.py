"""Lays Python source out as `ruff format` and isort would, for files that are generated; reads names off its trees."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 120


def filled(text: str, width: int) -> list[str]:
    """The lines of a text; where one is too long, it is filled anew together with those that follow at its depth."""
    lines, done = text.splitlines(), list[str]()
    while lines:
        line = lines.pop(0)
        if len(line) > width:
            depth = line[: len(line) - len(line.lstrip())]
            while lines and re.match(depth + r"\S", lines[0]):
                line += " " + lines.pop(0).lstrip()
            done += textwrap.wrap(line, width, subsequent_indent=depth, break_on_hyphens=False)
        else:
            done.append(line)
    return done


def quoted(text: str) -> str:
    """The text of an expression, with the quotes that the formatter prefers."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', text)


def layout(indent: int, head: str, items: list[str], tail: str = "") -> list[str]:
    """`head(items)tail` on one line, or with the items on a line of their own, or with a line for each."""
    pad = " " * indent
    if len(line := f"{pad}{head}({', '.join(items)}){tail}") <= WIDTH:
        return [line]
    if len(line := f"{pad}    {', '.join(items)}") <= WIDTH:
        return [f"{pad}{head}(", line, f"{pad}){tail}"]
    return [f"{pad}{head}(", *(f"{pad}    {item}," for item in items), f"{pad}){tail}"]


def import_block(items: Iterable[tuple[str, str]]) -> str:
    """The lines that import these names from these modules ("": the module itself), sorted as isort does."""
    names: dict[str, list[str]] = {}
    for module, name in items:
        names.setdefault(module, []).append(name)
    text, section = "", 0
    for module in sorted(names, key=section_of):
        gap = "\n" if text and section != section_of(module)[0] else ""
        section = section_of(module)[0]
        listed = sorted(names[module], key=lambda name: (not name.isupper(), not name[:1].isupper(), name))
        line = f"from {relative(module)} import {', '.join(listed)}" if listed != [""] else f"import {module}"
        if len(line) > WIDTH - 4:
            line = f"from {relative(module)} import (\n" + "".join(f"    {name},\n" for name in listed) + ")"
        text += f"{gap}{line}\n"
    return text


def section_of(module: str) -> tuple[int, str]:
    """The section of the import block that a module belongs to, and its place there."""
    if relative(module).startswith("."):
        return 3, module.replace("sandbox_aio.sync", "~")
    first = module.partition(".")[0]
    return (0 if first == "__future__" else 1 if first in sys.stdlib_module_names else 2), module


def relative(module: str) -> str:
    """The module's name as the output writes it."""
    if module.startswith("sandbox_aio.sync."):
        return module.removeprefix("sandbox_aio.sync")
    return "." + module.removeprefix("sandbox_aio") if module.startswith("sandbox_aio.") else module


def name_of(node: ast.expr | None) -> str:
    """The name of a type without its arguments and its module, or an empty string."""
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def names_in(node: ast.expr | None) -> set[str]:
    """All names in an expression."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node is not None else set()
