"""Rules that hold whoever the daemon is: what a network, a clock and a caller may do to one command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.protocol.stateful.client_model import WAITING, ClientModel

if TYPE_CHECKING:
    from tests.protocol.stateful.client_model import Peer

seldom = st.integers(0, 1000).map(lambda number: 400 <= number < 450)
"""True now and then: for what ends a run, so that most runs go on. Hypothesis likes the edges of a range."""
mostly = seldom.map(lambda drawn: not drawn)


class Refusing:
    """A server that answers every upgrade with the same response."""

    def __init__(self, response: str) -> None:
        self._response = response.encode()
        self._asked = False

    def receive_bytes(self, data: bytes, now: float) -> None:
        self._asked = self._asked or data.endswith(b"\r\n\r\n")

    def receive_eof(self, now: float) -> None:
        """Nothing depends on it."""

    def bytes_to_send(self, now: float) -> bytes:
        response, self._response = (self._response, b"") if self._asked else (b"", self._response)
        return response


class ClientRules(RuleBasedStateMachine):
    """A machine provides the daemon: how it accepts a connection, and what has reached it."""

    client: ClientModel
    tokens = 0

    def accept(self) -> Peer:
        """Return the daemon's end of a new connection."""
        raise NotImplementedError

    def output(self) -> None:
        """Let the command write a little, and send it if somebody is attached."""
        raise NotImplementedError

    def seen_kill(self) -> bool:
        """Say whether a kill has reached the daemon since the present client began."""
        raise NotImplementedError

    def unstick_kill(self) -> None:
        """Do what it takes for a kill that is stuck on its way to arrive; most daemons hold none up."""

    def read_all_input(self) -> None:
        """Let the command read all input that is sent to it, if it does not anyway."""

    def seen_end_of_input(self) -> bool:
        """Say whether the command's input was closed."""
        raise NotImplementedError

    def seen_input(self) -> str:
        """Return all input that has reached the command since the present client began."""
        raise NotImplementedError

    def unfinished(self) -> bool:
        return not self.client.command.finished

    # --- the network -------------------------------------------------------------------------------------------------

    def wants_connection(self) -> bool:
        return self.client.link is None and self.client.command.wants_connection

    @precondition(wants_connection)
    @rule(lost=st.booleans())
    def connect(self, lost: bool) -> None:
        """With `lost` the daemon reads what the client opens with, and its answer never arrives."""
        self.client.connect(self.accept)
        if lost:
            self.client.flow_to_server()
            self.client.flow_to_client()
            self.client.flow_to_server()
            self.client.cut(0, 0)

    @precondition(wants_connection)
    @rule()
    def connect_and_settle(self) -> None:
        self.client.connect(self.accept)
        self.settle()

    @precondition(wants_connection)
    @rule()
    def fail_to_connect(self) -> None:
        self.client.fail_to_connect()

    @precondition(wants_connection)
    @rule(status=st.sampled_from([429, 500, 502, 503, 504]), retry_after=st.sampled_from([None, None, 0, 3, 1000]))
    def refuse(self, status: int, retry_after: int | None) -> None:
        head = f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n"
        head += "" if retry_after is None else f"retry-after: {retry_after}\r\n"
        self.client.retry_after = retry_after
        self.client.connect(lambda: Refusing(f"{head}\r\n"))
        self.client.settle()

    def connected(self) -> bool:
        return self.client.link is not None

    @precondition(connected)
    @rule(size=st.none() | st.integers(1, 60))
    def flow(self, size: int | None) -> None:
        self.client.flow_to_server()
        if size != 1:
            self.client.flow_to_client(size)

    @precondition(connected)
    @rule(to_server=st.integers(0, 200), to_client=st.integers(0, 200), come_back=mostly)
    def cut(self, to_server: int, to_client: int, come_back: bool) -> None:
        self.client.cut(to_server, to_client)
        if come_back:
            self.come_back()

    def come_back(self) -> None:
        """Attach again as soon as the command wants to."""
        if self.client.command.state in WAITING:
            self.wait_until_due()
        if self.wants_connection():
            self.connect_and_settle()

    @precondition(connected)
    @rule()
    def settle(self) -> None:
        """All arrives that is in flight. Then a kill that was asked for has arrived, and all input."""
        self.client.settle()
        client = self.client
        if client.command.attached:
            if client.killed_at is not None and not self.seen_kill():
                self.unstick_kill()
                assert self.seen_kill() or client.command.finished, "a kill was forgotten"
            self.read_all_input()
        if client.command.attached:
            assert not client.input_closed or self.seen_end_of_input(), "the end of input was forgotten"
            assert self.seen_input().endswith("".join(client.input_due)), "input was forgotten"
            client.input_due = []

    @precondition(unfinished)
    @rule(times=st.integers(1, 6), started=st.booleans(), output=st.booleans())
    def struggle(self, times: int, started: bool, output: bool) -> None:
        """Spend the budget: connections are lost or refused. At last, perhaps, there is output, which gives it back."""
        for _ in range(times):
            if self.client.link is not None:
                self.client.cut(0, 0)
            if self.client.command.state in WAITING:
                self.wait_until_due()
            if self.wants_connection() and started:
                self.connect_and_settle()
            elif self.wants_connection():
                self.client.fail_to_connect()
        if output:
            self.come_back()
            self.output()
            self.settle()

    # --- the clock ---------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 9.0, 29.0, 31.0]), answered=mostly)
    def wait(self, seconds: float, answered: bool) -> None:
        """With `answered` the network works meanwhile; else the peer is silent."""
        for _ in range(8):
            self.client.advance(seconds / 8)
            if answered:
                self.client.settle()

    @precondition(lambda self: self.client.command.state in WAITING)
    @rule()
    def wait_until_due(self) -> None:
        self.client.advance(max(self.client.connect_at - self.client.now, 0.0))

    # --- the caller --------------------------------------------------------------------------------------------------

    @precondition(unfinished)
    @rule(fate=st.sampled_from(["arrives", "in flight", "lost"]))
    def kill(self, fate: str) -> None:
        self.client.kill()
        if fate == "lost" and self.client.link is not None:
            self.client.cut(0, 0)
            self.come_back()
        elif fate == "arrives":
            self.settle()

    @precondition(unfinished)
    @rule(padding=st.sampled_from(["", "é", "x" * 30, "x" * 90]))
    def send_input(self, padding: str) -> None:
        self.tokens += 1
        self.client.send_input(f"<{self.tokens}{padding}>")

    @precondition(unfinished)
    @rule(really=st.integers(0, 7))
    def close_input(self, really: int) -> None:
        if really == 5 or self.client.input_closed:
            self.client.close_input()

    # --- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def everything_is_bounded_and_input_arrives_in_order_and_once(self) -> None:
        if hasattr(self, "client"):
            self.client.check_bounds()
            self.client.check_deadlines()
            numbers = [int(number) for number in re.findall("<([0-9]+)[^0-9]", self.seen_input())]
            assert numbers == sorted(set(numbers))
