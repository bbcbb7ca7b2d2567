"""`protocol/tunnel_link.py`: wire protocol, section 5.6."""

from __future__ import annotations

import pytest

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.policy import Endpoint
from sandbox_aio.protocol.retry import Backoff
from sandbox_aio.protocol.tunnel_link import TunnelLink
from sandbox_aio.protocol.tunnel_states import LinkState
from sandbox_aio.protocol.websocket import Refused
from sandbox_aio.protocol.yamux_events import YamuxLimits

ENDPOINT = Endpoint(host="box", target="/tunnel", headers={"x-api-key": "k"})


def make(max_reconnects: int = 3) -> TunnelLink:
    return TunnelLink(
        ENDPOINT, max_reconnects=max_reconnects, limits=YamuxLimits(), backoff=Backoff(base=0.5, cap=8.0, spread=0.0)
    )


def established(max_reconnects: int = 3) -> TunnelLink:
    link = make(max_reconnects)
    link.want(0.0)
    link.begin()
    link.opened()
    return link


def test_the_first_connection_is_due_at_once_and_asks_for_the_tunnel() -> None:
    link = make()
    assert link.connect_at() is None
    link.want(5.0)
    link.want(6.0)
    assert link.connect_at() == 5.0
    assert link.connecting
    request = b"".join(link.begin().bytes_to_send())
    assert request.startswith(b"GET /tunnel HTTP/1.1\r\nHost: box\r\n")
    assert b"x-api-key: k\r\n" in request
    assert link.connect_at() is None
    assert link.connecting
    link.opened()
    assert link.connected
    assert not link.connecting
    assert (link.state, link.reconnects, link.failure) == (LinkState.OPEN, 0, None)


def test_a_first_connection_that_fails_is_not_tried_again() -> None:
    link = make()
    link.want(0.0)
    link.lost("nobody there", 1.0, chance=0.0)
    assert (link.state, link.failure, link.connect_at()) == (LinkState.IDLE, "nobody there", None)


def test_a_lost_connection_is_made_anew_only_when_it_is_wanted() -> None:
    link = established()
    link.lost("reset", 10.0, chance=0.0)
    assert link.connect_at() is None
    link.want(20.0)
    assert link.connect_at() == 20.0
    link.begin()
    link.opened()
    assert (link.reconnects, link.failure) == (1, None)


def test_the_waits_grow_and_the_tries_are_counted() -> None:
    link = established(max_reconnects=3)
    link.lost("reset", 10.0, chance=0.0)
    link.want(20.0)
    due = []
    while (at := link.connect_at()) is not None:
        due.append(at)
        link.begin()
        link.lost("refused", at, chance=0.0)
    assert due == [20.0, 20.5, 21.5]
    assert link.state is LinkState.IDLE
    link.want(30.0)  # another demand has all tries again
    assert link.connect_at() == 30.0


@pytest.mark.parametrize(("status", "again"), [(404, False), (401, False), (503, True), (429, True)])
def test_an_answer_that_will_not_change_ends_the_tries(status: int, again: bool) -> None:
    link = established()
    link.lost("reset", 10.0, chance=0.0)
    link.want(20.0)
    link.begin()
    refused = Refused(status=status, headers=(), body=b"")
    link.lost("refused", 20.0, chance=0.0, refused=refused)
    assert (link.connect_at() is not None) is again
    assert link.refused is refused


def test_without_reconnects_a_lost_tunnel_stays_lost() -> None:
    link = established(max_reconnects=0)
    link.lost("reset", 10.0, chance=0.0)
    with pytest.raises(LocalProtocolError, match="may not make another"):
        link.want(20.0)


def test_a_closed_tunnel_connects_no_more() -> None:
    link = established()
    link.close()
    link.close()
    link.lost("closed", 1.0, chance=0.0)
    assert link.state is LinkState.CLOSED
    with pytest.raises(LocalProtocolError, match="closed"):
        link.want(2.0)


def test_a_negative_number_of_reconnects_is_refused() -> None:
    with pytest.raises(ValueError, match="max_reconnects"):
        make(-1)
