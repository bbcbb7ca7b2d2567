"""`protocol/tunnel.py`: both ends of a tunnel's connection (wire protocol, section 5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.tunnel import (
    MAX_BATCH_BYTES,
    ClientTunnel,
    DaemonTunnel,
    DialRequested,
    StreamConnected,
    StreamRefused,
    TunnelClosed,
    TunnelEvent,
    TunnelOpened,
)
from sandbox_aio.protocol.tunnel_preamble import TunnelStatus, TunnelTarget
from sandbox_aio.protocol.websocket import WebSocket, WebSocketLimits
from sandbox_aio.protocol.yamux import HEADER
from sandbox_aio.protocol.yamux_events import (
    StreamData,
    StreamEnded,
    StreamReset,
    StreamWritable,
    YamuxLimits,
)
from tests.protocol.wire import BINARY, TEXT, frame, handshake, open_client, open_server

PORT = TunnelTarget(port=80)
LIMITS = YamuxLimits()


class Pair:
    """A client's end and a daemon's, joined."""

    def __init__(self, client_limits: YamuxLimits = LIMITS, daemon_limits: YamuxLimits = LIMITS) -> None:
        self.client = ClientTunnel(open_client(), client_limits)
        self.daemon = DaemonTunnel(open_server(), daemon_limits)
        self.now = 1.0

    def settle(self) -> tuple[list[TunnelEvent], list[TunnelEvent]]:
        """Move bytes until none are left, and return what either end says."""
        while True:
            up, down = b"".join(self.client.bytes_to_send()), b"".join(self.daemon.bytes_to_send())
            if not up and not down:
                return self.client.events(), self.daemon.events()
            self.daemon.receive_bytes(up, self.now)
            self.client.receive_bytes(down, self.now)

    def connect(self) -> int:
        """Open a stream that is connected on both sides."""
        stream_id = self.client.open_stream(PORT, self.now)
        self.settle()
        self.daemon.answer(stream_id, TunnelStatus.CONNECTED)
        self.settle()
        return stream_id


def test_a_tunnel_opens_with_its_websocket() -> None:
    websocket = WebSocket.connect(host="box", target="/tunnel")
    answer = handshake(websocket)
    tunnel = ClientTunnel(websocket, LIMITS)
    assert not tunnel.open
    with pytest.raises(LocalProtocolError):
        tunnel._websocket.send_binary(b"")
    tunnel.receive_bytes(answer, 0.0)
    assert tunnel.events() == [TunnelOpened()]
    assert tunnel.open


def test_a_refused_upgrade_is_told_with_the_answer() -> None:
    tunnel = ClientTunnel(WebSocket.connect(host="box", target="/tunnel"), LIMITS)
    tunnel.bytes_to_send()
    tunnel.receive_bytes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 0.0)
    (event,) = tunnel.events()
    assert isinstance(event, TunnelClosed)
    assert event.refused is not None
    assert (event.refused.status, event.refused.body) == (404, b"no")
    assert tunnel.finished


def test_a_stream_says_where_it_leads_and_hears_that_it_is_connected() -> None:
    pair = Pair()
    stream_id = pair.client.open_stream(PORT, pair.now)
    pair.client.send_data(stream_id, b"early")
    assert pair.settle() == ([], [DialRequested(stream_id, PORT), StreamData(stream_id, memoryview(b"early"))])
    pair.daemon.consume(stream_id, 5)
    pair.daemon.answer(stream_id, TunnelStatus.CONNECTED)
    pair.daemon.send_data(stream_id, b"hello")
    assert pair.settle() == ([StreamConnected(stream_id), StreamData(stream_id, memoryview(b"hello"))], [])
    pair.client.consume(stream_id, 5)


def test_the_first_bytes_may_come_with_the_status_or_with_the_preamble() -> None:
    client = ClientTunnel(open_client(), LIMITS)
    stream_id = client.open_stream(PORT, 0.0)
    client.receive_bytes(frame(BINARY, HEADER.pack(0, 0, 0, stream_id, 3) + b"\0ab"), 0.0)
    assert client.events() == [StreamConnected(stream_id), StreamData(stream_id, memoryview(b"ab"))]
    client.consume(stream_id, 2)
    daemon = DaemonTunnel(open_server(), LIMITS)
    daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 0, 1, 1, 2) + b"\1\0", masked=True), 0.0)
    assert daemon.events() == []
    daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 0, 0, 1, 3) + b"\x50hi", masked=True), 0.0)
    assert daemon.events() == [DialRequested(1, PORT), StreamData(1, memoryview(b"hi"))]
    daemon.consume(1, 2)


def test_both_ends_measure_how_far_the_other_is_with_their_first_stream() -> None:
    client, daemon = ClientTunnel(open_client(), LIMITS), DaemonTunnel(open_server(), LIMITS)
    client.open_stream(PORT, 1.0)
    daemon.receive_bytes(b"".join(client.bytes_to_send()), 1.2)
    client.receive_bytes(b"".join(daemon.bytes_to_send()), 1.4)
    daemon.receive_bytes(b"".join(client.bytes_to_send()), 1.7)
    assert client._session.round_trip == pytest.approx(0.4)
    assert daemon._session.round_trip == pytest.approx(0.5)
    client.open_stream(PORT, 2.0)
    daemon.receive_bytes(b"".join(client.bytes_to_send()), 2.2)
    assert HEADER.pack(0, 2, 1, 0, 2) not in b"".join(daemon.bytes_to_send())


def test_text_messages_count_as_their_bytes() -> None:
    daemon = DaemonTunnel(open_server(), LIMITS)
    daemon.receive_bytes(frame(TEXT, HEADER.pack(0, 0, 1, 1, 3) + b"\1\0\x50", masked=True), 0.0)
    assert daemon.events() == [DialRequested(1, PORT)]


@pytest.mark.parametrize("status", [s for s in TunnelStatus if s is not TunnelStatus.CONNECTED])
def test_a_refusal_ends_the_stream_on_both_sides(status: TunnelStatus) -> None:
    pair = Pair()
    stream_id = pair.client.open_stream(PORT, pair.now)
    pair.settle()
    pair.daemon.answer(stream_id, status)
    told, _ = pair.settle()
    assert told == [StreamRefused(stream_id, status)]
    assert pair.client.stream_ids == pair.daemon.stream_ids == []


def test_the_daemon_itself_refuses_a_version_that_it_does_not_know() -> None:
    daemon = DaemonTunnel(open_server(), LIMITS)
    daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 0, 1, 1, 3) + b"\x09\0\x50", masked=True), 0.0)
    assert daemon.events() == []
    assert HEADER.pack(0, 0, 0, 1, 1) + b"\3" in b"".join(daemon.bytes_to_send())


@pytest.mark.parametrize("flag", [4, 8])
def test_a_stream_that_ends_without_a_status_is_refused(flag: int) -> None:
    client = ClientTunnel(open_client(), LIMITS)
    stream_id = client.open_stream(PORT, 0.0)
    client.receive_bytes(frame(BINARY, HEADER.pack(0, 1, flag, stream_id, 0)), 0.0)
    assert client.events() == [StreamRefused(stream_id, None)]
    assert client.stream_ids == []


@pytest.mark.parametrize("flag", [4, 8])
def test_a_stream_that_ends_in_its_preamble_is_dropped(flag: int) -> None:
    daemon = DaemonTunnel(open_server(), LIMITS)
    daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 0, 1, 1, 2) + b"\1\0", masked=True), 0.0)
    daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 1, flag, 1, 0), masked=True), 0.0)
    assert daemon.events() == []
    assert daemon.stream_ids == []


def test_either_side_may_end_first_and_the_other_goes_on() -> None:
    pair = Pair()
    stream_id = pair.connect()
    pair.client.end_stream(stream_id)
    assert pair.settle() == ([], [StreamEnded(stream_id)])
    pair.daemon.send_data(stream_id, b"late")
    pair.daemon.end_stream(stream_id)
    told, _ = pair.settle()
    assert told == [StreamData(stream_id, memoryview(b"late")), StreamEnded(stream_id)]
    assert pair.client.stream_ids == pair.daemon.stream_ids == []


def test_a_reset_reaches_the_other_side() -> None:
    pair = Pair()
    stream_id = pair.connect()
    pair.daemon.reset_stream(stream_id)
    assert pair.settle() == ([StreamReset(stream_id)], [])
    stream_id = pair.connect()
    pair.client.reset_stream(stream_id)
    assert pair.settle() == ([], [StreamReset(stream_id)])


def test_a_used_up_window_opens_when_the_other_side_consumes() -> None:
    pair = Pair()
    stream_id = pair.connect()
    size = pair.client.send_window(stream_id)
    pair.client.send_data(stream_id, bytes(size))
    assert pair.client.send_window(stream_id) == 0
    _, told = pair.settle()
    assert sum(len(event.data) for event in told if isinstance(event, StreamData)) == size
    pair.daemon.consume(stream_id, size)
    assert pair.settle() == ([StreamWritable(stream_id)], [])


def test_a_client_sends_a_message_for_each_frame_and_a_daemon_as_few_as_it_can() -> None:
    pair = Pair()
    first, second = pair.connect(), pair.connect()
    pair.client.send_data(first, b"a")
    pair.client.send_data(second, b"b")
    assert len(pair.client.bytes_to_send()) == 4  # two headers and two payloads
    pair.daemon.send_data(first, bytes(200 * 1024))
    pair.daemon.send_data(second, bytes(200 * 1024))
    pieces = pair.daemon.bytes_to_send()
    assert len(pieces) == 4
    assert max(map(len, pieces)) <= MAX_BATCH_BYTES


def test_a_server_that_opens_a_stream_is_not_listened_to() -> None:
    client = ClientTunnel(open_client(), LIMITS)
    client.receive_bytes(frame(BINARY, HEADER.pack(0, 1, 1, 2, 0)), 0.0)
    assert client.events() == []
    assert client.stream_ids == []


def test_closing_says_go_away_and_then_1000() -> None:
    pair = Pair()
    stream_id = pair.connect()
    pair.client.close(pair.now)
    pair.client.close(pair.now)
    told, heard = pair.settle()
    assert told == [StreamReset(stream_id), TunnelClosed(reason="the tunnel was closed")]
    assert heard == [StreamReset(stream_id), TunnelClosed(reason="the websocket was closed with code 1000")]
    assert pair.client.finished
    assert pair.daemon.finished


def test_a_daemon_that_shuts_down_says_why() -> None:
    pair = Pair()
    pair.daemon.close(pair.now, 1001, "shutting down")
    told, _ = pair.settle()
    assert told == [TunnelClosed(reason="shutting down")]


def test_a_lost_transport_resets_every_stream() -> None:
    pair = Pair()
    stream_id = pair.connect()
    asking = pair.client.open_stream(PORT, pair.now)
    for end in (pair.client, pair.daemon):
        end.receive_eof(pair.now)
    reason = "the connection ended without a close frame"
    closed = TunnelClosed(reason=reason)
    assert pair.client.events() == [StreamReset(stream_id), StreamRefused(asking, None), closed]
    assert pair.daemon.events() == [StreamReset(stream_id), closed]
    assert pair.client.bytes_to_send() == pair.daemon.bytes_to_send() == []


def test_a_violation_is_answered_by_go_away_and_closes_the_websocket() -> None:
    pair = Pair()
    pair.daemon.receive_bytes(frame(BINARY, b"\x01" + bytes(11), masked=True), pair.now)
    assert pair.daemon.events() == [TunnelClosed(reason="a frame has version 1, not 0")]
    out = b"".join(pair.daemon.bytes_to_send())
    assert HEADER.pack(0, 3, 0, 0, 1) in out
    assert b"\x03\xea" in out  # 1002
    assert not pair.daemon.open


def test_a_peer_that_answers_no_ping_is_given_up() -> None:
    pair = Pair(YamuxLimits(ping_interval=30.0, ping_timeout=10.0))
    pair.connect()
    deadline = pair.client.deadline()
    assert deadline == 31.0
    pair.client.receive_timeout(30.0)
    assert pair.client.bytes_to_send() == []
    pair.client.receive_timeout(31.0)
    assert pair.client.deadline() == 41.0
    pair.client.receive_timeout(41.0)
    assert TunnelClosed(reason="the peer answered no ping for 10 s") in pair.client.events()
    assert not pair.client.open


def test_pings_are_answered_and_told_to_nobody() -> None:
    pair = Pair(YamuxLimits(ping_interval=30.0))
    pair.connect()
    pair.now = 31.0
    pair.client.receive_timeout(31.0)
    assert pair.settle() == ([], [])
    assert pair.client.deadline() == 61.0


def test_the_other_side_may_leave_without_closing() -> None:
    pair = Pair()
    stream_id = pair.connect()
    leaving = frame(BINARY, HEADER.pack(0, 3, 0, 0, 0))
    pair.client.receive_bytes(leaving, pair.now)
    pair.daemon.receive_bytes(frame(BINARY, HEADER.pack(0, 3, 0, 0, 0), masked=True), pair.now)
    assert pair.settle() == ([], [])
    assert pair.client.stream_ids == [stream_id]
    with pytest.raises(LocalProtocolError):
        pair.client.open_stream(PORT, pair.now)


def test_a_connection_that_takes_no_more_streams_is_closed_with_its_last_one() -> None:
    pair = Pair()
    stream_id = pair.connect()
    pair.client.receive_bytes(frame(BINARY, HEADER.pack(0, 3, 0, 0, 0)), pair.now)
    pair.client.end_stream(stream_id)
    pair.settle()
    assert pair.client.open
    pair.daemon.end_stream(stream_id)
    told, heard = pair.settle()
    reason = "the other side accepts no further streams"
    assert told == [StreamEnded(stream_id), TunnelClosed(reason=reason)]
    assert heard == [TunnelClosed(reason=reason)]
    assert pair.client.finished


def test_a_message_over_the_limit_is_refused_by_the_websocket() -> None:
    limits = WebSocketLimits(max_message_bytes=1000)
    client = ClientTunnel(open_client(limits), LIMITS)
    client.receive_bytes(frame(BINARY, bytes(1001)), 0.0)
    assert client.events() == [TunnelClosed(reason="a message is over 1000 bytes")]


def test_nothing_is_due_before_anything_was_heard() -> None:
    assert ClientTunnel(open_client(), LIMITS).deadline() is None


SYN, FIN, RST = 1, 4, 8


def stream_frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, len(payload) if kind == 0 else 0) + payload


@pytest.mark.parametrize(
    "opening",
    [
        stream_frame(1, SYN, 1),
        stream_frame(0, SYN, 1, b"\1\0"),
        stream_frame(0, SYN, 1, b"\1\0") + stream_frame(1, FIN, 1),
        stream_frame(0, SYN, 1, b"\x09\0\x50"),
    ],
)
@pytest.mark.parametrize("end", [stream_frame(1, RST, 1), HEADER.pack(1, 0, 0, 0, 0)])
def test_what_is_broken_off_as_it_begins_is_never_dialled(opening: bytes, end: bytes) -> None:
    daemon = DaemonTunnel(open_server(), LIMITS)
    daemon.receive_bytes(frame(BINARY, opening + end, masked=True), 0.0)
    assert not [event for event in daemon.events() if not isinstance(event, StreamReset | TunnelClosed)]
    assert daemon.stream_ids == []


def test_a_server_that_opens_a_stream_and_breaks_it_off_is_not_listened_to() -> None:
    client = ClientTunnel(open_client(), LIMITS)
    client.receive_bytes(frame(BINARY, stream_frame(0, SYN, 2, b"x") + stream_frame(1, RST, 2)), 0.0)
    assert client.events() == []


@pytest.mark.parametrize("flag", [FIN, RST])
def test_a_refusal_is_said_once_however_the_stream_ends(flag: int) -> None:
    client = ClientTunnel(open_client(), LIMITS)
    stream_id = client.open_stream(PORT, 0.0)
    refusal = stream_frame(0, 0, stream_id, b"\2more") + stream_frame(1, flag, stream_id)
    client.receive_bytes(frame(BINARY, refusal), 0.0)
    assert client.events() == [StreamRefused(stream_id, 2)]
    assert client.stream_ids == []


FRAMES = st.one_of(
    st.binary(max_size=30),
    st.builds(
        stream_frame,
        st.integers(0, 3),
        st.sampled_from([0, 0, SYN, 2, FIN, RST, SYN | FIN, SYN | RST, SYN | 2]),
        st.integers(0, 6),
        st.sampled_from([b"", b"\0", b"\1\0\x50", b"\1\0", b"\x50", b"\2\0\2/x", b"\x09", b"\2"]),
    ),
)


@given(batches=st.lists(st.lists(FRAMES, max_size=8), max_size=8))
def test_whatever_a_peer_sends_neither_end_raises(batches: list[list[bytes]]) -> None:
    daemon, client = DaemonTunnel(open_server(), LIMITS), ClientTunnel(open_client(), LIMITS)
    for batch in batches:
        if client.open:
            client.open_stream(PORT, 0.0)
        daemon.receive_bytes(frame(BINARY, b"".join(batch), masked=True), 0.0)
        client.receive_bytes(frame(BINARY, b"".join(batch)), 0.0)
        for end in (daemon, client):
            events = end.events()
            assert not [event for event in events[:-1] if isinstance(event, TunnelClosed)]
            end.bytes_to_send()
