"""`protocol/codec.py`, with and without msgspec: round trips, and nothing but `CodecError` for what is no frame."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_aio.protocol import codec, codec_msgspec
from sandbox_aio.protocol.frames import (
    LARGEST_INTEGER,
    UNKNOWN_OFFSET,
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
from tests.strategies import OFFSETS, client_frames, server_frames, texts, wild_texts

if TYPE_CHECKING:
    from types import ModuleType

    from sandbox_aio.protocol.frames import ClientFrame, ServerFrame


def _load_without_msgspec() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sandbox_aio.protocol.codec_without_msgspec", codec.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    hidden = codec_msgspec.__name__
    sys.modules[hidden] = None  # type: ignore[assignment]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules[hidden] = codec_msgspec
    return module


plain = _load_without_msgspec()
both = pytest.mark.parametrize("module", [codec, plain], ids=["msgspec", "stdlib"])


def outcome(module: ModuleType, payload: bytes) -> ServerFrame | str | None:
    """What a payload is read as: a frame, None, or "not a frame"."""
    try:
        frame: ServerFrame | None = module.decode_server_frame(payload)
    except ValueError as exc:
        assert type(exc) is module.CodecError
        return "not a frame"
    return frame


def slow_outcome(payload: bytes) -> ServerFrame | str | None:
    """The same, by the general path, which is on json.loads."""
    try:
        return codec._decode_server_slowly(payload)
    except codec.CodecError:
        return "not a frame"


# --- round trips -----------------------------------------------------------------------------------------------------


@given(client_frames())
def test_client_frames_come_back_as_they_were(frame: ClientFrame) -> None:
    assert codec.decode_client_frame(codec.encode_client_frame(frame).encode()) == frame


@both
@given(frame=server_frames())
def test_server_frames_come_back_as_they_were(module: ModuleType, frame: ServerFrame) -> None:
    payload = module.encode_server_frame(frame)
    assert module.decode_server_frame(payload) == frame
    assert json.loads(payload)["type"] in {"stdout", "stderr", "started", "exit", "error"}


@given(st.sampled_from(["stdout", "stderr"]), texts(), OFFSETS)
def test_output_is_the_same_json_with_and_without_msgspec(stream: Any, text: str, offset: int) -> None:
    expected = {"type": stream, "data": text, "offset": offset}
    for module in (codec, plain):
        assert json.loads(module.encode_output(stream, text.encode(), offset)) == expected


def test_a_started_without_a_pid_says_zero() -> None:
    assert codec.encode_server_frame(Started(command_id="c", pid=None)) == (
        b'{"type":"started","command_id":"c","pid":0}'
    )


def test_an_execute_leaves_out_what_is_empty() -> None:
    assert json.loads(codec.encode_client_frame(Execute(command="true", command_id="c"))) == {
        "type": "execute",
        "command": "true",
        "timeout_seconds": 60,
        "shell": "/bin/bash",
        "idle_timeout_seconds": 300,
        "kill_on_disconnect": False,
        "ttl_seconds": 600,
        "command_id": "c",
    }


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Input(data="é\n"), '{"type":"input","data":"\\u00e9\\n"}'),
        (CloseStdin(), '{"type":"close_stdin"}'),
        (Kill(), '{"type":"kill"}'),
        (Resize(cols=80, rows=24), '{"type":"resize","cols":80,"rows":24}'),
        (
            Reconnect(command_id="c", stdout_offset=5),
            '{"type":"reconnect","command_id":"c","stdout_offset":5,"stderr_offset":0}',
        ),
    ],
)
def test_what_a_client_says_on_the_wire(frame: ClientFrame, text: str) -> None:
    assert codec.encode_client_frame(frame) == text


# --- what a daemon may send ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("payload", "frame"),
    [
        (b'{"type":"stdout","data":"x"}', Output("stdout", "x", UNKNOWN_OFFSET)),
        (b'{"type":"stdout","data":"x","offset":null}', Output("stdout", "x", UNKNOWN_OFFSET)),
        (b'{"type":"stdout","data":"x","offset":-1}', Output("stdout", "x", UNKNOWN_OFFSET)),
        (b'{"type":"stdout","data":"x","offset":5,"new":[1]}', Output("stdout", "x", 5)),
        (b' {"offset": 7, "data": "\\u00e9", "type": "stderr"}\n', Output("stderr", "é", 7)),
        (b'{"type":"stdout","data":"\\ud83d\\ude00","offset":0}', Output("stdout", "😀", 0)),
        (b'{"type":"stdout","data":"\\uD83d\\uDE00\\ud800","offset":0}', Output("stdout", "😀\ufffd", 0)),
        (b'{"type":"stdout","data":"","offset":%d}' % LARGEST_INTEGER, Output("stdout", "", LARGEST_INTEGER)),
        (b'{"type":"started","command_id":"c","pid":7}', Started(command_id="c", pid=7)),
        (b'{"type":"started","command_id":"c","pid":"7"}', Started(command_id="c", pid=None)),
        (b'{"type":"started","command_id":"c"}', Started(command_id="c", pid=None)),
        (b'{"type":"exit","exit_code":-9}', Exit(exit_code=-9)),
        (b'{"type":"error"}', ErrorReply(error="the daemon gave no reason", error_type="CommandError")),
        (
            b'{"type":"error","error":"no\\udfff","error_type":""}',
            ErrorReply(error="no\ufffd", error_type="CommandError"),
        ),
        (
            b'{"type":"error","error":"late","error_type":"CommandTimeout"}',
            ErrorReply(error="late", error_type="CommandTimeout"),
        ),
        (
            b'{"type":"error","error":5,"error_type":5}',
            ErrorReply(error="the daemon gave no reason", error_type="CommandError"),
        ),
        (b'{"type":"ack_required","x":1}', None),
    ],
)
def test_what_is_understood(module: ModuleType, payload: bytes, frame: ServerFrame | None) -> None:
    assert module.decode_server_frame(payload) == frame


DEEP = b"[" * 100_000
HUGE = b"9" * 30
BAD_OUTPUTS = [
    b'{"type":"stdout","data":"x","offset":05}',
    b'{"type":"stdout","data":"x","offset":1.0}',
    b'{"type":"stdout","data":"x","offset":1e3}',
    b'{"type":"stdout","data":"x","offset":true}',
    b'{"type":"stdout","data":"x","offset":"5"}',
    b'{"type":"stdout","data":"x","offset":NaN}',
    b'{"type":"stdout","data":"x","offset":-2}',
    b'{"type":"stdout","data":"x","offset":%b}' % HUGE,
    b'{"type":"stdout","data":"x","offset":%b}' % (b"9" * 5000),
    b'{"type":"stdout","data":"x","offset":-%b}' % HUGE,
    b'{"type":"stdout","data":5,"offset":0}',
    b'{"type":"stdout","offset":0}',
    b'{"type":"stdout","data":"\xff","offset":0}',
    b'{"type":"stdout","data":"x","offset":0,"z":"\xff"}',
    b'{"type":"stdout","data":"x","offset":0,"z":%b}' % DEEP,
    b'{"z":%b,"type":"stdout"' % DEEP,
    b'{"type":"stderr","data":"a\x01","offset":0}',
    b'{"type":"stderr","data":"a","offset":0',
    b'{"type":"stderr","data":"a","offset":0}}',
    b'{"type":"stderr","data":"a","offset":0]',
    b'{"type":"stderr","data":"a","offset":}',
    b'{"type":"stderr","data":"a"',
    b'{"type":"stderr","data":"',
]


@both
@pytest.mark.parametrize(
    "payload",
    [
        *BAD_OUTPUTS,
        *[b"", b"x", b"[]", b"5", b'"stdout"', b"null", b"{}", b'{"type":5}', b'{"type":null}', b"\xff\xfe", DEEP],
        b'{"type":"started"}',
        b'{"type":"started","command_id":5}',
        b'{"type":"exit"}',
        b'{"type":"exit","exit_code":"0"}',
        b'{"type":"exit","exit_code":true}',
        b'{"type":"exit","exit_code":0.0}',
        b'{"type":"exit","exit_code":%b}' % HUGE,
    ],
    ids=lambda payload: repr(payload[:50]),
)
def test_what_is_no_frame_of_a_daemon(module: ModuleType, payload: bytes) -> None:
    with pytest.raises(module.CodecError) as caught:
        module.decode_server_frame(payload)
    assert len(str(caught.value)) < 600


_VALUES: st.SearchStrategy[Any] = (
    st.sampled_from(["stdout", "stderr", "started", "exit", "error", "c", "", None, True, float("nan"), 1.0, [], {}])
    | wild_texts()
    | st.integers(-2, 2**65)
)
_MEMBERS = st.sampled_from(["type", "data", "offset", "command_id", "pid", "exit_code", "error", "error_type", "z"])


@st.composite
def nearly_frames(draw: st.DrawFn) -> bytes:
    """JSON much like a frame, its members of any kind and in any order, sometimes with one byte changed."""
    members: dict[str, Any] = draw(st.dictionaries(_MEMBERS, _VALUES, max_size=5))
    if draw(st.booleans()):
        members = {
            "type": draw(st.sampled_from(["stdout", "stderr"])),
            "data": draw(wild_texts()),
            "offset": 5,
        } | members
    tight = draw(st.booleans())
    text = json.dumps(members, ensure_ascii=draw(st.booleans()), separators=(",", ":") if tight else None)
    payload = bytearray(text.encode("utf-8", "surrogatepass"))
    if draw(st.booleans()):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return bytes(payload)


@given(nearly_frames() | st.binary(max_size=40))
@example(b'{"type":"stdout","data":"x","offset":1,"type":"stderr"}')
@example(b'{"type":"stdout","data":"x","offset":1,"type":"exit"}')
@example(b'{"type":"stdout","data":"x","data":"y","offset":1,"offset":2}')
@example('{"type":"stdout","data":"x","offset":1}'.encode("utf-16"))
def test_all_ways_to_read_a_daemon_agree_on_any_payload(payload: bytes) -> None:
    assert outcome(codec, payload) == outcome(plain, payload) == slow_outcome(payload)


# --- what a client may send ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "frame"),
    [
        (b'{"type":"execute"}', Execute(command=None, command_id=None)),
        (b'{"type":"execute","command":null,"env":null,"pty":true}', Execute(command=None, command_id=None, pty=True)),
        (
            b'{"type":"execute","command":"\\ud800","env":{"A":"b"},"new":1,"timeout_seconds":1.5}',
            Execute(command="\ufffd", command_id=None, env={"A": "b"}, timeout_seconds=1.5),
        ),
        (b'{"type":"reconnect","command_id":"c"}', Reconnect(command_id="c")),
        (b'{"type":"ssh_agent_close","channel_id":1}', None),
    ],
)
def test_what_a_daemon_understands(payload: bytes, frame: ClientFrame | None) -> None:
    assert codec.decode_client_frame(payload) == frame


@pytest.mark.parametrize(
    "payload",
    [
        *[b"", b"[]", b"{}", b'{"type":[]}', b"\xff", DEEP],
        b'{"type":"reconnect"}',
        b'{"type":"reconnect","command_id":null}',
        b'{"type":"reconnect","command_id":"c","stdout_offset":"0"}',
        b'{"type":"reconnect","command_id":"c","stdout_offset":%b}' % HUGE,
        b'{"type":"input"}',
        b'{"type":"input","data":["x"]}',
        b'{"type":"resize","cols":80}',
        b'{"type":"resize","cols":true,"rows":24}',
        b'{"type":"execute","command":["true"]}',
        b'{"type":"execute","timeout_seconds":NaN}',
        b'{"type":"execute","timeout_seconds":Infinity}',
        b'{"type":"execute","timeout_seconds":1e300}',
        b'{"type":"execute","timeout_seconds":%b}' % HUGE,
        b'{"type":"execute","timeout_seconds":"60"}',
        b'{"type":"execute","kill_on_disconnect":1}',
        b'{"type":"execute","env":["A=b"]}',
        b'{"type":"execute","env":"A"}',
        b'{"type":"execute","env":{"A":1}}',
        b'{"type":"execute","run_config":5}',
        b'{"type":"execute","run_config":%b}' % DEEP,
    ],
    ids=lambda payload: repr(payload[:60]),
)
def test_what_is_no_frame_of_a_client(payload: bytes) -> None:
    with pytest.raises(codec.CodecError) as caught:
        codec.decode_client_frame(payload)
    assert len(str(caught.value)) < 600


_CLIENT_TYPES = st.sampled_from(["execute", "reconnect", "input", "close_stdin", "kill", "resize"])
_CLIENT_MEMBERS = st.sampled_from(
    "command command_id env run_config timeout_seconds pty data cols rows stdout_offset cwd shell".split()
)


@given(st.binary(max_size=40) | nearly_frames())
def test_a_daemon_meets_garbage_with_codec_errors_only(payload: bytes) -> None:
    try:
        codec.decode_client_frame(payload)
    except ValueError as exc:
        assert type(exc) is codec.CodecError


@given(_CLIENT_TYPES, st.dictionaries(_CLIENT_MEMBERS, _VALUES | st.dictionaries(texts(), _VALUES), max_size=6))
def test_whatever_a_daemon_takes_for_a_frame_can_be_sent_again(kind: str, members: dict[str, Any]) -> None:
    payload = json.dumps({"type": kind, **members}).encode()
    try:
        frame = codec.decode_client_frame(payload)
    except codec.CodecError:
        return
    assert frame is not None
    assert codec.decode_client_frame(codec.encode_client_frame(frame).encode()) is not None
