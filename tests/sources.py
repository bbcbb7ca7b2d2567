"""The project's own Python files, parsed: what the tests about the shape of the code read."""

from __future__ import annotations

import ast
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = "sandbox_aio"

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@attrs.frozen(kw_only=True)
class Import:
    """One module that a file imports, by its absolute name."""

    module: str
    line: int
    for_types: bool
    """It stands below `if TYPE_CHECKING:`."""
    in_function: bool


@attrs.frozen(kw_only=True, slots=False)
class Source:
    """One Python file of the checkout."""

    path: Path

    @property
    def name(self) -> str:
        """The path as seen from the checkout."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def room(self) -> str:
        """The folder, or the module, directly below the package; "" for the package itself."""
        inside = self.path.relative_to(ROOT / "src" / PACKAGE).parts
        return inside[0].removesuffix(".py").replace("__init__", "")

    def imports(self) -> Iterator[Import]:
        """Find every import, wherever it stands."""
        yield from self._imports_below(self.tree, for_types=False, in_function=False)

    def _imports_below(self, node: ast.AST, *, for_types: bool, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
            typing = for_types or guarded
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for module in self._modules(child):
                    yield Import(module=module, line=child.lineno, for_types=typing, in_function=in_function)
            else:
                inside = in_function or isinstance(child, _FUNCTIONS)
                yield from self._imports_below(child, for_types=typing, in_function=inside)

    def _modules(self, statement: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(statement, ast.Import):
            return [alias.name for alias in statement.names]
        base = self._absolute(statement.module or "", statement.level)
        return [f"{base}.{alias.name}" for alias in statement.names] if base == PACKAGE else [base]

    def _absolute(self, module: str, level: int) -> str:
        if not level:
            return module
        package = self.path.relative_to(ROOT / "src").parts[:-1]
        return ".".join([*package[: len(package) - level + 1], *filter(None, [module])])

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Find every function and method, nested ones included."""
        return (node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS))


def sources(folder: str) -> list[Source]:
    """Return every Python file below `folder` of the checkout, in order."""
    found = sorted((ROOT / folder).rglob("*.py"))
    return [Source(path=path) for path in found if not {"node_modules", "__pycache__"} & set(path.parts)]
