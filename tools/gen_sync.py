"""Writes the sync facade: reads the AST of `src/sandbox_aio/client/`, writes `src/sandbox_aio/sync/_generated.py`.

    python tools/gen_sync.py            write the file anew
    python tools/gen_sync.py --check    compare the whole text, change nothing; exit status 1 and a diff if it differs

Every public class `AsyncX` gets a twin `X` with the same signatures, overloads, defaults, properties and docstrings:

    async def m(...) -> T               def m(...) -> T, which awaits it on the portal
    def m(...) -> an awaitable of T     def m(...) -> T, likewise; an awaitable context manager is left when interrupted
    def m(...) -> T                     def m(...) -> T, which calls it on the portal
    property -> an awaitable of T       property -> T, which blocks
    property -> AsyncX                  property -> X
    property, field, class variable     the same value
    a method that the rules list        property, which blocks
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for when this is run as a script

from tools.python_text import WIDTH, filled, import_block, layout, name_of, names_in, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sandbox_aio"
CLIENT = PACKAGE / "client"
OUTPUT = PACKAGE / "sync" / "_generated.py"
BY_HAND = {"__init__.py", "_bridge.py", "_call.py", "_portal.py"}
"""What else lies in the output's folder."""

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

    def need(self, *nodes: ast.AST, runtime: bool = False) -> None:
        """Import every name of these expressions, for the program or only for its types."""
        for part in itertools.chain.from_iterable(map(ast.walk, nodes)):
            if isinstance(part, ast.Name) and part.id in self.origins:
                (self.runtime_imports if runtime else self.type_imports).add(self.origins[part.id])

    def base(self, name: str) -> str:
        """Import what all twins stand on."""
        self.runtime_imports.add(("sandbox_aio.sync._bridge", name))
        return name

    def imports(self) -> str:
        """The import block, in the order that isort gives it."""
        own = {*self.twins, *self.twins.values()}
        runtime = {("__future__", "annotations"), ("typing", "TYPE_CHECKING")} | self.runtime_imports
        runtime |= {item for item in self.type_imports if item[0] == "typing"}
        for_types = {item for item in self.type_imports - runtime if item[1] not in own}
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
        arguments: list[ast.expr] = [ast.Name(node.name)]
        if "next_batch" in own:
            base = "Batched"
            arguments.append(not_none(own["__anext__"].returns))
        elif node.name in self.rules["clients"]:
            base = "Root"
        else:
            base = "Managed" if "__aenter__" in own else "Twin"
        self.need(*arguments, runtime=True)
        lines = [f"class {self.twins[node.name]}({self.base(base)}[{', '.join(map(ast.unparse, arguments))}]):"]
        paragraphs = filter(None, [ast.get_docstring(node), self.rule("clients", node.name)])
        lines += self.docstring("\n\n".join(paragraphs), 4)
        for member, words in with_words(node):
            lines += self.member(node, member, words)
        return "\n".join(lines)

    def member(self, owner: ast.ClassDef, node: ast.stmt, words: str | None) -> list[str]:
        """The twin of one public member of a class, or nothing."""
        if not isinstance(node, Method):
            return self.field(owner, node, words)
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if node.name == "__init__":
            lines = self.init(owner, node) if owner.name in self.rules["clients"] else []
            return lines + [line for item in with_words(node) for line in self.field(owner, *item, of="self")]
        if node.name.startswith("_"):
            return []
        if code := self.rule("verbatim", f"{owner.name}.{node.name}"):
            return self.verbatim(code)
        if decorators == {"property"}:
            return [] if node.name in self.rules["properties"].values() else self.property(node)
        if decorators == {"overload"}:
            self.runtime_imports.add(("typing", "overload"))
            returns = self.text(self.result(node))
            return self.function(node.name, self.parameters(node), returns, None, None, "overload")
        if decorators:
            raise GenerationError(f"{owner.name}.{node.name}: no rule for {decorators}")
        return self.method(owner, node)

    def field(self, owner: ast.ClassDef, node: ast.stmt, words: str | None, of: str = "") -> list[str]:
        """The twin of an annotated attribute of a class, or of its instances, where it is one of `self`."""
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            return []
        path = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
        target, _, name = path.rpartition(".")
        if target != of or name.startswith("_"):
            return []
        if isinstance(node, ast.Assign):
            if name not in {name_of(item.target) for item in owner.body if isinstance(item, ast.AnnAssign)}:
                raise GenerationError(f"{owner.name}.{name} is public and has no annotation")
            return []
        if name_of(node.annotation) == "ClassVar":
            lines = ["", f"    {name}: {self.text(node.annotation)} = {owner.name}.{name}"]
            return lines + self.docstring(words, 4)
        return self.function(name, ["self"], self.text(node.annotation), words, passing(name), "property")

    def property(self, node: Method) -> list[str]:
        """The twin of a property; one that can be awaited blocks."""
        returned = not_none(node.returns)
        awaited, body = self.awaited(returned), passing(node.name)
        if awaited is not None:
            body = self.body("call", [f"lambda: self._async.{node.name}"], awaited)
        elif name_of(returned) in self.twins:
            body = [f"        return {self.twins[name_of(returned)]}(self._bridge, self._async.{node.name})"]
        text = self.text(awaited or returned)
        return self.function(node.name, ["self"], text, ast.get_docstring(node), body, "property")

    def init(self, owner: ast.ClassDef, node: Method) -> list[str]:
        """The constructor of a client."""
        self.type_imports.add(("sandbox_aio.sync._portal", "Portal"))
        parameters = [*self.parameters(node), "portal: Portal | None = None"]
        body = [*layout(8, f"client = {owner.name}", passed_on(node)), "        super().__init__(client, portal)"]
        return self.function("__init__", parameters, "None", ast.get_docstring(node), body)

    def verbatim(self, code: str) -> list[str]:
        """A method that the rules have as it is."""
        node = ast.parse(code).body[0]
        assert isinstance(node, ast.FunctionDef)
        self.need(node.args, not_none(node.returns))
        self.need(*node.body, runtime=True)
        return ["", *textwrap.indent(code.strip(), "    ").splitlines()]

    def method(self, owner: ast.ClassDef, node: Method) -> list[str]:
        """The twin of a method."""
        result, arguments = self.result(node), [f"self._async.{node.name}", *passed_on(node)]
        if node.args.kwarg:  # mypy cannot choose an overload of the bridge for arguments that may be any
            arguments = [f"lambda: {arguments[0]}({', '.join(arguments[1:])})"]
        callbacks = [f'"{name}"' for name, annotation in annotated(node) if self.callback(annotation)]
        if owner.name in self.rules["clients"] and node.name == "aclose":
            body = ["        with unframed:", "            self._bridge.close()"]
        elif callbacks:
            body = self.body("call_relaying", [f"[{', '.join(callbacks)}]", *arguments], result)
        elif isinstance(node, ast.FunctionDef) and "__aexit__" in methods(self.classes.get(name_of(result))):
            body = self.body("call_owning", arguments, result)
        else:
            any_argument = any("Any]" in ast.unparse(annotation) for _, annotation in annotated(node))
            body = self.body("call", arguments, result, named=any_argument)
        if name := self.rule("properties", node.name):
            return self.function(name, ["self"], self.text(result), ast.get_docstring(node), body, "property")
        name = self.rule("renamed", node.name) or node.name
        return self.function(name, self.parameters(node), self.text(result), ast.get_docstring(node), body)

    def result(self, node: Method) -> ast.expr:
        """What the twin of a method returns."""
        returned = not_none(node.returns)
        return returned if isinstance(node, ast.AsyncFunctionDef) else self.awaited(returned) or returned

    def function(
        self,
        name: str,
        parameters: list[str],
        returns: str,
        words: str | None,
        body: list[str] | None,
        decorator: str = "",
    ) -> list[str]:
        """A function of a class; without a body it is an overload."""
        lines = ["", f"    @{decorator}"] if decorator else [""]
        lines += layout(4, f"def {name}", parameters, f" -> {returns}:" if body else f" -> {returns}: ...")
        return [*lines, *self.docstring(words, 8), *(body or [])]

    def body(self, call: str, arguments: list[str], result: ast.expr, *, named: bool = False) -> list[str]:
        """Call the async object by way of the bridge, and turn what comes into twins.

        `named`: an argument may be anything, so that mypy does not know what comes, and is told.
        """
        self.base("unframed")
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
            value, wrap = (f"answer: {self.text(result)} = ", "answer") if named else ("return ", "")
        lines = ["        with unframed:", *layout(12, f"{value}self._bridge.{call}", arguments)]
        return [*lines, f"            return {wrap}"] if wrap else lines

    def parameters(self, node: Method) -> list[str]:
        """The parameters of a method, with their defaults."""
        arguments = node.args
        if arguments.posonlyargs or arguments.vararg:
            raise GenerationError(f"no rule for the parameters of {node.name}: {ast.unparse(arguments)}")
        required = [self.parameter(item, None) for item in arguments.args[: -len(arguments.defaults) or None]]
        optional = zip(arguments.args[len(required) :], arguments.defaults, strict=True)
        keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        items = [*required, *(self.parameter(*pair) for pair in optional)]
        items += [*["*"][: len(arguments.kwonlyargs)], *(self.parameter(*pair) for pair in keywords)]
        return [*items, f"**{self.parameter(arguments.kwarg, None)}"] if arguments.kwarg else items

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
        if not text:
            return []
        for name, twin in self.twins.items():
            text = re.sub(rf"\b{name}\b", twin, text)
        for pattern, replacement in self.rules["words"].items():
            text, count = re.subn(pattern, replacement, text)
            self.used_rules |= {pattern} if count else set()
        pad, quotes = " " * indent, 'r"""' if "\\" in text else '"""'
        lines = [f"{pad}{line}" if line else "" for line in filled(text, WIDTH - indent)]
        lines[0] = f"{pad}{quotes}{lines[0].lstrip()}"
        return [*lines, f'{pad}"""'] if len(lines) > 1 else [f'{lines[0]}"""']


def methods(node: ast.ClassDef | None) -> dict[str, Method]:
    """The functions of a class by name; of overloads the implementation."""
    return {} if node is None else {item.name: item for item in node.body if isinstance(item, Method)}


def with_words(node: ast.ClassDef | Method) -> Iterator[tuple[ast.stmt, str | None]]:
    """The statements of a body, each with the string that follows it, the docstring of an attribute."""
    for statement, after in itertools.pairwise([*node.body, ast.Pass()]):
        words = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        yield statement, inspect.cleandoc(words) if isinstance(words, str) else None


def passing(name: str) -> list[str]:
    """The body of a property that gives what the async object has."""
    return [f"        return self._async.{name}"]


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
    keywords += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    return [*(item.arg for item in node.args.args[1:]), *keywords]


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
