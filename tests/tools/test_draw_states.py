"""`tools/draw_states.py`: what a table becomes, and what `--check` notices."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.protocol import states
from tools import draw_states

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SOURCE = '''
class Lamp(enum.Enum):
    OFF = "off"
    """It is
    dark."""
    ON = "on"
    BROKEN = "broken"
    """For good."""
'''


class Lamp(enum.Enum):
    OFF = "off"
    ON = "on"
    BROKEN = "broken"
    STORED = "stored"


class Deed(enum.Enum):
    PRESS = "press"
    HIT = "hit"
    DROP = "drop"


TABLE: Mapping[enum.Enum, Mapping[enum.Enum, enum.Enum]] = {
    Lamp.OFF: {Deed.PRESS: Lamp.ON},
    Lamp.ON: {Deed.PRESS: Lamp.OFF, Deed.HIT: Lamp.BROKEN, Deed.DROP: Lamp.BROKEN},
    Lamp.BROKEN: {},
    Lamp.STORED: {Deed.PRESS: Lamp.ON},
}


def test_meanings_are_the_docstrings_below_the_members() -> None:
    assert draw_states.meanings(SOURCE) == {"Lamp": {"OFF": "It is dark.", "BROKEN": "For good."}}


def test_a_diagram_begins_where_nothing_leads_to_and_joins_parallel_arrows() -> None:
    assert draw_states.diagram(TABLE).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> OFF",
        "    [*] --> STORED",
        "    OFF --> ON: press",
        "    ON --> OFF: press",
        "    ON --> BROKEN: hit, drop",
        "    BROKEN --> [*]",
        "    STORED --> ON: press",
    ]


def test_a_page_has_a_row_for_every_state() -> None:
    page = draw_states.page("lamp", TABLE, {"OFF": "It is dark."})
    assert "| `OFF` | It is dark. | press |" in page
    assert "| `BROKEN` |  | nothing |" in page


def test_every_state_of_the_protocol_is_in_a_table_and_can_be_reached() -> None:
    for table in draw_states.tables(states).values():
        assert list(table) == list(type(next(iter(table))))
        reached = {*draw_states.beginnings(table)}
        while more := {after for state in reached for after in table[state].values()} - reached:
            reached |= more
        assert reached == set(table)


def test_written_pages_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_states, "FOLDER", tmp_path / "states")
    assert draw_states.main(["--check"]) == 1
    assert draw_states.main([]) == 0
    assert draw_states.main(["--check"]) == 0


@pytest.mark.parametrize("spoil", ["change", "remove", "add"])
def test_the_check_notices(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw_states, "FOLDER", tmp_path)
    draw_states.main([])
    page = tmp_path / "command.md"
    match spoil:
        case "change":
            page.write_text(page.read_text().replace("NEW --> CONNECTING", "NEW --> RUNNING"))
        case "remove":
            page.unlink()
        case _:
            page = tmp_path / "stray.md"
            page.write_text("# Left over\n")
    assert draw_states.main(["--check"]) == 1
    assert str(page) in capsys.readouterr().out
    draw_states.main([])
    assert draw_states.main(["--check"]) == 0
