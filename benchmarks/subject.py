"""What a workload is given, and how it insists on what it received."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Subject", "expect"]


@attrs.define(kw_only=True)
class Subject:
    """The client under test, open, and the sandbox that its workloads use, unless they make their own."""

    client: Any
    sandbox: Any


def expect(actual: object, expected: object, what: str) -> None:
    """Raise `AssertionError` unless `actual` is `expected`; unlike `assert`, also under `python -O`."""
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected}, got {actual}")
