"""`protocol/upgrade.py`: the request, every kind of answer however it is cut, and the daemon's 101."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.utilities import generate_accept_token

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.upgrade import ClientUpgrade, Headers, Refused, UpgradeError, answer_upgrade
from tests.protocol.wire import UPGRADE
from tests.strategies import in_pieces

Answer = bytes | Refused | str | None


def upgrade(
    *,
    host: str = "box:8080",
    target: str = "/v2/execute/ws?x=1",
    headers: Headers = (),
    head: int = 300,
    body: int = 20,
) -> ClientUpgrade:
    return ClientUpgrade(host=host, target=target, headers=headers, max_head_bytes=head, max_refusal_bytes=body)


def headers_of(request: bytes) -> list[tuple[bytes, bytes]]:
    lines = request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


def read(client: ClientUpgrade, pieces: list[bytes]) -> Answer:
    """Feed pieces, then an EOF, until there is an answer. One that cannot be read is told as text."""
    rest = list(pieces)
    try:
        while rest:
            answer = client.receive_bytes(rest.pop(0))
            if isinstance(answer, bytes):
                return answer + b"".join(rest)
            if answer is not None:
                return answer
    except UpgradeError as exc:
        return str(exc)
    return client.receive_eof()


@pytest.mark.parametrize("header", [b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: x"])
def test_what_was_not_asked_for_is_not_accepted(header: bytes) -> None:
    client = upgrade()
    (key,) = [value for name, value in headers_of(client.request) if name == b"Sec-WebSocket-Key"]
    answer = accept_with(generate_accept_token(key) + b"\r\n" + header)
    assert read(client, [answer]) == (
        "the answer to the upgrade has an extension or a subprotocol that was not asked for"
    )


# --- the client's request --------------------------------------------------------------------------------------------


def test_the_request_is_what_the_protocol_asks_for_and_no_more() -> None:
    request = upgrade(headers=[(b"X-Api-Key", b"k\xe9y"), (b"x-empty", b"")]).request
    assert request.startswith(b"GET /v2/execute/ws?x=1 HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n")
    headers = headers_of(request)
    (key,) = [value for name, value in headers if name == b"Sec-WebSocket-Key"]
    assert len(key) == 24
    assert [(name, value) for name, value in headers if name != b"Sec-WebSocket-Key"] == [
        (b"Host", b"box:8080"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"X-Api-Key", b"k\xe9y"),
        (b"x-empty", b""),
    ]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8080", "a_b.example.com", "xn--mller-kva.de"])
def test_hosts_that_can_be_sent(host: str) -> None:
    assert (b"Host", host.encode()) in headers_of(upgrade(host=host).request)


@pytest.mark.parametrize("host", ["", "a b", "a\r\nx: y", "müller.de", "a/b", "user@host", "[::1"])
def test_hosts_that_cannot_be_sent(host: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be a Host header"):
        upgrade(host=host)


@pytest.mark.parametrize("target", ["", "x", "/a b", "/é", "/a\r\nx: y", "http://box/"])
def test_targets_that_cannot_be_sent(target: str) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be the target"):
        upgrade(target=target)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(b"", b"x"), (b"a b", b"x"), (b"a:", b"x"), (b"\xe9", b"x")],
        *[(b"x", b"a\r\nb"), (b"x", b"a\nb"), (b"x", b"\0"), (b"x", b" a"), (b"x", b"a "), (b"x", b"\x7f")],
        *[(b"Host", b"x"), (b"content-length", b"1"), (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c")],
        *[(b"connection", b"close"), (b"Sec-WebSocket-Extensions", b"permessage-deflate")],
    ],
)
def test_headers_that_cannot_be_sent(name: bytes, value: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent with a websocket's upgrade"):
        upgrade(headers=[(b"x-good", b"x"), (name, value)])


@given(st.text(max_size=10), st.text(max_size=10), st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5))))
def test_a_request_is_either_made_or_refused(host: str, target: str, headers: Headers) -> None:
    try:
        request = upgrade(host=host, target=f"/{target}", headers=headers).request
    except LocalProtocolError:
        return
    assert headers_of(request)[5:] == list(headers)


# --- the answer ------------------------------------------------------------------------------------------------------


def test_an_upgrade_that_succeeds_gives_what_came_behind_it() -> None:
    client = upgrade()
    assert client.receive_eof() is None
    answer = answer_upgrade(headers_of(client.request))
    assert client.receive_bytes(answer[:50]) is None
    assert client.receive_eof() is None
    assert client.receive_bytes(answer[50:] + b"\x81\0") == b"\x81\0"


REFUSALS = {
    "length": (b"HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nwait and more", b"wait"),
    "chunked": (b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n2\r\nwa\r\n2\r\nit\r\n0\r\n\r\n!", b"wait"),
    "until the end": (b"HTTP/1.1 503 Busy\r\n\r\nwait", b"wait"),
    "empty": (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\nno", b""),
    "without body": (b"HTTP/1.1 204 None\r\n\r\nno", b""),
    "informational": (b"HTTP/1.1 100 Continue\r\n\r\nno", b""),
    "cut off": (b"HTTP/1.1 500 Sorry\r\ncontent-length: 9\r\n\r\nwait", b"wait"),
    "bad chunks": (b"HTTP/1.1 500 Sorry\r\ntransfer-encoding: chunked\r\n\r\n2\r\nwa\r\nzz\r\n", b"wa"),
    "too long": (b"HTTP/1.1 404 No\r\ncontent-length: 99\r\n\r\n" + b"x" * 30, b"x" * 20),
    "exactly as long as allowed": (b"HTTP/1.1 404 No\r\n\r\n" + b"x" * 20, b"x" * 20),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_read_with_its_body(kind: str) -> None:
    stream, body = REFUSALS[kind]
    answer = read(upgrade(), [stream])
    assert isinstance(answer, Refused)
    assert (answer.status, answer.body) == (int(stream[9:12]), body)
    assert (b"retry-after", b"2") in answer.headers or b"retry-after" not in stream


def accept_with(token: bytes) -> bytes:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return head + b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"


NO_ANSWERS = [
    (b"HTTP/1.1 101 Go\r\n\r\n", "no upgrade to a websocket"),
    (b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\n\r\n", "no upgrade to a websocket"),
    (accept_with(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "does not bear our key"),
    (accept_with(b"x\r\nSec-WebSocket-Protocol: \0"), "an invalid header"),
    (accept_with(b"x\r\n folded"), "an invalid header"),
    (b"HTTP/9 what\r\n\r\n", "invalid: Bad HTTP message"),
    (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100, "oversized head"),
    (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300 + b"\r\n\r\n", "oversized head"),
    (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    (b"\x81\x02hi", "not HTTP"),
    (b"\x15\x03\x01\0\x02\x02\x46", "not HTTP"),
]


@pytest.mark.parametrize(("stream", "reason"), NO_ANSWERS)
def test_what_is_no_answer_is_told(stream: bytes, reason: str) -> None:
    answer = read(upgrade(), [stream])
    assert isinstance(answer, str)
    assert answer.startswith("the answer to the upgrade")
    assert reason in answer


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_a_head_may_be_as_long_as_the_bound(extra: int, fits: bool) -> None:
    head = b"HTTP/1.1 403 No\r\nx: " + b"y" * (300 - 24 + extra) + b"\r\n\r\n"
    for pieces in ([head + b"body"], [bytes((byte,)) for byte in head]):
        assert isinstance(read(upgrade(), pieces), Refused) == fits


_LINES = [b"\r\n", b"\n", b"x: y", b"content-length: 3", b"transfer-encoding: chunked", b"\xff", b"3"]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Draw answers of every kind above, and others that are as odd as can be."""
    known = [stream for stream, _ in [*REFUSALS.values(), *NO_ANSWERS]]
    head = b"HTTP/1.1 503 Busy\r\n" + b"".join(draw(st.lists(st.sampled_from(_LINES)))) + b"\r\n\r\n"
    return draw(st.sampled_from(known)) if draw(st.booleans()) else head + draw(st.binary(max_size=30))


@given(st.data(), answers())
def test_any_answer_at_all_means_the_same_however_it_is_cut(draw: st.DataObject, stream: bytes) -> None:
    assert read(upgrade(), draw.draw(in_pieces(stream))) == read(upgrade(), [stream])


# --- the daemon's 101 ------------------------------------------------------------------------------------------------


def test_the_101_bears_the_token_of_the_rfc() -> None:
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" in answer_upgrade(UPGRADE)


def test_names_and_tokens_are_read_without_regard_to_case_and_offers_are_not_taken() -> None:
    headers = [(name.title(), value) for name, value in UPGRADE if name not in (b"connection", b"upgrade")]
    headers += [(b"CONNECTION", b"keep-alive, UPGRADE"), (b"UpGrade", b"WebSocket")]
    headers += [(b"Sec-WebSocket-Extensions", b"permessage-deflate"), (b"Sec-WebSocket-Protocol", b"chat")]
    assert answer_upgrade(headers) == answer_upgrade(UPGRADE)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (b"connection", None, "no upgrade to a websocket"),
        (b"connection", b"keep-alive", "no upgrade to a websocket"),
        (b"upgrade", None, "no upgrade to a websocket"),
        (b"upgrade", b"h2c", "no upgrade to a websocket"),
        (b"sec-websocket-version", None, "not to version 13"),
        (b"sec-websocket-version", b"8", "not to version 13"),
        (b"sec-websocket-key", None, "no valid Sec-WebSocket-Key"),
        (b"sec-websocket-key", b"", "no valid Sec-WebSocket-Key"),
        (b"sec-websocket-key", b"short==", "no valid Sec-WebSocket-Key"),
        (b"sec-websocket-key", b"\xff" * 24, "no valid Sec-WebSocket-Key"),
    ],
)
def test_a_request_that_is_no_valid_upgrade_is_refused(name: bytes, value: bytes | None, reason: str) -> None:
    headers = [header for header in UPGRADE if header[0] != name] + ([(name, value)] if value is not None else [])
    with pytest.raises(LocalProtocolError, match=reason):
        answer_upgrade(headers)


def test_a_request_with_two_keys_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="no valid Sec-WebSocket-Key"):
        answer_upgrade([*UPGRADE, (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")])
