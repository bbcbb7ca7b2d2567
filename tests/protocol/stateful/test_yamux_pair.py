"""Two yamux sessions on one wire, which cuts the bytes anywhere and holds them back as long as it likes.

What must hold all the time: no side ever takes the other for one that breaks the protocol; what a stream delivers is
what was sent on it, byte for byte; and credit is neither lost nor made: what may be sent, what is under way, what
waits for its consumer, and what is owed for it are together the receiver's window.
"""

from __future__ import annotations

from typing import Literal

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox_aio.protocol.yamux import HEADER, HEADER_SIZE, Yamux
from sandbox_aio.protocol.yamux_events import (
    PeerLeaving,
    PingAnswered,
    SessionEnded,
    StreamAccepted,
    StreamData,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
    YamuxLimits,
)
from sandbox_aio.protocol.yamux_states import YamuxStreamState

Side = Literal[0, 1]
SIDES: tuple[Side, Side] = (0, 1)
PATTERN = bytes(range(251)) * 8192
"""What every stream sends, from its start; 251 is prime, so that a byte that is out of place shows."""
KIB = 1024
MAX_STREAMS = 5

sides = st.sampled_from(SIDES)
sizes = st.sampled_from([1, 2, 11, 700, 30 * KIB, 100 * KIB, 10**9])
"""The largest stands for all that there is."""


@attrs.define
class Direction:
    """What one stream has carried from one side to the other."""

    sent: int = 0
    received: int = 0
    consumed: int = 0
    ended: bool = False
    """Whether the sender has said so."""
    end_seen: bool = False


@attrs.define
class Wire:
    """Bytes under way to one side."""

    data: bytearray = attrs.field(factory=bytearray)
    frames: list[tuple[int, int, int, int]] = attrs.field(factory=list)
    """Type, stream, value and how many bytes of it are still under way, of each frame."""

    def push(self, frame: bytes | bytearray) -> None:
        """Send a frame."""
        _, kind, _, stream_id, value = HEADER.unpack_from(frame)
        assert len(frame) == HEADER_SIZE + (value if kind == 0 else 0)
        self.data += frame
        self.frames.append((kind, stream_id, value, len(frame)))

    def take(self, size: int) -> bytes:
        """Deliver the first bytes."""
        piece = bytes(self.data[:size])
        del self.data[:size]
        left = len(piece)
        while left:
            kind, stream_id, value, rest = self.frames[0]
            gone = min(rest, left)
            left -= gone
            if gone == rest:
                del self.frames[0]
            else:
                self.frames[0] = kind, stream_id, value, rest - gone
        return piece

    def credit(self, stream_id: int) -> int:
        """The sum of the window updates under way."""
        return sum(value for kind, id, value, _ in self.frames if (kind, id) == (1, stream_id))


class YamuxPair(RuleBasedStateMachine):
    """A client (side 0) and a server (side 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.wires = (Wire(), Wire())
        """By the side that they lead to."""
        self.directions: dict[tuple[int, Side], Direction] = {}
        """By stream and sender."""
        self.broken: set[int] = set()
        """Streams that either side has reset."""
        self.unaccepted: set[int] = set()

    @initialize(window=st.sampled_from([256 * KIB, 300 * KIB]), most=st.sampled_from([256 * KIB, 1024 * KIB]))
    def begin(self, window: int, most: int) -> None:
        limits = YamuxLimits(
            max_streams=MAX_STREAMS, window=window, max_window=max(window, most), max_windows=1024 * KIB,
            max_frame_bytes=17 * KIB,
        )  # fmt: skip
        self.ends = (Yamux(client=True, limits=limits), Yamux(client=False, limits=limits))

    # --- what the two do ---------------------------------------------------------------------------------------------

    @rule(side=sides)
    def open_stream(self, side: Side) -> None:
        if len(self.ends[side].stream_ids) < MAX_STREAMS:
            stream_id = self.ends[side].open_stream()
            for sender in SIDES:
                self.directions[stream_id, sender] = Direction()
            self.collect()

    @rule(side=sides, size=sizes, data=st.data())
    def send(self, side: Side, size: int, data: st.DataObject) -> None:
        if (stream_id := self.draw_stream(side, data)) is not None:
            self.push(side, stream_id, size)

    @rule(side=sides, size=sizes, data=st.data())
    def consume(self, side: Side, size: int, data: st.DataObject) -> None:
        if (stream_id := self.draw_stream(side, data)) is not None:
            self.pull(side, stream_id, size)

    @rule(side=sides, data=st.data())
    def end_stream(self, side: Side, data: st.DataObject) -> None:
        stream_id = self.draw_stream(side, data)
        if stream_id is not None and not self.directions[stream_id, side].ended:
            self.ends[side].end_stream(stream_id)
            self.directions[stream_id, side].ended = True
            self.collect()

    @rule(side=sides, data=st.data())
    def reset_stream(self, side: Side, data: st.DataObject) -> None:
        if (stream_id := self.draw_stream(side, data)) is not None:
            self.ends[side].reset_stream(stream_id)
            self.broken.add(stream_id)
            self.unaccepted.discard(stream_id)
            self.collect()

    @precondition(lambda self: self.unaccepted)
    @rule()
    def accept(self) -> None:
        stream_id = self.unaccepted.pop()
        end = self.ends[1 if stream_id % 2 else 0]
        if end.has_stream(stream_id):
            end.accept_stream(stream_id)
            self.collect()

    @rule(side=sides)
    def ping(self, side: Side) -> None:
        self.ends[side].ping(self.now)
        self.collect()

    # --- what the world does -----------------------------------------------------------------------------------------

    @rule(side=sides, size=sizes)
    def deliver(self, side: Side, size: int) -> None:
        self.ends[side].receive_bytes(self.wires[side].take(size), self.now)
        self.collect()
        for event in self.ends[side].events():
            if isinstance(event, StreamOpened):
                self.unaccepted.add(event.stream_id)
            elif isinstance(event, StreamData):
                direction = self.directions[event.stream_id, self.other(side)]
                start = direction.received
                assert not direction.end_seen
                assert event.data == PATTERN[start : start + len(event.data)]
                direction.received += len(event.data)
            elif isinstance(event, StreamEnded):
                direction = self.directions[event.stream_id, self.other(side)]
                assert direction.ended
                assert direction.received == direction.sent
                direction.end_seen = True
            elif isinstance(event, StreamReset):
                self.broken.add(event.stream_id)
                self.unaccepted.discard(event.stream_id)
            else:
                assert isinstance(event, StreamAccepted | StreamWritable | PingAnswered)
                assert not isinstance(event, SessionEnded | PeerLeaving)

    @rule(side=sides, rounds=st.integers(1, 4), data=st.data())
    def flow(self, side: Side, rounds: int, data: st.DataObject) -> None:
        """A stream is sent, delivered and consumed as fast as its window allows."""
        stream_id = self.draw_stream(side, data)
        for _ in range(rounds):
            if stream_id is not None and self.ends[side].has_stream(stream_id):
                self.push(side, stream_id, 10**9)
                self.settle()
                self.pull(self.other(side), stream_id, 10**9)
                self.settle()

    @rule(seconds=st.sampled_from([0.001, 0.1, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    # --- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def credit_is_conserved(self) -> None:
        for (stream_id, sender), direction in self.directions.items():
            out = self.ends[sender]._streams.get(stream_id)
            into = self.ends[self.other(sender)]._streams.get(stream_id)
            if stream_id in self.broken or out is None or into is None:
                continue
            assert 0 <= direction.received - direction.consumed == into.unconsumed <= into.window
            owed = into.unconsumed + into.credit
            under_way = direction.sent - direction.received
            granted = self.wires[sender].credit(stream_id)
            if YamuxStreamState.HALF_LOCAL is not out.state:
                assert out.send_window + under_way + owed + granted == into.window

    @invariant()
    def windows_are_bounded(self) -> None:
        for end in getattr(self, "ends", ()):
            assert len(end.stream_ids) <= MAX_STREAMS
            assert sum(stream.window - 256 * KIB for stream in end._streams.values()) == end._grown <= 1024 * KIB

    def teardown(self) -> None:
        """Let everything arrive and end: every stream leaves both tables, with all its bytes."""
        if not hasattr(self, "ends"):
            return
        self.settle()
        for side in SIDES:
            for stream_id in self.ends[side].stream_ids:
                if not self.directions[stream_id, side].ended:
                    self.ends[side].end_stream(stream_id)
                    self.directions[stream_id, side].ended = True
        self.collect()
        self.settle()
        assert self.ends[0].stream_ids == self.ends[1].stream_ids == []
        whole = {key: direction for key, direction in self.directions.items() if key[0] not in self.broken}
        assert all(direction.received == direction.sent and direction.end_seen for direction in whole.values())

    # --- the rest ----------------------------------------------------------------------------------------------------

    def push(self, side: Side, stream_id: int, size: int) -> None:
        direction = self.directions[stream_id, side]
        room = min(self.ends[side].send_window(stream_id), len(PATTERN) - direction.sent)
        if size := min(size, room):
            self.ends[side].send_data(stream_id, PATTERN[direction.sent : direction.sent + size])
            direction.sent += size
            self.collect()

    def pull(self, side: Side, stream_id: int, size: int) -> None:
        direction = self.directions[stream_id, self.other(side)]
        size = min(size, direction.received - direction.consumed)
        direction.consumed += size
        self.ends[side].consume(stream_id, size)
        self.collect()

    def settle(self) -> None:
        while any(wire.data for wire in self.wires):
            for side in SIDES:
                self.deliver(side, 10**9)

    def collect(self) -> None:
        for side in SIDES:
            for frame in self.ends[side].bytes_to_send():
                self.wires[self.other(side)].push(frame)

    def draw_stream(self, side: Side, data: st.DataObject) -> int | None:
        streams = self.ends[side].stream_ids
        return data.draw(st.sampled_from(streams)) if streams else None

    @staticmethod
    def other(side: Side) -> Side:
        return 1 if side == 0 else 0


TestYamuxPair = YamuxPair.TestCase
TestYamuxPair.settings = settings(stateful_step_count=60)
