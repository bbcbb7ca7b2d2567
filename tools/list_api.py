"""List the public API in `docs/api.md`: every name of `sandbox_aio.__all__`, its signatures, a line of its docs.

It is read from the sources, so that annotations stand as they were written. A change of the API is then a difference in
a file that a reviewer reads, and `--check` (in the test suite) fails until it has been written down.

Usage: ``python tools/list_api.py [--check]``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sandbox_aio

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs/api.md"
HEADER = """<!-- Written by tools/list_api.py. Do not edit: run `make gen`. -->

# The public API

Everything here is imported from `sandbox_aio`. The core without I/O is `sandbox_aio.protocol`, module by module.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(module: str) -> ast.Module:
    """Return the source of `module`, parsed."""
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def definitions(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes that `module` defines, by name."""
    return {node.name: node for node in tree(module).body if isinstance(node, ast.ClassDef)}


def summary(node: ast.ClassDef | Function) -> str:
    """Return the first line of the docstring of `node`."""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def signature(function: Function) -> str:
    """Return how `function` is called: its arguments without `self`, and what comes of it."""
    arguments = function.args
    positional = arguments.posonlyargs or arguments.args
    if positional and positional[0].arg in ("self", "cls"):
        positional.pop(0)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(arguments)}){returns}"


def members(definition: ast.ClassDef) -> Iterator[str]:
    """Yield a line for each field, property and method of a class that is for its users."""
    for node in definition.body:
        match node:
            case ast.AnnAssign(target=ast.Name(name), annotation=annotation) if not name.startswith("_"):
                yield f"`{name}: {ast.unparse(annotation)}`"
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("_") or node.name == "__init__":
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                if "overload" in decorators or any(name.endswith(".setter") for name in decorators):
                    continue
                text = signature(node)
                if "property" in decorators:
                    text = text.replace("()", "").replace(" -> ", ": ", 1)
                kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
                yield f"`{kind}{text}`" + (f" {summary(node)}" if summary(node) else "")
            case _:
                pass


def lineage(cls: type) -> list[type]:
    """Return `cls` and the classes of ours that it inherits members from, exceptions aside."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("sandbox_aio")]
    return ours[:1] if issubclass(cls, BaseException) else ours


def section(name: str) -> str:
    """Return what the page says about the public name `name`."""
    value = getattr(sandbox_aio, name)
    if inspect.isfunction(value):
        function = next(
            node for node in tree(value.__module__).body if isinstance(node, Function) and node.name == name
        )
        return f"## `{signature(function)}`\n\n{summary(function)}\n"
    if not inspect.isclass(value):
        return f"## `{name}`\n\n`{value!r}`\n"
    lines: dict[str, str] = {}
    for cls in reversed(lineage(value)):
        for line in members(definitions(cls.__module__)[cls.__name__]):
            if line.startswith("`__init__") and not (issubclass(value, BaseException) or name.endswith("Client")):
                continue  # users do not make these
            lines[line.removeprefix("`").removeprefix("async ").partition("(")[0].partition(":")[0]] = f"- {line}"
    definition = definitions(value.__module__)[value.__name__]
    bases = [base.__name__ for base in value.__bases__ if base.__name__ in sandbox_aio.__all__]
    title = f"## `{name}`" + (f", a `{bases[0]}`" if bases else "")
    return "\n".join([title, "", summary(definition), *([""] if lines else []), *lines.values(), ""])


def page() -> str:
    """Return the whole text of the page."""
    return "\n".join([HEADER, *(section(name) for name in sandbox_aio.__all__)])


def main(arguments: list[str]) -> int:
    """Write or check the page and return the exit status."""
    if arguments != ["--check"]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE.name} does not list the API as it is")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
