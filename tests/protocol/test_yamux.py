"""`protocol/yamux.py`: wire protocol, sections 5.2 and 5.3."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.yamux import GO_AWAY_PROTOCOL_ERROR, HEADER, MAX_SKIPPED_IDS, Yamux
from sandbox_aio.protocol.yamux_events import (
    INITIAL_WINDOW,
    PeerLeaving,
    PingAnswered,
    SessionEnded,
    StreamAccepted,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
    YamuxEvent,
    YamuxLimits,
)
from sandbox_aio.protocol.yamux_states import YamuxSessionState
from tests.strategies import in_pieces

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
MIB = 2**20


def packet(kind: int, flags: int, stream_id: int, value: int, payload: bytes = b"", version: int = 0) -> bytes:
    return HEADER.pack(version, kind, flags, stream_id, value) + payload


def data_frame(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return packet(DATA, flags, stream_id, len(payload), payload)


def server(**limits: Any) -> Yamux:
    return Yamux(client=False, limits=YamuxLimits(**limits))


def client(**limits: Any) -> Yamux:
    return Yamux(client=True, limits=YamuxLimits(**limits))


def sent(session: Yamux) -> list[tuple[int, int, int, int]]:
    """What is queued: type, flags, stream and value of each frame, without payloads."""
    return [HEADER.unpack_from(item)[1:] for item in session.bytes_to_send()]


def told(session: Yamux) -> list[YamuxEvent]:
    return session.events()


def opened_by_peer(session: Yamux, stream_id: int = 1) -> int:
    session.receive_bytes(packet(WINDOW, SYN, stream_id, 0), 0.0)
    session.accept_stream(stream_id)
    session.events()
    session.bytes_to_send()
    return stream_id


# --- opening ---------------------------------------------------------------------------------------------------------


def test_streams_are_numbered_by_role_and_opened_by_a_window_update() -> None:
    for session, first in ((client(), 1), (server(), 2)):
        assert [session.open_stream(), session.open_stream()] == [first, first + 2]
        assert sent(session) == [(WINDOW, SYN, first, 0), (WINDOW, SYN, first + 2, 0)]
        assert session.stream_ids == [first, first + 2]
        assert session.has_stream(first)
        assert not session.has_stream(first + 4)


def test_a_larger_window_is_told_with_the_syn_and_with_the_ack() -> None:
    one = client(window=MIB)
    one.open_stream()
    assert sent(one) == [(WINDOW, SYN, 1, MIB - INITIAL_WINDOW)]
    other = server(window=2 * MIB)
    other.receive_bytes(packet(WINDOW, SYN, 1, MIB - INITIAL_WINDOW), 0.0)
    assert told(other) == [StreamOpened(1)]
    assert other.send_window(1) == MIB
    other.accept_stream(1)
    assert sent(other) == [(WINDOW, ACK, 1, 2 * MIB - INITIAL_WINDOW)]


def test_a_stream_may_be_opened_by_its_first_data() -> None:
    session = server()
    session.receive_bytes(data_frame(1, b"hi", SYN), 0.0)
    assert told(session) == [StreamOpened(1), StreamData(1, memoryview(b"hi"))]


def test_an_acknowledgement_is_told() -> None:
    session = client()
    session.open_stream()
    session.receive_bytes(packet(WINDOW, ACK, 1, 0), 0.0)
    assert told(session) == [StreamAccepted(1)]


def test_an_acknowledgement_comes_once_or_not_at_all() -> None:
    session = client()
    session.open_stream()
    session.receive_bytes(data_frame(1, b"x") + packet(WINDOW, ACK, 1, 0) * 2, 0.0)
    ended = told(session)[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.violation


def test_the_peer_may_open_streams_in_another_order_within_bounds() -> None:
    session = server()
    session.receive_bytes(packet(WINDOW, SYN, 5, 0) + packet(WINDOW, SYN, 1, 0) + packet(WINDOW, SYN, 3, 0), 0.0)
    assert told(session) == [StreamOpened(5), StreamOpened(1), StreamOpened(3)]
    far = 7 + 2 * MAX_SKIPPED_IDS
    session.receive_bytes(packet(WINDOW, SYN, far + 2, 0) + packet(WINDOW, SYN, far - 2, 0), 0.0)
    assert told(session) == [StreamOpened(far + 2), StreamOpened(far - 2)]
    session.receive_bytes(packet(WINDOW, SYN, far, 0), 0.0)  # one more than are remembered
    ended = told(session)[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.violation


def test_only_a_stream_of_the_peer_is_accepted_and_only_once() -> None:
    session = server()
    opened_by_peer(session)
    with pytest.raises(LocalProtocolError, match="already"):
        session.accept_stream(1)
    with pytest.raises(LocalProtocolError, match="no stream 3"):
        session.accept_stream(3)


def test_there_are_only_so_many_streams() -> None:
    session = client(max_streams=2)
    session.open_stream()
    session.open_stream()
    with pytest.raises(LocalProtocolError, match="2 streams"):
        session.open_stream()
    session.reset_stream(1)
    assert session.open_stream() == 5


def test_the_peers_streams_beyond_the_bounds_are_reset() -> None:
    full = server(max_streams=1)
    opened_by_peer(full, 1)
    full.receive_bytes(packet(WINDOW, SYN, 3, 0) + data_frame(3, b"lost"), 0.0)
    assert (told(full), sent(full)) == ([], [(WINDOW, RST, 3, 0)])
    busy = server(backlog=1)
    busy.receive_bytes(packet(WINDOW, SYN, 1, 0) + packet(WINDOW, SYN, 3, 0), 0.0)
    assert sent(busy) == [(WINDOW, RST, 3, 0)]
    busy.accept_stream(1)
    busy.receive_bytes(packet(WINDOW, SYN, 5, 0), 0.0)
    busy.reset_stream(5)
    busy.receive_bytes(packet(WINDOW, SYN, 7, 0), 0.0)
    assert busy.stream_ids == [1, 7]


def test_ids_are_not_used_again() -> None:
    session = client()
    session._next_id = 2**32 - 1
    assert session.open_stream() == 2**32 - 1
    with pytest.raises(LocalProtocolError, match="ids"):
        session.open_stream()


# --- data and windows ------------------------------------------------------------------------------------------------


def test_data_is_cut_into_frames_and_counted_against_the_window() -> None:
    session = client(max_frame_bytes=10)
    session.open_stream()
    session.bytes_to_send()
    session.send_data(1, b"x" * 25)
    assert sent(session) == [(DATA, 0, 1, 10), (DATA, 0, 1, 10), (DATA, 0, 1, 5)]
    assert session.send_window(1) == INITIAL_WINDOW - 25


def test_more_than_the_window_is_refused_and_nothing_changes() -> None:
    session = client()
    session.open_stream()
    session.bytes_to_send()
    with pytest.raises(LocalProtocolError, match="262144"):
        session.send_data(1, bytes(INITIAL_WINDOW + 1))
    assert session.bytes_to_send() == []
    assert session.send_window(1) == INITIAL_WINDOW


def test_a_window_that_was_used_up_is_news_when_it_opens() -> None:
    session = client()
    session.open_stream()
    session.receive_bytes(packet(WINDOW, 0, 1, 1), 0.0)
    assert told(session) == []
    session.send_data(1, bytes(session.send_window(1)))
    assert session.send_window(1) == 0
    session.receive_bytes(packet(WINDOW, 0, 1, 0), 0.0)
    assert told(session) == []
    session.receive_bytes(packet(WINDOW, 0, 1, 7), 0.0)
    assert told(session) == [StreamWritable(1)]
    assert session.send_window(1) == 7


def test_a_stream_that_is_not_there_has_no_window() -> None:
    assert client().send_window(9) == 0


def test_credit_is_granted_for_what_was_consumed_in_halves_of_the_window() -> None:
    session = server(max_window=INITIAL_WINDOW)
    opened_by_peer(session)
    half = INITIAL_WINDOW // 2
    session.receive_bytes(data_frame(1, bytes(INITIAL_WINDOW)), 0.0)
    assert session.bytes_to_send() == []
    session.consume(1, half - 1)
    assert session.bytes_to_send() == []
    session.consume(1, 1)
    assert sent(session) == [(WINDOW, 0, 1, half)]
    session.receive_bytes(data_frame(1, bytes(half)), 0.0)
    with pytest.raises(LocalProtocolError, match="to consume"):
        session.consume(1, INITIAL_WINDOW + 1)


def pour(session: Yamux, size: int, now: float) -> list[tuple[int, int, int, int]]:
    """Let bytes arrive on stream 1 and be consumed at once; return what the session sends then."""
    session.receive_bytes(data_frame(1, bytes(size)), now)
    session.consume(1, size)
    return sent(session)


def test_a_window_grows_while_its_consumer_keeps_up_and_not_otherwise() -> None:
    session = server(max_window=MIB)
    opened_by_peer(session)
    half = INITIAL_WINDOW // 2
    assert [pour(session, half, now) for now in (10.0, 10.15, 10.3)] == [[(WINDOW, 0, 1, half)]] * 3  # no hurry
    assert [pour(session, half, now) for now in (10.31, 10.32)] == [[(WINDOW, 0, 1, half)]] * 2
    assert pour(session, half, 10.33) == [(WINDOW, 0, 1, half + INITIAL_WINDOW)]
    assert pour(session, 2 * INITIAL_WINDOW, 10.34) == [(WINDOW, 0, 1, 2 * INITIAL_WINDOW)]
    assert pour(session, INITIAL_WINDOW, 10.35) == [(WINDOW, 0, 1, INITIAL_WINDOW + 2 * INITIAL_WINDOW)]
    assert [pour(session, MIB, now) for now in (10.36, 10.37)] == [[(WINDOW, 0, 1, MIB)]] * 2  # as large as it may be


def test_a_slow_consumer_gets_no_larger_window_however_fast_the_bytes_come() -> None:
    session = server()
    opened_by_peer(session)
    session.receive_bytes(data_frame(1, bytes(INITIAL_WINDOW)), 10.0)
    for now in (20.0, 30.0, 40.0):
        session.consume(1, INITIAL_WINDOW // 2)
        assert sent(session) == [(WINDOW, 0, 1, INITIAL_WINDOW // 2)]
        session.receive_bytes(data_frame(1, bytes(INITIAL_WINDOW // 2)), now)


def test_a_measured_round_trip_says_what_keeping_up_means() -> None:
    session = server()
    opened_by_peer(session)
    session.ping(0.0)
    session.receive_bytes(packet(PING, ACK, 0, 1), 1.0)
    session.bytes_to_send()
    assert pour(session, INITIAL_WINDOW, 5.5) == [(WINDOW, 0, 1, INITIAL_WINDOW)]
    assert pour(session, INITIAL_WINDOW, 9.4) == [(WINDOW, 0, 1, 2 * INITIAL_WINDOW)]


def test_all_windows_together_are_bounded_and_an_ended_stream_gives_its_share_back() -> None:
    session = client(window=MIB, max_windows=MIB)
    for stream_id, growth in ((1, MIB - INITIAL_WINDOW), (3, INITIAL_WINDOW), (5, 0)):
        assert session.open_stream() == stream_id
        assert sent(session) == [(WINDOW, SYN, stream_id, growth)]
    session.reset_stream(1)
    session.bytes_to_send()
    session.open_stream()
    assert sent(session) == [(WINDOW, SYN, 7, MIB - INITIAL_WINDOW)]


def test_consuming_after_the_end_does_nothing() -> None:
    session = server()
    opened_by_peer(session)
    session.receive_bytes(data_frame(1, bytes(INITIAL_WINDOW), FIN), 0.0)
    session.consume(1, INITIAL_WINDOW)
    assert session.bytes_to_send() == []
    session.end_stream(1)
    session.bytes_to_send()
    session.consume(1, 5)
    assert session.bytes_to_send() == []


# --- ending ----------------------------------------------------------------------------------------------------------


def test_either_side_may_end_first() -> None:
    session = server()
    opened_by_peer(session)
    session.end_stream(1)
    assert sent(session) == [(WINDOW, FIN, 1, 0)]
    assert session.send_window(1) == 0
    with pytest.raises(LocalProtocolError, match="sends no more"):
        session.send_data(1, b"x")
    with pytest.raises(LocalProtocolError):
        session.end_stream(1)
    session.receive_bytes(data_frame(1, b"still"), 0.0)
    session.receive_bytes(packet(WINDOW, FIN, 1, 0), 0.0)
    assert told(session) == [StreamData(1, memoryview(b"still")), StreamEnded(1)]
    assert session.stream_ids == []
    with pytest.raises(LocalProtocolError, match="no stream 1"):
        session.send_data(1, b"x")


def test_an_end_may_come_with_the_last_data_or_with_none() -> None:
    session = server()
    opened_by_peer(session)
    session.receive_bytes(data_frame(1, b"last", FIN), 0.0)
    assert told(session) == [StreamData(1, memoryview(b"last")), StreamEnded(1)]
    opened_by_peer(session, 3)
    session.receive_bytes(data_frame(3, b"", FIN), 0.0)
    assert told(session) == [StreamEnded(3)]
    session.send_data(3, b"answer")
    session.end_stream(3)
    assert session.stream_ids == [1]


def test_a_reset_ends_both_directions_and_late_frames_are_dropped() -> None:
    session = server()
    opened_by_peer(session)
    session.reset_stream(1)
    assert sent(session) == [(WINDOW, RST, 1, 0)]
    session.receive_bytes(
        data_frame(1, b"late") + packet(WINDOW, 0, 1, 5) + data_frame(1, b"") + packet(WINDOW, FIN, 1, 0), 0.0
    )
    assert told(session) == []
    opened_by_peer(session, 3)
    session.receive_bytes(packet(WINDOW, RST, 3, 0), 0.0)
    assert told(session) == [StreamReset(3)]
    assert session.stream_ids == []


def test_a_stream_may_be_reset_in_the_middle_of_a_frame() -> None:
    session = server()
    opened_by_peer(session)
    frame = data_frame(1, b"0123456789", FIN)
    session.receive_bytes(frame[:15], 0.0)
    assert told(session) == [StreamData(1, memoryview(b"012"))]
    session.reset_stream(1)
    session.receive_bytes(frame[15:] + packet(WINDOW, SYN, 3, 0), 0.0)
    assert told(session) == [StreamOpened(3)]


def test_the_end_of_the_transport_resets_everything_once() -> None:
    session = server()
    opened_by_peer(session)
    session.receive_eof("gone")
    session.receive_eof("again")
    assert told(session) == [StreamReset(1), SessionEnded(reason="gone")]
    assert session.finished
    session.receive_bytes(data_frame(1, b"x"), 0.0)
    assert told(session) == []
    for act in (session.open_stream, session.go_away, lambda: session.ping(0.0)):
        with pytest.raises(LocalProtocolError):
            act()


# --- the session -----------------------------------------------------------------------------------------------------


def test_pings_are_answered_with_their_number() -> None:
    session = server()
    session.receive_bytes(packet(PING, SYN, 0, 77), 0.0)
    assert sent(session) == [(PING, ACK, 0, 77)]


def test_a_ping_measures_the_round_trip() -> None:
    session = client()
    session.ping(1.0)
    session.ping(1.1)
    assert sent(session) == [(PING, SYN, 0, 1)]
    session.receive_bytes(packet(PING, ACK, 0, 9), 1.2)
    assert told(session) == []
    session.receive_bytes(packet(PING, ACK, 0, 1), 1.5)
    assert told(session) == [PingAnswered(0.5)]
    assert session.round_trip == 0.5
    session.ping(2.0)
    assert sent(session) == [(PING, SYN, 0, 2)]


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    session = client(ping_interval=30.0, ping_timeout=20.0)
    assert session.deadline() is None
    session.receive_timeout(1000.0)
    session.receive_bytes(packet(PING, ACK, 0, 5), 100.0)
    assert session.deadline() == 130.0
    session.receive_timeout(129.0)
    assert session.bytes_to_send() == []
    session.receive_timeout(130.0)
    assert sent(session) == [(PING, SYN, 0, 1)]
    assert session.deadline() == 150.0
    session.receive_bytes(packet(PING, SYN, 0, 5), 140.0)
    assert session.deadline() == 160.0
    session.receive_timeout(160.0)
    assert told(session) == [SessionEnded(reason="the peer answered no ping for 20 s", silent=True)]
    assert session.deadline() is None
    assert session.state is YamuxSessionState.FAILED


def test_a_ping_that_nothing_follows_counts_as_silence() -> None:
    session = client(ping_interval=30.0, ping_timeout=20.0)
    session.ping(5.0)
    assert session.deadline() == 25.0


def test_without_pings_nothing_is_ever_due() -> None:
    session = client(ping_interval=None)
    session.receive_bytes(packet(PING, SYN, 0, 5), 1.0)
    assert session.deadline() is None


def test_going_away_keeps_the_streams_and_opens_no_more() -> None:
    session = server()
    opened_by_peer(session)
    session.go_away()
    assert sent(session) == [(GO_AWAY, 0, 0, 0)]
    session.receive_bytes(packet(WINDOW, SYN, 3, 0), 0.0)
    assert sent(session) == [(WINDOW, RST, 3, 0)]
    session.send_data(1, b"x")
    other = client()
    other.open_stream()
    other.receive_bytes(packet(GO_AWAY, 0, 0, 0), 0.0)
    assert told(other) == [PeerLeaving()]
    with pytest.raises(LocalProtocolError, match="leaving"):
        other.open_stream()
    assert other.stream_ids == [1]


def test_a_peer_that_gives_up_ends_the_session() -> None:
    session = client()
    session.open_stream()
    session.receive_bytes(packet(GO_AWAY, 0, 0, 2), 0.0)
    assert told(session) == [StreamReset(1), SessionEnded(reason="the peer gave up: go-away with code 2")]


def test_nothing_behind_the_end_is_read() -> None:
    session = server()
    session.receive_bytes(packet(GO_AWAY, 0, 0, 2) + packet(DATA, 0, 1, 0, version=1) + packet(PING, SYN, 0, 1), 0.0)
    assert told(session) == [SessionEnded(reason="the peer gave up: go-away with code 2")]
    assert session.bytes_to_send() == []


def test_credit_for_a_stream_that_we_have_ended_is_no_news() -> None:
    session = client()
    session.open_stream()
    session.send_data(1, bytes(INITIAL_WINDOW))
    session.end_stream(1)
    session.receive_bytes(packet(WINDOW, 0, 1, 5), 0.0)
    assert told(session) == []


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (packet(DATA, 0, 1, 0, version=1), "version 1"),
        (packet(4, 0, 1, 0), "unknown type 4"),
        (packet(DATA, 16, 1, 0), "unknown flags"),
        (packet(PING, SYN, 1, 0), "names stream 1"),
        (packet(GO_AWAY, 0, 1, 0), "names stream 1"),
        (packet(DATA, 0, 0, 0), "names stream 0"),
        (packet(WINDOW, SYN, 2, 0), "for us to use"),
        (packet(WINDOW, SYN, 1, 0), "stream 1 a second time"),
        (packet(WINDOW, SYN, 5, 0) + packet(WINDOW, 0, 3, 0), "never opened"),
        (packet(WINDOW, SYN, 5, 0) + packet(WINDOW, SYN, 3, 0) * 2, "stream 3 a second time"),
        (packet(WINDOW, ACK, 1, 0), "acknowledged"),
        (packet(WINDOW, SYN | ACK, 3, 0), "acknowledged"),
        (packet(PING, SYN | ACK, 0, 0), "ping has the flags 0x3"),
        (packet(PING, 0, 0, 0), "ping has the flags 0x0"),
        (packet(GO_AWAY, RST, 0, 0), "go-away has the flags 0x8"),
        (packet(WINDOW, 0, 3, 0), "never opened"),
        (packet(WINDOW, 0, 2, 0), "never opened"),
        (packet(DATA, 0, 1, INITIAL_WINDOW + 1), "where 262144 were allowed"),
        (packet(WINDOW, 0, 1, 2**32 - 1), "credit"),
        (packet(WINDOW, FIN, 1, 0) * 2, "ended twice"),
        (packet(WINDOW, FIN, 1, 0) + data_frame(1, b"x"), "1 bytes followed"),
    ],
)
def test_an_illegal_frame_ends_the_session(frames: bytes, reason: str) -> None:
    session = server()
    opened_by_peer(session)
    session.receive_bytes(frames + packet(PING, SYN, 0, 3), 0.0)
    ended = told(session)[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.violation
    assert reason in ended.reason
    assert sent(session) == [(GO_AWAY, 0, 0, GO_AWAY_PROTOCOL_ERROR)]
    assert session.stream_ids == []


# --- properties ------------------------------------------------------------------------------------------------------


def joined(events: list[YamuxEvent]) -> list[YamuxEvent]:
    """Events with the data of one stream that came in pieces put together."""
    result: list[YamuxEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, StreamData) and isinstance(last, StreamData) and last.stream_id == event.stream_id:
            result[-1] = StreamData(event.stream_id, memoryview(bytes(last.data) + bytes(event.data)))
        else:
            result.append(event)
    return result


CONVERSATION = b"".join(
    (
        packet(WINDOW, SYN, 1, 5),
        data_frame(1, b"first"),
        data_frame(3, b"second", SYN),
        packet(PING, SYN, 0, 8),
        data_frame(1, b"third", FIN),
        packet(WINDOW, 0, 3, 9),
        data_frame(3, b"fourth"),
        packet(WINDOW, RST, 3, 0),
        packet(GO_AWAY, 0, 0, 0),
    )
)


@given(data=st.data())
def test_however_the_bytes_are_cut_the_events_are_the_same(data: st.DataObject) -> None:
    whole, cut = server(), server()
    whole.receive_bytes(CONVERSATION, 1.0)
    for piece in data.draw(in_pieces(CONVERSATION)):
        cut.receive_bytes(piece, 1.0)
    assert joined(cut.events()) == joined(whole.events())
    assert cut.bytes_to_send() == whole.bytes_to_send()


@given(
    garbage=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(packet, st.integers(0, 5), st.integers(0, 20), st.integers(0, 5), st.integers(0, 20)),
        ),
        max_size=30,
    )
)
def test_whatever_a_peer_sends_nothing_is_raised_and_the_end_is_final(garbage: list[bytes]) -> None:
    session = server(max_streams=2, backlog=1)
    for piece in garbage:
        session.receive_bytes(piece, 0.0)
        assert len(session.stream_ids) <= 2
        if session.finished:
            assert session.stream_ids == []
    events = session.events()
    assert not [event for event in events[:-1] if isinstance(event, SessionEnded)]


def test_only_what_has_arrived_of_a_frame_can_be_consumed() -> None:
    session = server()
    opened_by_peer(session)
    session.receive_bytes(data_frame(1, bytes(100))[: 12 + 60], 0.0)
    with pytest.raises(LocalProtocolError, match="60 bytes to consume, not 61"):
        session.consume(1, 61)
    session.consume(1, 60)
