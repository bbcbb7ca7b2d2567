"""`tools/verify_types.py`: what it makes of pyright's report."""

from __future__ import annotations

from typing import Any

from tools.verify_types import complaints


def report(*symbols: dict[str, Any], errors: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a report such as pyright's JSON."""
    return {"typeCompleteness": {"symbols": symbols}, "generalDiagnostics": errors or []}


def symbol(name: str, *, exported: bool = True, known: bool = True, messages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return one symbol of a report."""
    diagnostics = [{"message": message} for message in messages]
    return {"name": name, "isExported": exported, "isTypeKnown": known, "diagnostics": diagnostics}


def test_a_typed_package_gives_no_complaint() -> None:
    assert complaints(report(symbol("a.b"), symbol("a._c", exported=False, known=False))) == []


def test_each_untyped_symbol_is_named_with_its_reason() -> None:
    found = complaints(report(symbol("a.b", known=False, messages=("no annotation",)), symbol("a.c", known=False)))
    assert found == ["a.b: no annotation", "a.c: type unknown or ambiguous"]


def test_errors_count_and_warnings_do_not() -> None:
    errors = [{"severity": "error", "message": "no py.typed"}, {"severity": "warning", "message": "hm"}]
    assert complaints(report(errors=errors)) == ["no py.typed"]
