"""`protocol/tunnel_preamble.py`: wire protocol, section 5.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.tunnel_preamble import PreambleParser, TunnelStatus, TunnelTarget
from tests.strategies import in_pieces

targets = st.one_of(
    st.integers(1, 65535).map(lambda port: TunnelTarget(port=port)),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=25).map(
        lambda text: TunnelTarget(path=f"/{text}")
    ),
)


def parse(pieces: list[bytes]) -> tuple[TunnelTarget | TunnelStatus, bytes] | None:
    parser = PreambleParser()
    for position, piece in enumerate(pieces):
        read = parser.receive_bytes(piece)
        if read is not None:
            target, rest = read
            return target, rest + b"".join(pieces[position + 1 :])
    return None


def test_a_port_is_encoded_as_the_protocol_says() -> None:
    assert TunnelTarget(port=28123).encode() == bytes.fromhex("016ddb")


def test_a_path_is_encoded_behind_its_length() -> None:
    assert TunnelTarget(path="/a").encode() == b"\x02\x00\x02/a"


@given(target=targets, rest=st.binary(max_size=8), data=st.data())
def test_what_is_encoded_is_read_however_it_is_cut(target: TunnelTarget, rest: bytes, data: st.DataObject) -> None:
    assert parse(data.draw(in_pieces(target.encode() + rest))) == (target, rest)


@pytest.mark.parametrize(
    ("preamble", "status"),
    [
        (b"\x00", TunnelStatus.UNSUPPORTED_VERSION),
        (b"\x03\x00\x50", TunnelStatus.UNSUPPORTED_VERSION),
        (b"\x01\x00\x00", TunnelStatus.PORT_NOT_ALLOWED),
        (b"\x02\x00\x6c", TunnelStatus.REFUSED),
        (b"\x02\x00\x00", TunnelStatus.REFUSED),
        (b"\x02\x00\x01a", TunnelStatus.REFUSED),
        (b"\x02\x00\x02/\xff", TunnelStatus.REFUSED),
        (b"\x02\x00\x02/\x00", TunnelStatus.REFUSED),
    ],
)
def test_what_leads_nowhere_has_a_status(preamble: bytes, status: TunnelStatus) -> None:
    read = PreambleParser().receive_bytes(preamble)
    assert read is not None
    assert read[0] is status


@pytest.mark.parametrize("preamble", [b"", b"\x01", b"\x01\x00", b"\x02\x00\x05/abc"])
def test_a_preamble_that_is_not_whole_is_waited_for(preamble: bytes) -> None:
    assert PreambleParser().receive_bytes(preamble) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"port": 1, "path": "/a"},
        {"port": 0},
        {"port": 65536},
        {"path": "a"},
        {"path": "/\0"},
        {"path": "/" + 107 * "a"},
    ],
)
def test_an_impossible_target_is_refused_at_once(arguments: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match=r"port|path"):
        TunnelTarget(**arguments)  # type: ignore[arg-type]


def test_a_target_says_what_it_is() -> None:
    assert str(TunnelTarget(port=80)) == "port 80"
    assert str(TunnelTarget(path="/a")) == "the socket /a"
