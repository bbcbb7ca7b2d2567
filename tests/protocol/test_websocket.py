"""`protocol/websocket.py`: frames however they are cut, bounds, closing, silence (wire protocol, section 3.9)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.states import WebSocketState
from sandbox_aio.protocol.websocket import Closed, Opened, Refused, WebSocket, WebSocketEvent, WebSocketLimits
from tests.protocol.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    SMALL,
    TEXT,
    UPGRADE,
    close_payload,
    feed,
    frame,
    handshake,
    held,
    only_documented,
    open_client,
    open_one,
    open_server,
    sent,
)
from tests.strategies import almost_utf8, in_pieces, texts

ROLES = ["client", "server"]
both_roles = pytest.mark.parametrize("role", ROLES)
roles = st.sampled_from(ROLES)


def violation(code: int, reason: str) -> Closed:
    return Closed(code=code, reason=reason, violation=True)


# --- messages --------------------------------------------------------------------------------------------------------


@both_roles
@pytest.mark.parametrize("size", [0, 1, 125, 126, 4096, 65535, 65536, 100_000])
def test_messages_of_every_size_arrive_from_either_side(role: str, size: int) -> None:
    receiver = open_one(role)
    sender = open_one("server" if role == "client" else "client")
    sender.send_text("é" + "x" * size)
    sender.send_text(b"y" * size)
    stream = b"".join(sender.bytes_to_send())
    pieces = [stream[index : index + 30_000] for index in range(0, len(stream), 30_000)]
    assert feed(receiver, pieces) == ["é".encode() + b"x" * size, b"y" * size]
    assert held(receiver) == 0


@both_roles
def test_fragments_are_joined_around_control_frames_and_split_characters(role: str) -> None:
    websocket = open_one(role)
    masked = role == "server"
    stream = [
        frame(TEXT, b"a\xe2", fin=False, masked=masked),
        frame(PING, b"are you there", masked=masked),
        frame(CONTINUATION, b"\x82", fin=False, masked=masked),
        frame(CONTINUATION, b"", fin=False, masked=masked),
        frame(PONG, masked=masked),
        frame(CONTINUATION, b"\xac", masked=masked),
        frame(BINARY, b"", fin=False, masked=masked),
        frame(CONTINUATION, b"", masked=masked),
        frame(TEXT, b"next", masked=masked),
    ]
    assert feed(websocket, stream) == ["a€".encode(), b"", b"next"]
    assert sent(websocket) == [(PONG, b"are you there")]


@both_roles
@given(sizes=st.lists(st.sampled_from([0, 1, 125, 126, 4000, 5000, 9000]), max_size=5), room=st.integers(1, 6000))
def test_one_buffer_may_be_used_for_all_reads(role: str, sizes: list[int], room: int) -> None:
    """What is kept beyond a read was copied; messages are looked at before the next."""
    websocket = open_one(role)
    stream = b"".join(frame(TEXT, bytes((65 + n,)) * size, masked=role == "server") for n, size in enumerate(sizes))
    buffer = bytearray(room)
    seen = []
    for begin in range(0, len(stream), room):
        piece = stream[begin : begin + room]
        buffer[: len(piece)] = piece
        websocket.receive_bytes(memoryview(buffer)[: len(piece)], 1.0)
        seen += [bytes(event) for event in websocket.events() if isinstance(event, bytes | memoryview)]
        buffer[:] = b"\xff" * room
    assert seen == [bytes((65 + n,)) * size for n, size in enumerate(sizes)]


@given(
    roles,
    st.data(),
    st.lists(
        st.builds(
            frame,
            st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3, 11]),
            st.binary(max_size=10)
            | texts().map(str.encode)
            | st.sampled_from(
                [b"x" * 126, b"y" * 5000, b"z" * 9999, b"!" * 20_000, close_payload(1000), close_payload(999)]
            ),
            fin=st.booleans() | st.just(True),
            rsv=st.sampled_from([0] * 9 + [4]),
            masked=st.booleans(),
        ),
        max_size=8,
    ),
    st.binary(max_size=20),
)
def test_frames_cut_anywhere_mean_the_same(role: str, draw: st.DataObject, frames: list[bytes], tail: bytes) -> None:
    stream = b"".join(frames) + tail
    whole, cut = open_one(role, SMALL), open_one(role, SMALL)
    events = feed(whole, [stream])
    assert feed(cut, draw.draw(in_pieces(stream))) == events
    assert only_documented(events)
    assert cut.state is whole.state
    assert sent(cut) == sent(whole)
    assert held(cut) == held(whole)
    whole.receive_eof(2.0)
    assert only_documented(events + whole.events())
    assert whole.finished


@given(roles, st.binary(max_size=300), st.booleans())
@example("client", b"\x01\x00\x81\x00", False)
def test_any_bytes_at_all_give_only_documented_events(role: str, data: bytes, upgrading: bool) -> None:
    if upgrading:
        websocket = WebSocket.connect(host="box", target="/", limits=SMALL)
        data = data if len(data) % 2 else b"HTTP/1.1 101 Switching Protocols\r\n" + data
    else:
        websocket = open_one(role, SMALL)
    events = feed(websocket, [data])
    websocket.receive_eof(2.0)
    assert only_documented(events + websocket.events())
    assert websocket.finished
    assert websocket.deadline() is None


# --- the first bad frame is final ------------------------------------------------------------------------------------

CLIENT_SEES = [
    (frame(TEXT, b"x", masked=True), 1002, "client received unexpected masked frame"),
    (frame(TEXT, b"x", rsv=4), 1002, "Reserved bit set unexpectedly"),
    (frame(TEXT, b"x", rsv=1), 1002, "Reserved bit set unexpectedly"),
    (frame(3), 1002, "Invalid opcode 0x3"),
    (frame(CONTINUATION, b"x"), 1002, "unexpected CONTINUATION"),
    (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002, "expected CONTINUATION, got <Opcode.TEXT: 1>"),
    (frame(PING, fin=False), 1002, "Invalid attempt to fragment control frame"),
    (frame(PING, b"x" * 126), 1002, "a control frame is over 125 bytes"),
    (frame(CLOSE, b"x"), 1002, "CLOSE with 1 byte payload"),
    *[(frame(CLOSE, close_payload(code)), 1002, "CLOSE with invalid code") for code in (0, 999, 5000, 65535)],
    *[(frame(CLOSE, close_payload(code)), 1002, "remote CLOSE with local-only reason") for code in (1005, 1006, 1015)],
    *[(frame(CLOSE, close_payload(code)), 1002, "CLOSE with unknown reserved code") for code in (1004, 1016, 2999)],
    (frame(CLOSE, b"\x03\xe8\xff"), 1007, None),
    (frame(TEXT, b"\xff", fin=False), 1007, None),
    (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b""), 1007, None),
]


@pytest.mark.parametrize(("data", "code", "reason"), CLIENT_SEES, ids=lambda value: str(value)[:40])
def test_the_first_violation_is_said_once_and_then_nothing_is_read(data: bytes, code: int, reason: str | None) -> None:
    client = open_client()
    events = feed(client, [frame(TEXT, b"before") + data + frame(TEXT, b"after"), frame(TEXT, b"later")])
    assert events[0] == b"before"
    (closed,) = events[1:]
    assert isinstance(closed, Closed)
    assert closed.violation
    assert closed.code == code
    assert closed.reason == reason or reason is None
    assert client.state is WebSocketState.FAILED
    (opcode, payload) = sent(client)[0]
    assert (opcode, payload[:2]) == (CLOSE, code.to_bytes(2, "big"))


def test_a_server_refuses_what_is_not_masked() -> None:
    server = open_server()
    assert feed(server, [frame(TEXT, b"x")]) == [violation(1002, "server received unexpected unmasked frame")]
    assert feed(open_server(), [frame(TEXT, b"\xff", masked=True)])[0] == violation(
        1007, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )


@both_roles
def test_a_large_frame_in_pieces_may_be_the_bad_one(role: str) -> None:
    websocket = open_one(role)
    bad = frame(TEXT, b"x" * 9000, masked=role == "client")
    (event,) = feed(websocket, [bad[:5000], bad[5000:] + b"more"])
    assert isinstance(event, Closed)
    assert event.violation
    assert held(websocket) == 0


@both_roles
def test_a_failed_websocket_holds_nothing_and_never_grows(role: str) -> None:
    websocket = open_one(role)
    masked = role == "server"
    feed(websocket, [frame(TEXT, b"x" * 5000, fin=False, masked=masked), frame(3, masked=masked)])
    assert websocket.finished
    for _ in range(100):
        websocket.receive_bytes(b"x" * 1000, 2.0)
    websocket.receive_eof(3.0)
    assert held(websocket) == 0
    assert websocket.events() == []
    assert websocket.deadline() is None


def test_garbage_while_closing_is_a_violation_and_no_goodbye() -> None:
    client = open_client()
    client.close(1.0)
    assert feed(client, [frame(3)]) == [violation(1002, "Invalid opcode 0x3")]
    assert client.state is WebSocketState.FAILED


# --- bounds ----------------------------------------------------------------------------------------------------------


@both_roles
@pytest.mark.parametrize("size", [10_001, 2**40, 2**63, 2**64 - 1])
def test_a_message_over_the_bound_is_refused_by_its_header_alone(role: str, size: int) -> None:
    websocket = open_one(role, SMALL)
    masked = 0x80 if role == "server" else 0
    header = bytes((0x81, masked | 127)) + size.to_bytes(8, "big") + b"\0\0\0\0"
    assert feed(websocket, [header]) == [violation(1009, "a message is over 10000 bytes")]
    assert sent(websocket) == [(CLOSE, close_payload(1009, "a message is over 10000 bytes"))]


@both_roles
def test_fragments_may_not_add_up_to_more_than_the_bound(role: str) -> None:
    masked = role == "server"
    parts = [frame(TEXT, b"x" * 6000, fin=False, masked=masked), frame(CONTINUATION, b"x" * 4000, masked=masked)]
    assert feed(open_one(role, SMALL), parts) == [b"x" * 10_000]
    websocket = open_one(role, SMALL)
    more = frame(CONTINUATION, b"x" * 4001, masked=masked)
    assert feed(websocket, [parts[0], more]) == [violation(1009, "a message is over 10000 bytes")]


def test_a_control_frame_does_not_count_as_part_of_a_message() -> None:
    client = open_client(SMALL)
    stream = [frame(TEXT, b"x" * 10_000, fin=False), frame(PING, b"p" * 125), frame(CONTINUATION)]
    assert feed(client, stream) == [b"x" * 10_000]
    assert sent(client) == [(PONG, b"p" * 125)]


def test_endless_empty_fragments_take_no_memory() -> None:
    client = open_client(SMALL)
    feed(client, [frame(TEXT, fin=False), frame(CONTINUATION, fin=False) * 10_000])
    assert held(client) == 0
    assert feed(client, [frame(CONTINUATION, b"x")]) == [b"x"]


# --- pings -----------------------------------------------------------------------------------------------------------


@both_roles
def test_pings_are_answered_until_we_close(role: str) -> None:
    websocket = open_one(role)
    ping = frame(PING, b"1", masked=role == "server")
    feed(websocket, [ping])
    assert sent(websocket) == [(PONG, b"1")]
    websocket.close(1.0)
    feed(websocket, [ping])
    assert sent(websocket) == [(CLOSE, close_payload(1000))]


KEEPALIVE = WebSocketLimits(ping_interval=30.0, ping_timeout=60.0)


@pytest.mark.parametrize("answer", [frame(PONG), frame(TEXT, b"x"), b"\x81"], ids=["pong", "message", "one byte"])
def test_silence_brings_a_ping_and_any_byte_ends_it(answer: bytes) -> None:
    client = open_client(KEEPALIVE)
    assert client.deadline() == 30.0
    client.receive_timeout(29.9)
    assert sent(client) == []
    client.receive_timeout(30.0)
    assert sent(client) == [(PING, b"")]
    assert client.deadline() == 90.0
    feed(client, [answer], now=89.0)
    assert client.deadline() == 119.0
    client.receive_timeout(119.0)
    assert sent(client) == [(PING, b"")]


def test_a_peer_that_answers_no_ping_is_given_up() -> None:
    client = open_client(KEEPALIVE)
    client.receive_timeout(31.0)
    client.receive_timeout(90.9)
    assert client.events() == []
    client.receive_timeout(91.0)
    assert client.events() == [Closed(code=1006, reason="the peer answered no ping for 60 s", silent=True)]
    assert client.state is WebSocketState.FAILED
    assert client.deadline() is None


def test_silence_proves_nothing_while_nobody_reads() -> None:
    client = open_client(KEEPALIVE)
    client.receive_timeout(30.0)
    for now in (30.0, 40.0):
        client.pause_reading(now)
    client.receive_timeout(1000.0)
    assert (client.deadline(), client.events()) == (None, [])
    for now in (1000.0, 2000.0):
        client.resume_reading(now)
    assert client.deadline() == 1060.0


def test_without_an_interval_nothing_is_ever_due() -> None:
    client = open_client()
    assert client.deadline() is None
    client.receive_timeout(1e9)
    assert sent(client) == []


def test_a_server_begins_to_listen_for_silence_with_the_first_byte() -> None:
    server = open_server(KEEPALIVE)
    assert server.deadline() is None
    feed(server, [frame(TEXT, b"x", masked=True)], now=5.0)
    assert server.deadline() == 35.0


# --- closing ---------------------------------------------------------------------------------------------------------


@both_roles
@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999])
def test_a_close_is_answered_in_kind(role: str, code: int) -> None:
    websocket = open_one(role)
    goodbye = frame(CLOSE, close_payload(code, "bye é"), masked=role == "server")
    assert feed(websocket, [goodbye + b"ignored"]) == [Closed(code=code, reason="bye é")]
    assert sent(websocket) == [(CLOSE, close_payload(code, "bye é"))]
    assert websocket.state is WebSocketState.CLOSED
    assert websocket.finished
    assert held(websocket) == 0


def test_a_close_without_a_code_is_1005() -> None:
    client = open_client()
    assert feed(client, [frame(CLOSE)]) == [Closed(code=1005, reason="")]
    assert sent(client) == [(CLOSE, b"")]


@both_roles
def test_closing_goes_on_reading_until_the_answer(role: str) -> None:
    websocket = open_one(role)
    masked = role == "server"
    websocket.close(7.0, 1001, "away")
    assert sent(websocket) == [(CLOSE, close_payload(1001, "away"))]
    assert websocket.state is WebSocketState.CLOSING
    assert websocket.deadline() == 12.0
    late, answer = frame(TEXT, b"late", masked=masked), frame(CLOSE, close_payload(1001), masked=masked)
    assert feed(websocket, [late, answer]) == [b"late", Closed(code=1001, reason="")]
    assert sent(websocket) == []
    assert websocket.deadline() is None


def test_crossing_closes_end_both_sides() -> None:
    client, server = open_client(), open_server()
    client.close(1.0, 1000)
    server.close(1.0, 1001)
    to_server, to_client = client.bytes_to_send(), server.bytes_to_send()
    assert feed(client, to_client) == [Closed(code=1001, reason="")]
    assert feed(server, to_server) == [Closed(code=1000, reason="")]
    assert client.bytes_to_send() == server.bytes_to_send() == []
    assert client.state is server.state is WebSocketState.CLOSED


def test_a_close_that_is_never_answered_is_given_up() -> None:
    client = open_client()
    client.close(1.0)
    client.receive_timeout(5.9)
    assert client.events() == []
    client.receive_timeout(6.0)
    assert client.events() == [Closed(code=1006, reason="the peer did not answer the close frame")]


@pytest.mark.parametrize("closing", [False, True])
def test_the_end_of_the_stream_is_the_end(closing: bool) -> None:
    client = open_client()
    feed(client, [frame(TEXT, b"half")[:3]])
    if closing:
        client.close(1.0)
    client.receive_eof(2.0)
    client.receive_eof(3.0)
    assert client.events() == [Closed(code=1006, reason="the connection ended without a close frame")]
    assert client.state is WebSocketState.CLOSED
    assert held(client) == 0


def test_intents_in_the_wrong_state_are_refused_and_change_nothing() -> None:
    connecting = WebSocket.connect(host="box", target="/")
    closing, closed, failed = open_client(), open_client(), open_client()
    closing.close(1.0)
    closed.receive_eof(1.0)
    feed(failed, [frame(3)])
    for websocket in (connecting, closing, closed, failed):
        before = websocket.state
        websocket.bytes_to_send()
        with pytest.raises(LocalProtocolError, match=f"that is {before.value} sends no message"):
            websocket.send_text("x")
        with pytest.raises(LocalProtocolError, match=f"WebSocketState {before.name} does not allow CLOSE"):
            websocket.close(1.0)
        assert websocket.state is before
        assert websocket.bytes_to_send() == []


# --- the upgrade, as the connection sees it (the rest is in test_upgrade.py) ------------------------------------------


def test_frames_may_come_right_behind_the_upgrade() -> None:
    client = WebSocket.connect(host="box", target="/")
    stream = handshake(client) + frame(TEXT, b"x") + frame(CLOSE)[:1]
    assert feed(client, [stream]) == [Opened(), b"x"]
    assert held(client) == 1
    server = WebSocket.accept(headers=UPGRADE, trailing=frame(TEXT, b"y", masked=True))
    assert server.events() == [b"y"]


@given(st.data(), almost_utf8())
def test_an_upgrade_cut_anywhere_means_the_same(draw: st.DataObject, payload: bytes) -> None:
    client = WebSocket.connect(host="box", target="/")
    stream = handshake(client) + frame(BINARY, payload)
    assert feed(client, draw.draw(in_pieces(stream))) == [Opened(), payload]


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (b"SSH-2.0-OpenSSH_9.7\r\n", violation(1002, "the answer to the upgrade is not HTTP")),
        (b"HTTP/1.1 101\r\n\r\n", violation(1002, "the answer to the upgrade is no upgrade to a websocket")),
        (b"HTTP/1.1 204 No\r\nx: 0\r\n\r\n", Refused(status=204, headers=[(b"x", b"0")], body=b"")),
        (b"HTTP/1.1 403 No\r\n\r\nbe", Refused(status=403, headers=[], body=b"be")),
        (b"HTTP/1.1 101", Closed(code=1006, reason="the connection ended during the upgrade")),
        (b"", Closed(code=1006, reason="the connection ended during the upgrade")),
    ],
    ids=["not http", "not complete", "refused", "cut off in a refusal", "cut off in the head", "no answer"],
)
def test_an_upgrade_that_fails_ends_the_connection(answer: bytes, event: WebSocketEvent) -> None:
    client = WebSocket.connect(host="box", target="/")
    client.bytes_to_send()
    client.receive_bytes(answer, 1.0)
    client.receive_eof(2.0)
    assert client.events() == [event]
    assert client.state is WebSocketState.FAILED
    assert client.bytes_to_send() == []
    client.receive_bytes(b"more", 3.0)
    assert client.events() == []


@both_roles
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_binary_messages_of_every_size_arrive_from_either_side(role: str, size: int) -> None:
    receiver = open_one(role)
    sender = open_one("server" if role == "client" else "client")
    payload = bytes(index % 251 for index in range(size))
    sender.send_binary(payload)
    receiver.receive_bytes(b"".join(sender.bytes_to_send()), 1.0)
    assert [bytes(event) for event in receiver.events() if isinstance(event, bytes | memoryview)] == [payload]


def test_a_binary_message_needs_an_open_connection() -> None:
    with pytest.raises(LocalProtocolError, match="connecting"):
        WebSocket.connect(host="box", target="/").send_binary(b"x")
