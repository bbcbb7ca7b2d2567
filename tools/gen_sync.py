"""Writes the sync facade: reads the AST of `src/sandbox_aio/client/`, writes `src/sandbox_aio/sync/_generated.py`.

    python tools/gen_sync.py            write the file anew
    python tools/gen_sync.py --check    compare the whole text, change nothing; exit status 1 and a diff if it differs

Every public class `AsyncX` gets a twin `X` with the same signatures, overloads, defaults, properties and docstrings:

    async def m(...) -> T               def m(...) -> T, which awaits it on the portal
    def m(...) -> an awaitable of T     def m(...) -> T, likewise; an awaitable context manager is left when interrupted
    def m(...) -> T                     def m(...) -> T, which calls it on the portal
    property -> an awaitable of T       property -> T, which blocks
    property, field, class variable     the same value
    __aenter__, __aexit__               `with`, by the base class `Managed`, or `Root` for a client
    __anext__ with next_batch           iteration, by the base class `Batched`: one crossing for a batch
    a callback, sync or async           a plain function, which runs on the caller's thread

The text does not depend on the Python that runs this, and is laid out as `ruff format` would.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import inspect
import itertools
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sandbox_aio"
CLIENT = PACKAGE / "client"
OUTPUT = PACKAGE / "sync" / "_generated.py"
BY_HAND = {"__init__.py", "_bridge.py", "_portal.py"}
"""What else lies in the output's folder."""

WIDTH = 120
HEADER = '''\
"""The sync clients: the async ones of `sandbox_aio.client`, with calls that block.

Written by tools/gen_sync.py from src/sandbox_aio/client/. Do not edit: run `python tools/gen_sync.py`.
"""
'''

RULES = Path(__file__).with_suffix(".toml")


class GenerationError(Exception):
    """The source has something that no rule covers."""


Method = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """One source file: its classes, its aliases, and where each of its names comes from."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.constants: dict[str, ast.expr] = {}
        self.origins: dict[str, tuple[str, str]] = {}
        """For each imported or defined name, the module that has it and its name there ("" for the module itself)."""
        for node in ast.walk(tree):
            self._note_imports(node)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = node.value
        self.origins |= {defined: (name, defined) for defined in (*self.constants, *self.classes)}

    def _note_imports(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            self.origins |= {item.asname or item.name: (item.name, "") for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = self.name.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *filter(None, [node.module])])
            self.origins |= {item.asname or item.name: (origin, item.name) for item in node.names}


class Generator:
    """Writes the twins of the classes of some modules."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = modules
        self.classes = {name: node for module in modules for name, node in module.classes.items()}
        self.constants = {name: value for module in modules for name, value in module.constants.items()}
        self.origins = {name: origin for module in modules for name, origin in module.origins.items()}
        self.twins = {
            name: name.removeprefix("Async")
            for name, node in self.classes.items()
            if name.startswith("Async") and "__await__" not in methods(node)
        }
        self.rules: dict[str, dict[str, str]] = tomllib.loads(RULES.read_text(encoding="utf-8"))
        self.used_rules: set[str] = set()
        self.runtime_imports: set[tuple[str, str]] = set()
        self.type_imports: set[tuple[str, str]] = set()

    def generate(self) -> str:
        """Give the whole text of the output.

        Raises:
            GenerationError: the source has something that no rule covers.
        """
        twins = [self.twin(self.classes[name]) for name in self.twins]
        names = "".join(f'    "{name}",\n' for name in sorted(self.twins.values()))
        return f"{HEADER}\n{self.imports()}\n__all__ = [\n{names}]\n" + "".join(f"\n\n{twin}\n" for twin in twins)

    def unused_rules(self) -> list[str]:
        """The rules that nothing needed, once the text is generated."""
        return sorted({rule for table in self.rules.values() for rule in table} - self.used_rules)

    # Names.

    def need(self, node: ast.AST, *, runtime: bool = False) -> None:
        """Import every name of this expression, for the program or only for its types."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in self.origins:
                (self.runtime_imports if runtime else self.type_imports).add(self.origins[part.id])

    def need_base(self, name: str) -> str:
        self.runtime_imports.add(("sandbox_aio.sync._bridge", name))
        return name

    def imports(self) -> str:
        """The import block, in the order that isort gives it."""
        runtime = {("__future__", "annotations"), ("typing", "TYPE_CHECKING")} | self.runtime_imports
        runtime |= {item for item in self.type_imports if item[0] == "typing"}
        for_types = {item for item in self.type_imports - runtime if item[1] not in self.twins}
        return import_block(runtime) + "\nif TYPE_CHECKING:\n" + re.sub("(?m)^(?=.)", "    ", import_block(for_types))

    # Types.

    def text(self, node: ast.expr) -> str:
        """The text of an annotation, with the names of the twins."""
        self.need(node)
        node = copy.deepcopy(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                part.id = self.twins.get(part.id, part.id)
        return quoted(ast.unparse(node))

    def callback(self, node: ast.expr | None) -> ast.expr | None:
        """The annotation of a callback as a plain function's, whatever it returns; None for any other annotation."""
        if isinstance(node, ast.BinOp):
            left, right = self.callback(node.left), self.callback(node.right)
            return ast.BinOp(left or node.left, node.op, right or node.right) if left or right else None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.callback(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.Subscript) and name_of(node) == "Callable" and isinstance(node.slice, ast.Tuple):
            return ast.Subscript(node.value, ast.Tuple([node.slice.elts[0], ast.Name("object")]))
        alias = self.constants.get(name_of(node))
        return self.callback(alias) if alias is not None else None

    def awaited(self, node: ast.expr | None) -> ast.expr | None:
        """The type that awaiting a value of this type gives; None if it cannot be awaited."""
        if node is None:
            return None
        arguments = node.slice if isinstance(node, ast.Subscript) else None
        if name_of(node) in ("Awaitable", "Coroutine"):
            return arguments.elts[-1] if isinstance(arguments, ast.Tuple) else arguments
        own = self.classes.get(name_of(node))
        method = methods(own).get("__await__") if own is not None else None
        if method is None:
            return None
        assert isinstance(method.returns, ast.Subscript) and isinstance(method.returns.slice, ast.Tuple)
        return arguments or method.returns.slice.elts[-1]

    # Classes.

    def twin(self, node: ast.ClassDef) -> str:
        """The twin of a class."""
        own = methods(node)
        self.need(ast.Name(node.name), runtime=True)
        arguments = [node.name]
        if "next_batch" in own:
            base = "Batched"
            item = not_none(own["__anext__"].returns)
            self.need(item, runtime=True)
            arguments.append(self.text(item))
        elif "__aenter__" in own:
            base = "Root" if node.name in self.rules["clients"] else "Managed"
        else:
            base = "Twin"
        lines = [f"class {self.twins[node.name]}({self.need_base(base)}[{', '.join(arguments)}]):"]
        lines += self.docstring(
            "\n\n".join(filter(None, [ast.get_docstring(node), self.rule("clients", node.name)])), 4
        )
        for member, after in itertools.pairwise([*node.body, ast.Pass()]):
            lines += self.member(node, member, after)
        return "\n".join(lines)

    def member(self, owner: ast.ClassDef, node: ast.stmt, after: ast.stmt) -> list[str]:
        """The twin of one public member of a class, or nothing."""
        if isinstance(node, ast.AnnAssign):
            return self.field(owner, node, after)
        if not isinstance(node, Method):
            return []
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if node.name == "__init__":
            fields = [
                line for pair in itertools.pairwise([*node.body, ast.Pass()]) for line in self.field(owner, *pair)
            ]
            return (self.init(owner, node) if owner.name in self.rules["clients"] else []) + fields
        if node.name.startswith("_"):
            return []
        if "property" in decorators:
            return self.property(node)
        if node.name == "to_sync":
            return self.to_async(owner, node)
        if "classmethod" in decorators:
            return self.constructor(owner, node)
        if decorators - {"overload"}:
            raise GenerationError(f"{owner.name}.{node.name}: no rule for {sorted(decorators)}")
        return self.method(owner, node, is_overload="overload" in decorators)

    def field(self, owner: ast.ClassDef, node: ast.stmt, after: ast.stmt) -> list[str]:
        """The twin of an annotated attribute of a class or of its instances; a string after it is its docstring."""
        if not isinstance(node, ast.AnnAssign):
            return []
        name = node.target.attr if isinstance(node.target, ast.Attribute) else name_of(node.target)
        if name.startswith("_"):
            return []
        words = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        text = inspect.cleandoc(words) if isinstance(words, str) else None
        if name_of(node.annotation) == "ClassVar":
            lines = ["", f"    {name}: {self.text(node.annotation)} = {owner.name}.{name}"]
            return lines + self.docstring(text, 4)
        return self.same(name, node.annotation, text)

    def same(self, name: str, annotation: ast.expr, words: str | None) -> list[str]:
        """A property that gives what the async object has."""
        lines = ["", "    @property", f"    def {name}(self) -> {self.text(annotation)}:"]
        return [*lines, *self.docstring(words, 8), f"        return self._async.{name}"]

    def property(self, node: Method) -> list[str]:
        """The twin of a property; one that can be awaited blocks."""
        returned = not_none(node.returns)
        if names_in(returned) & set(self.twins):
            raise GenerationError(f"the property {node.name} gives an async object: no rule")
        words, awaited = ast.get_docstring(node), self.awaited(returned)
        if awaited is None:
            return self.same(node.name, returned, words)
        head = ["", "    @property", f"    def {node.name}(self) -> {self.text(awaited)}:"]
        getter = f"lambda: self._async.{node.name}"
        return [*head, *self.docstring(words, 8), *self.body("call", [getter], awaited)]

    def init(self, owner: ast.ClassDef, node: Method) -> list[str]:
        """The constructor of a client."""
        self.type_imports.add(("sandbox_aio.sync._portal", "Portal"))
        parameters = [*self.parameters(node), "portal: Portal | None = None"]
        return [
            "",
            *layout(4, "def __init__", parameters, " -> None:"),
            *self.docstring(ast.get_docstring(node), 8),
            *layout(8, f"client = {owner.name}", passed_on(node), ""),
            "        super().__init__(client, portal)",
        ]

    def constructor(self, owner: ast.ClassDef, node: Method) -> list[str]:
        """The twin of a class method that makes an object for a client."""
        client = next(name for name, annotation in annotated(node) if name_of(annotation) in self.rules["clients"])
        arguments = [f"{name}._async" if name == client else name for name in passed_on(node)]
        lines = ["", "    @classmethod"]
        lines += layout(4, f"def {node.name}", self.parameters(node), f" -> {self.text(not_none(node.returns))}:")
        lines += self.docstring(ast.get_docstring(node), 8)
        lines += layout(8, f"twin = {owner.name}.{node.name}", arguments, "")
        return [*lines, f"        return cls({client}._bridge, twin)"]

    def to_async(self, owner: ast.ClassDef, node: Method) -> list[str]:
        """The twin of `to_sync`: from here to there."""
        originals = {twin: name for name, twin in self.twins.items()}
        node = copy.deepcopy(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                part.id = originals.get(part.id, part.id)
        names, self.twins = self.twins, {}
        lines = [
            "",
            *layout(
                4, f"def {(self.rule('renamed', node.name) or node.name)}", self.parameters(node), f" -> {owner.name}:"
            ),
        ]
        lines += self.docstring(ast.get_docstring(node), 8)
        self.twins = names
        body = self.rule("to_async", owner.name) or ""
        self.need(ast.parse(body), runtime=True)
        return [*lines, *textwrap.indent(body.strip(), " " * 8).splitlines()]

    def method(self, owner: ast.ClassDef, node: Method, *, is_overload: bool) -> list[str]:
        """The twin of a method."""
        is_async = isinstance(node, ast.AsyncFunctionDef)
        result = not_none(node.returns if is_async else self.awaited(node.returns) or node.returns)
        name = self.rule("renamed", node.name) or node.name
        lines = ["", "    @overload"] if is_overload else [""]
        tail = f" -> {self.text(result)}:"
        lines += layout(4, f"def {name}", self.parameters(node), f"{tail} ..." if is_overload else tail)
        if is_overload:
            self.runtime_imports.add(("typing", "overload"))
            return lines
        lines += self.docstring(ast.get_docstring(node), 8)
        if owner.name in self.rules["clients"] and node.name == "aclose":
            return [*lines, "        with unframed:", "            self._bridge.close()"]
        arguments = [f"self._async.{node.name}", *passed_on(node)]
        if callbacks := [f'"{name}"' for name, annotation in annotated(node) if self.callback(annotation)]:
            return lines + self.body("call_relaying", [f"[{', '.join(callbacks)}]", *arguments], result)
        owning = not is_async and "__aexit__" in methods(self.classes.get(name_of(result)))
        return lines + self.body("call_owning" if owning else "call", arguments, result)

    def body(self, call: str, arguments: list[str], result: ast.expr) -> list[str]:
        """Call the async object by way of the bridge, and turn what comes into twins."""
        self.need_base("unframed")
        own = sorted(names_in(result) & set(self.twins))
        value, wrap = "", ""
        if own:
            original, twin = own[0], f"{self.twins[own[0]]}(self._bridge, twin)"
            value = "twin = "
            if ast.unparse(result) == original:
                wrap = twin
            elif ast.unparse(result) == f"list[{original}]":
                value, wrap = "twins = ", f"[{twin} for twin in twins]"
            elif isinstance(result, ast.BinOp) and len(own) == 1:
                self.type_imports.add(("typing", "Any"))
                value, wrap = "twin: Any = ", f"{twin} if isinstance(twin, {original}) else twin"
            else:
                raise GenerationError(f"no rule for the result {ast.unparse(result)}")
        elif ast.unparse(result) != "None":
            value = "return "
        lines = ["        with unframed:", *layout(12, f"{value}self._bridge.{call}", arguments, "")]
        return [*lines, f"            return {wrap}"] if wrap else lines

    def parameters(self, node: Method) -> list[str]:
        """The parameters of a method, with their defaults."""
        arguments = node.args
        if arguments.posonlyargs or arguments.vararg or arguments.kwarg:
            raise GenerationError(f"no rule for the parameters of {node.name}: {ast.unparse(arguments)}")
        required = [self.parameter(item, None) for item in arguments.args[: -len(arguments.defaults) or None]]
        optional = zip(arguments.args[len(required) :], arguments.defaults, strict=True)
        keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        items = [*required, *(self.parameter(*pair) for pair in optional)]
        return [*items, *["*"][: len(arguments.kwonlyargs)], *(self.parameter(*pair) for pair in keywords)]

    def parameter(self, node: ast.arg, default: ast.expr | None) -> str:
        """One parameter, with its annotation and default."""
        text = node.arg
        if node.annotation is not None:
            text += f": {self.text(self.callback(node.annotation) or node.annotation)}"
        if default is None:
            return text
        self.need(default, runtime=True)
        return f"{text} = {quoted(ast.unparse(default))}"

    # Words.

    def rule(self, table: str, name: str) -> str | None:
        """What a table of rules has for a name."""
        if name in self.rules[table]:
            self.used_rules.add(name)
        return self.rules[table].get(name)

    def docstring(self, text: str | None, indent: int) -> list[str]:
        """A docstring, in the words of the twin."""
        if text is None:
            return []
        for name, twin in self.twins.items():
            text = re.sub(rf"\b{name}\b", twin, text)
        for pattern, replacement in self.rules["words"].items():
            text, count = re.subn(pattern, replacement, text)
            self.used_rules |= {pattern} if count else set()
        pad, quotes = " " * indent, 'r"""' if "\\" in text else '"""'
        lines = [f"{pad}{line}" if line else "" for line in rewrapped(text, WIDTH - indent)]
        lines[0] = f"{pad}{quotes}{lines[0].lstrip()}"
        return [*lines, f'{pad}"""'] if len(lines) > 1 else [f'{lines[0]}"""']


def rewrapped(text: str, width: int) -> list[str]:
    """The lines of a text; where one is too long, it is filled anew together with those that follow at its depth."""
    lines, filled = text.splitlines(), list[str]()
    while lines:
        line = lines.pop(0)
        if len(line) > width:
            depth = line[: len(line) - len(line.lstrip())]
            while lines and re.match(depth + r"\S", lines[0]):
                line += " " + lines.pop(0).lstrip()
            filled += textwrap.wrap(line, width, subsequent_indent=depth, break_on_hyphens=False)
        else:
            filled.append(line)
    return filled


def methods(node: ast.ClassDef | None) -> dict[str, Method]:
    """The functions of a class by name; of overloads the implementation."""
    return {} if node is None else {item.name: item for item in node.body if isinstance(item, Method)}


def name_of(node: ast.expr | None) -> str:
    """The name of a type without its arguments and its module, or an empty string."""
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def names_in(node: ast.expr | None) -> set[str]:
    """All names in an expression."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node is not None else set()


def not_none(node: ast.expr | None) -> ast.expr:
    """An annotation that must be there."""
    if node is None:
        raise GenerationError("something public has no annotation")
    return node


def annotated(node: Method) -> Iterator[tuple[str, ast.expr]]:
    """The parameters of a method that have an annotation."""
    for item in ast.walk(node.args):
        if isinstance(item, ast.arg) and item.annotation is not None:
            yield item.arg, item.annotation


def passed_on(node: Method) -> list[str]:
    """The arguments by which a twin calls its original."""
    keywords = [f"{item.arg}={item.arg}" for item in node.args.kwonlyargs]
    return [*(item.arg for item in node.args.args[1:]), *keywords]


def quoted(text: str) -> str:
    """The text of an expression, with the quotes that the formatter prefers."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', text)


def layout(indent: int, head: str, items: list[str], tail: str) -> list[str]:
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


def generator_for(paths: Iterable[Path], package: str) -> Generator:
    """Give the generator of the facade of these files, modules of `package`."""
    return Generator([Module(path, f"{package}.{path.stem}") for path in sorted(paths)])


def problems(generator: Generator, text: str) -> str:
    """Compare the whole text with what is there; empty if nothing is wrong."""
    unlisted = {path.name for path in OUTPUT.parent.glob("*.py")} - BY_HAND - {OUTPUT.name}
    lines = [f"{OUTPUT.parent / name} is neither written by hand nor by this tool\n" for name in sorted(unlisted)]
    lines += [f"nothing uses the rule {rule}\n" for rule in generator.unused_rules()]
    found = OUTPUT.read_text(encoding="utf-8") if OUTPUT.exists() else ""
    there, wanted = found.splitlines(keepends=True), text.splitlines(keepends=True)
    return "".join([*lines, *difflib.unified_diff(there, wanted, "as it is", "as it should be")])


def main() -> int:
    """Write the facade, or check it."""
    parser = argparse.ArgumentParser(description="Write the sync facade.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the facade is not up to date")
    check = parser.parse_args().check
    generator = generator_for((path for path in CLIENT.glob("*.py") if path.stem != "__init__"), "sandbox_aio.client")
    text = generator.generate()
    if not check:
        OUTPUT.write_text(text, encoding="utf-8")
    found = problems(generator, text)
    print(found, end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
