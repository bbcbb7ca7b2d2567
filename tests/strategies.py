"""What Hypothesis draws in more than one room: text as it really comes, bytes cut anywhere, frames of the protocol."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from sandbox_aio.protocol.frames import (
    CloseStdin,
    ErrorReply,
    Execute,
    Exit,
    Input,
    Kill,
    Output,
    Reconnect,
    Resize,
    Started,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox_aio.protocol.frames import ClientFrame, ServerFrame

AWKWARD = 'a\n\x00\x1b"\\/é€𝄞\ufeff\u2028\ufffd\x7f'
"""Characters of one to four bytes, and those that JSON or a terminal treats in a way of its own."""


def texts(*, min_size: int = 0, max_size: int | None = 40) -> st.SearchStrategy[str]:
    """Text that UTF-8 can carry, with many characters of more than one byte."""
    anything = st.characters(codec="utf-8")
    return st.text(st.sampled_from(AWKWARD) | anything, min_size=min_size, max_size=max_size)


def wild_texts() -> st.SearchStrategy[str]:
    """Text that may hold lone surrogates, which JSON can carry and UTF-8 cannot."""
    return st.text(st.sampled_from("ab\ud800\udfffé𝄞"), max_size=20)


def almost_utf8() -> st.SearchStrategy[bytes]:
    """Bytes that are mostly UTF-8: characters, beginnings of characters, stray bytes."""
    piece = st.sampled_from(
        [b"a", "é".encode(), "€".encode(), "𝄞".encode(), b"\xf0\x9d\x84", b"\xe2\x82", b"\xc3", b"\xed\xa0\x80"]
    )
    return st.lists(piece | st.binary(max_size=3), max_size=20).map(b"".join)


def cut_at(data: bytes, points: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces, none empty, cut at these points, which are taken modulo its length."""
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[begin:end] for begin, end in pairwise(edges)]


def cuts() -> st.SearchStrategy[list[int]]:
    """Points for `cut_at`: anywhere, often near the beginning, where the headers are."""
    return st.lists(st.integers(0, 40) | st.integers(0, 1 << 17), max_size=12)


def in_pieces(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The same bytes, cut anywhere: whole, in pieces, byte by byte."""
    whole = st.just([data] if data else [])
    return whole | cuts().map(lambda points: cut_at(data, points)) | st.just([bytes((byte,)) for byte in data])


SECONDS = st.sampled_from([-1, 0, 1, 0.5, 60, 86400]) | st.integers(0, 2**53)
OFFSETS = st.sampled_from([0, 1, 2**31, 2**53]) | st.integers(0, 2**63 - 1)
_NAMES = texts(min_size=1, max_size=8)
_JSON = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts(max_size=8)


def executes() -> st.SearchStrategy[Execute]:
    """An `Execute` with any combination of its members."""
    return st.builds(
        Execute,
        command=st.none() | texts(),
        command_id=st.none() | texts(min_size=1),
        timeout_seconds=SECONDS,
        shell=texts(),
        idle_timeout_seconds=SECONDS,
        kill_on_disconnect=st.booleans(),
        ttl_seconds=SECONDS,
        env=st.dictionaries(_NAMES, texts(), max_size=3),
        cwd=st.none() | texts(min_size=1),
        run_config=st.none() | st.dictionaries(_NAMES, _JSON, min_size=1, max_size=3),
        close_stdin=st.booleans(),
        pty=st.booleans(),
    )


def client_frames() -> st.SearchStrategy[ClientFrame]:
    """Everything that a client says."""
    return (
        executes()
        | st.builds(Reconnect, command_id=texts(), stdout_offset=OFFSETS, stderr_offset=OFFSETS)
        | st.builds(Input, data=texts())
        | st.builds(Resize, cols=st.integers(-1, 2**31), rows=st.integers(-1, 2**31))
        | st.sampled_from([CloseStdin(), Kill()])
    )


def outputs() -> st.SearchStrategy[Output]:
    """A chunk of output."""
    return st.builds(Output, stream=st.sampled_from(["stdout", "stderr"]), data=texts(), offset=OFFSETS)


def server_frames() -> st.SearchStrategy[ServerFrame]:
    """Everything that a daemon says."""
    return (
        outputs()
        | st.builds(Started, command_id=texts(), pid=st.integers(0, 2**31))
        | st.builds(Exit, exit_code=st.integers(-(2**31), 2**31))
        | st.builds(ErrorReply, error=texts(), error_type=texts(min_size=1))
    )
