"""A command under every order of events: the model is the true log of what the process wrote."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox_aio.protocol.session import STALL_SECONDS, CommandSession, KillRequested, SpawnRequested
from sandbox_aio.protocol.session_table import SessionConnection, SessionTable

if TYPE_CHECKING:
    from sandbox_aio.protocol.frames import Stream

CAPACITY = 32 * 1024
UNREAD = st.sampled_from([0, 1, CAPACITY])
LAST_WORDS = b"bye\xe2\x82"
STREAMS = st.sampled_from(["stdout", "stderr"])
BLOCK_BYTES = 64 * 1024
"""The most that a buffer holds beyond its capacity: pieces are gathered into blocks of this size."""


class Reader:
    """One connection, and what it was told, checked against the log as it comes."""

    def __init__(self, connection: SessionConnection, stdout_offset: int, stderr_offset: int, now: float) -> None:
        self.connection = connection
        self.positions = {"stdout": stdout_offset, "stderr": stderr_offset}
        self.took_at = now
        self.frames: list[str] = []
        self.may_lose = False

    def take(self, budget: int, now: float, log: dict[str, bytes]) -> None:
        messages = [json.loads(payload) for payload in self.connection.messages_to_send(budget, now)]
        for message in messages:
            self.check(message, log)
        if messages:
            self.took_at = now

    def check(self, message: dict[str, Any], log: dict[str, bytes]) -> None:
        kind = message["type"]
        assert not self.frames or self.frames[-1] not in ("exit", "error"), "something came after the end"
        assert self.frames or kind in ("started", "error"), "started is the first frame"
        self.frames.append(kind)
        if kind in ("stdout", "stderr"):
            data, offset = message["data"].encode(), message["offset"]
            assert offset >= self.positions[kind], "an offset went back"
            assert self.may_lose or offset == self.positions[kind], "a reader that kept up lost output"
            assert log[kind][offset : offset + len(data)] == data
            self.positions[kind] = offset + len(data)


class SessionMachine(RuleBasedStateMachine):
    """Rules are what processes, clients and clocks do; the driver's part is done at once."""

    @initialize(
        kill_on_disconnect=st.booleans(),
        timeout=st.sampled_from([0, 5, 1000]),
        idle=st.sampled_from([-1, 0, 20]),
        pty=st.booleans(),
    )
    def begin(self, kill_on_disconnect: bool, timeout: int, idle: int, pty: bool) -> None:
        self.now = 0.0
        self.table = SessionTable(capacity=CAPACITY)
        self.execute = {
            "type": "execute",
            "command": "x",
            "command_id": "c",
            "kill_on_disconnect": kill_on_disconnect,
            "timeout_seconds": timeout,
            "idle_timeout_seconds": idle,
            "pty": pty,
        }
        self.decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in ("stdout", "stderr")}
        self.log = {"stdout": b"", "stderr": b""}
        self.closed = {"stderr"} if pty else set()
        self.unread: dict[Stream, bytes] = {}
        self.readers: list[Reader] = []
        self.kills = 0
        self.killed = False
        self.exited = False
        self.spawned = 0
        self.attach_by_execute()

    @property
    def session(self) -> CommandSession:
        session = self.readers[0].connection.session if self.readers else self.last
        assert session is not None
        return session

    def drive(self) -> None:
        """Do what the session asks for, as the driver does."""
        self.read_pipes()
        for event in self.session.events():
            if isinstance(event, SpawnRequested):
                self.spawned += 1
                self.session.process_started(7, self.now)
            elif isinstance(event, KillRequested):
                self.kills += 1
        self.drop_the_finished()

    def drop_the_finished(self) -> None:
        self.last = self.session
        self.readers = [reader for reader in self.readers if not reader.connection.is_finished]

    def connect(self, message: dict[str, Any], stdout_offset: int = 0, stderr_offset: int = 0) -> None:
        connection = SessionConnection(self.table, fallback_id="f", now=self.now)
        connection.receive_message(json.dumps(message).encode(), self.now)
        reader = Reader(connection, stdout_offset, stderr_offset, self.now)
        self.readers.append(reader)
        reader.may_lose = any(
            reader.positions[stream] < buffer.start for stream, buffer in self.session.buffers.items()
        )
        self.drive()

    @rule()
    def attach_by_execute(self) -> None:
        self.connect(self.execute)

    @rule(data=st.data())
    def attach_by_reconnect(self, data: st.DataObject) -> None:
        offsets = {}
        for stream in ("stdout", "stderr"):
            offsets[stream] = data.draw(st.integers(0, len(self.log[stream])), label=stream)
            while self.log[stream][offsets[stream] : offsets[stream] + 1] >= b"\x80" and (
                self.log[stream][offsets[stream]] & 0xC0 == 0x80
            ):
                offsets[stream] -= 1
        message = {"type": "reconnect", "command_id": "c"}
        self.connect(message | {f"{stream}_offset": offset for stream, offset in offsets.items()}, *offsets.values())

    @rule(
        stream=STREAMS,
        data=st.binary(min_size=1, max_size=8),
        size=st.sampled_from([1, 100, CAPACITY]),
        times=st.sampled_from([1, 3, 20]),
    )
    def write(self, stream: Stream, data: bytes, size: int, times: int) -> None:
        data = (data * size)[: self.session.read_bytes]
        for _ in range(times):
            if stream in self.closed or self.session.is_over or not self.session.wants_output(stream):
                return
            if stream not in self.unread:
                self.receive(stream, data)

    def receive(self, stream: Stream, data: bytes) -> None:
        furthest = max((reader.positions[stream] for reader in self.readers), default=0)
        for reader in self.readers:
            stalled = self.now >= reader.took_at + STALL_SECONDS
            reader.may_lose |= stalled or reader.positions[stream] < furthest
        self.session.receive_output(stream, data, self.now)
        self.log[stream] += self.decoders[stream].decode(data).encode()

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), budget=st.sampled_from([1, 10, 1 << 20]))
    def read(self, data: st.DataObject, budget: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        reader.take(budget, self.now, self.log)
        self.drive()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.last = self.session
        before = self.kills
        last_to_go = len(self.readers) == 1 and not self.last.is_over
        self.readers.remove(reader)
        reader.connection.receive_closed(self.now)
        self.drive()
        if last_to_go and self.execute["kill_on_disconnect"]:
            assert self.kills == before + 1

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        over, before = self.session.is_over, self.kills
        reader.connection.receive_message(b'{"type":"kill"}', self.now)
        self.drive()
        assert self.kills == before + (not over)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 11.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(20):
            deadline = self.session.deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.session.receive_timeout(self.now)
            self.finish_if_over()
        else:
            raise AssertionError("time brings no rest")
        self.now = until

    @precondition(lambda self: not self.exited)
    @rule(
        code=st.sampled_from([0, 1, 137]),
        unread=st.fixed_dictionaries({"stdout": UNREAD, "stderr": UNREAD}),
    )
    def exit(self, code: int, unread: dict[Stream, int]) -> None:
        self.exited = True
        if not self.session.is_over:
            self.unread = {
                stream: LAST_WORDS * times for stream, times in unread.items() if times and stream not in self.closed
            }
        sizes = {stream: len(data) for stream, data in self.unread.items()}
        self.session.process_exited(code, self.now, sizes)
        self.finish_if_over()

    def read_pipes(self) -> None:
        """Deliver what waits in the pipes, as far as it is wanted."""
        for stream, data in tuple(self.unread.items()):
            if self.session.is_over:
                raise AssertionError("the end was said before the last words were read")
            if self.session.wants_output(stream):
                self.receive(stream, data[: self.session.read_bytes])
                self.unread[stream] = data[self.session.read_bytes :]
                if not self.unread[stream]:
                    del self.unread[stream]

    @rule(stream=STREAMS)
    def close(self, stream: Stream) -> None:
        if stream not in self.closed and stream not in self.unread:
            self.closed.add(stream)
            self.session.receive_output_eof(stream, self.now)
            self.finish_if_over()

    def finish_if_over(self) -> None:
        if self.session.is_over:
            for stream, decoder in self.decoders.items():
                self.log[stream] += decoder.decode(b"", True).encode()
                decoder.reset()
        self.drive()

    @invariant()
    def one_process(self) -> None:
        assert self.spawned == 1

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.session.retained_bytes <= 2 * (CAPACITY + BLOCK_BYTES)

    @invariant()
    def a_command_that_is_over_has_an_outcome(self) -> None:
        assert self.session.is_over == (self.session.outcome is not None)

    def teardown(self) -> None:
        if not hasattr(self, "readers") or not self.readers:
            return
        self.take_everything()
        if not self.exited:
            self.exit(0, {"stdout": 1, "stderr": 0})
        while self.unread:
            self.take_everything()
            self.drive()
        for stream in ("stdout", "stderr"):
            self.close(stream)
        self.pass_time(400.0)
        self.take_everything()
        for reader in self.readers:
            assert reader.frames[-1] in ("exit", "error")
            assert {s: reader.positions[s] for s in reader.positions} == {s: len(self.log[s]) for s in self.log}

    def take_everything(self) -> None:
        for reader in self.readers:
            reader.take(1 << 30, self.now, self.log)


SessionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestSession = SessionMachine.TestCase
