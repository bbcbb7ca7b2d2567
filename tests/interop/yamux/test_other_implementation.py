"""Our yamux, in both roles, with the implementation in JavaScript of `@chainsafe/libp2p-yamux`; see `peer.mjs`."""

from __future__ import annotations

import hashlib
import json
import select
import socket
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from sandbox_aio.protocol.yamux import Yamux
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
    YamuxEvent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parent
PATIENCE = 30.0
LARGE = 6 * 2**20
RECEIVE_BYTES = 64 * 1024


@attrs.define
class Channel:
    """What one stream has to send and has received."""

    unsent: bytearray = attrs.field(factory=bytearray)
    ending: bool = False
    """Whether it ends once all is sent."""
    sent_end: bool = False
    received: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    was_reset: bool = False


class Link:
    """Our session, whose bytes it moves to and from the peer's process."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[str], *, client: bool) -> None:
        self.session = Yamux(client=client)
        self.process = process
        self.channels: defaultdict[int, Channel] = defaultdict(Channel)
        self.events: list[YamuxEvent] = []
        self.echo = not client
        self._connection = connection
        self._out = bytearray()

    def open(self, payload: bytes, *, end: bool = True) -> Channel:
        """Open a stream that sends `payload`."""
        channel = self.channels[self.session.open_stream()]
        channel.unsent += payload
        channel.ending = end
        return channel

    def run_until(self, done: Callable[[], bool]) -> None:
        """Move bytes until `done`."""
        give_up_at = time.monotonic() + PATIENCE
        while not done():
            left = give_up_at - time.monotonic()
            assert left > 0, f"nothing came of it; the last events: {[type(e).__name__ for e in self.events[-5:]]}"
            self._push()
            self._out += b"".join(self.session.bytes_to_send())
            readable, writable, _ = select.select([self._connection], [self._connection] if self._out else [], [], left)
            if writable:
                del self._out[: self._connection.send(self._out[:RECEIVE_BYTES])]
            if readable:
                if data := self._connection.recv(RECEIVE_BYTES):
                    self.session.receive_bytes(data, time.monotonic())
                else:
                    self.session.receive_eof()
                for event in self.session.events():
                    self._receive(event)

    def hang_up(self) -> str:
        """Close the connection, and return what the peer's process has said by its orderly end."""
        self._connection.close()
        said, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        return said

    def _push(self) -> None:
        for stream_id, channel in self.channels.items():
            if size := min(self.session.send_window(stream_id), len(channel.unsent)):
                self.session.send_data(stream_id, bytes(channel.unsent[:size]))
                del channel.unsent[:size]
                if self.echo:
                    self.session.consume(stream_id, size)
            if channel.ending and not channel.unsent and not channel.sent_end and not channel.was_reset:
                channel.sent_end = True
                self.session.end_stream(stream_id)

    def _receive(self, event: YamuxEvent) -> None:
        self.events.append(event)
        if isinstance(event, StreamOpened):
            self.session.accept_stream(event.stream_id)
        elif isinstance(event, StreamData):
            channel = self.channels[event.stream_id]
            if self.echo:
                channel.unsent += event.data
            else:
                channel.received += event.data
                self.session.consume(event.stream_id, len(event.data))
        elif isinstance(event, StreamEnded):
            self.channels[event.stream_id].ended = True
            self.channels[event.stream_id].ending |= self.echo
        elif isinstance(event, StreamReset):
            self.channels[event.stream_id].was_reset = True
            self.channels[event.stream_id].unsent.clear()
        else:
            others = StreamAccepted | StreamWritable | PingAnswered | PeerLeaving | SessionEnded
            assert isinstance(event, others)

    def happened(self, kind: type[YamuxEvent]) -> bool:
        """Whether there was such an event."""
        return any(isinstance(event, kind) for event in self.events)


@pytest.fixture
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    """Our session with the other implementation, whose role is the test's parameter."""
    peer: str = request.param
    assert (FOLDER / "node_modules").is_dir(), f"the peer is not installed: run `make test`, or `npm ci` in {FOLDER}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        command = ["node", "peer.mjs", str(listener.getsockname()[1]), peer]
        process = subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True)
        try:
            connection, _ = listener.accept()
            with connection:
                yield Link(connection, process, client=peer == "server")
        finally:
            process.kill()
            process.communicate()


serving = pytest.mark.parametrize("link", ["server"], indirect=True)
asking = pytest.mark.parametrize("link", ["client"], indirect=True)


@serving
def test_many_streams_come_back_each_with_its_own(link: Link) -> None:
    payloads = [bytes([index]) * (3000 + index) for index in range(100)]
    channels = [link.open(b"E" + payload) for payload in payloads]
    link.run_until(lambda: all(channel.ended for channel in channels))
    assert [bytes(channel.received) for channel in channels] == payloads
    assert link.session.stream_ids == []
    assert link.happened(StreamAccepted)


@serving
def test_much_data_goes_both_ways_at_once(link: Link) -> None:
    payload = b"".join(index.to_bytes(4, "big") for index in range(LARGE // 4))
    channel = link.open(b"E" + payload)
    link.run_until(lambda: channel.ended)
    assert channel.received == payload
    assert link.session.stream_ids == []


@serving
def test_an_answer_follows_our_half_close(link: Link) -> None:
    payload = bytes(range(256)) * 4096
    channel = link.open(b"S" + payload)
    link.run_until(lambda: channel.ended)
    assert channel.received == hashlib.sha256(payload).digest()


@serving
def test_either_side_resets_a_stream_and_the_others_go_on(link: Link) -> None:
    theirs, ours = link.open(b"R", end=False), link.open(b"Ehello", end=False)
    link.run_until(lambda: theirs.was_reset and ours.received == b"hello")
    ours.unsent += bytes(100_000)
    link.session.reset_stream(next(id for id, channel in link.channels.items() if channel is ours))
    other = link.open(b"Estill here")
    link.run_until(lambda: other.ended)
    assert other.received == b"still here"
    assert link.session.stream_ids == []


@serving
def test_pings_are_answered_both_ways(link: Link) -> None:
    link.session.ping(time.monotonic())  # and the peer sends one of its own when it begins
    link.run_until(lambda: link.happened(PingAnswered))
    assert link.session.round_trip is not None
    assert 0 <= link.session.round_trip < PATIENCE


@serving
def test_the_peer_goes_away(link: Link) -> None:
    link.open(b"G")
    link.run_until(lambda: link.session.finished)
    assert link.happened(PeerLeaving)
    assert link.events[-1] == SessionEnded(reason="the connection ended")


@serving
def test_we_go_away(link: Link) -> None:
    channel = link.open(b"Ebefore")
    link.run_until(lambda: channel.ended)
    link.session.go_away()
    link.run_until(lambda: link.session.finished)
    assert link.hang_up() == ""


@serving
def test_the_peer_takes_our_violation_for_one_and_we_its_answer(link: Link) -> None:
    link._out += b"\x01" + bytes(11)
    link.run_until(lambda: link.session.finished)
    assert SessionEnded(reason="the peer gave up: go-away with code 1") in link.events


@asking
def test_the_peers_streams_are_served(link: Link) -> None:
    link.run_until(lambda: link.session.finished)
    assert json.loads(link.hang_up()) == {"large": True, "small": 100, "pinged": True}
    assert sum(isinstance(event, StreamReset) for event in link.events) == 1
    assert link.session.stream_ids == []
    assert link.happened(PeerLeaving)
