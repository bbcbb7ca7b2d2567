"""`tools/list_api.py`: what a class becomes."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tools import list_api

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SOURCE = '''
class Lamp(Thing):
    """Light a room.

    More about it."""

    watts: int
    _secret: str = ""

    def __init__(self, watts: int = 40) -> None: ...

    @property
    def lit(self) -> bool:
        """Whether it burns."""

    @lit.setter
    def lit(self, value: bool) -> None: ...

    async def dim(self, to: float, /, *, slowly: bool = False) -> Lamp:
        """Burn less.

        Details."""

    @classmethod
    def of_gas(cls) -> Lamp: ...

    def _heat(self) -> None: ...
'''


def test_members_are_the_public_ones_with_the_first_line_of_their_docs() -> None:
    (definition,) = ast.parse(SOURCE).body
    assert isinstance(definition, ast.ClassDef)
    assert list(list_api.members(definition)) == [
        "`watts: int`",
        "`__init__(watts: int=40) -> None`",
        "`lit: bool` Whether it burns.",
        "`async dim(to: float, /, *, slowly: bool=False) -> Lamp` Burn less.",
        "`of_gas() -> Lamp`",
    ]


def test_a_section_names_the_base() -> None:
    assert list_api.section("CommandTimeoutError").startswith("## `CommandTimeoutError`, a `SandboxOperationError`\n")


def test_the_check_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_api, "page", lambda: "# As it is\n")
    monkeypatch.setattr(list_api, "PAGE", (page := tmp_path / "api.md"))
    assert list_api.main(["--check"]) == 1
    list_api.main([])
    assert list_api.main(["--check"]) == 0
    page.write_text("# As it was\n")
    assert list_api.main(["--check"]) == 1
