"""Which headers cross between a client and a program in a sandbox."""

from __future__ import annotations

import pytest

from sandbox_aio.server.exchange import Head
from sandbox_aio.server.hosts import Host, ServiceHosts, ServiceTarget
from sandbox_aio.server.service_headers import Caller, ServiceForm, is_own_cookie, own_cookies

ID = "0d9c2f6e-5f35-4d57-9f0e-6f6a8f3f7c11"
HOST = f"{ID}--8000.localhost:9000"
PREFIX = f"/svc/{ID}/8000".encode()
CALLER = Caller(address="192.0.2.1", scheme="http", host=HOST)


def form(*, prefix: bytes = b"", embed_origins: tuple[str, ...] = ()) -> ServiceForm:
    return ServiceForm(
        port=8000, caller=CALLER, prefix=prefix, embed_origins=embed_origins, is_own_key=lambda key: key == b"own"
    )


def head(*headers: tuple[bytes, bytes]) -> Head:
    return Head(method=b"GET", path=b"/", query=b"", headers=headers, host=Host.parse(HOST.encode()))


def passed(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What reaches a program of the headers given, without what every request says."""
    usual = form().request(head(), websocket=False)
    return [field for field in form().request(head(*headers), websocket=False) if field not in usual]


def answered(*headers: tuple[bytes, bytes], prefix: bytes = b"", status: int = 200) -> list[tuple[bytes, bytes]]:
    usual = form(prefix=prefix).answer(status, [])
    return [field for field in form(prefix=prefix).answer(status, headers) if field not in usual]


@pytest.mark.parametrize(
    "name",
    [
        b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"upgrade", b"x-forwarded-for",
        b"x-forwarded-anything", b"x_forwarded_for", b"forwarded", b"x-real-ip", b"x-langsmith-user-id",
        b"x_langsmith_user_email", b"x-langsmith-user-token", b"x-langsmith-sandbox-service-token",
        b"x_langsmith_sandbox_service_token", b"x-sandbox-secret", b"proxy", b"x-original-url", b"x-rewrite-url",
        b"transfer_encoding", b"content_length", b"host", b"expect",
    ],
)  # fmt: skip
def test_what_a_program_is_not_told(name: bytes) -> None:
    assert passed((name, b"1"), (b"x-kept", b"2")) == [(b"x-kept", b"2")]


@pytest.mark.parametrize(
    "field",
    [
        (b"accept-encoding", b"br"), (b"authorization", b"Bearer theirs"), (b"authorization", b"Basic own"),
        (b"x-api-key", b"theirs"), (b"x_kept", b"1"), (b"user-agent", b"a"), (b"origin", b"http://x"),
        (b"content-length", b"0"), (b"transfer-encoding", b"chunked"),
    ],
)  # fmt: skip
def test_what_a_program_is_told(field: tuple[bytes, bytes]) -> None:
    assert passed(field) == [field]


def test_keys_of_the_server_are_not_a_programs() -> None:
    assert passed((b"x-api-key", b"own"), (b"authorization", b"bearer  own")) == []


def test_options_of_a_connection_go_no_further() -> None:
    fields = ((b"x-a", b"1"), (b"x-b", b"2"), (b"content-length", b"0"), (b"x-c", b"3"))
    kept = passed((b"connection", b"close, X-A, content-length, host"), (b"connection", b"x-b"), *fields)
    assert kept == [(b"content-length", b"0"), (b"x-c", b"3")]
    assert answered((b"connection", b"x-a, content-length"), *fields[:3]) == [(b"x-b", b"2"), (b"content-length", b"0")]


@pytest.mark.parametrize(
    ("cookies", "kept"),
    [
        (b"a=1; sandbox_aio_service=t; b=2", b"a=1; b=2"),
        (b"sandbox_aio_service=t", None),
        (b"__Host-sandbox_aio_service=t; a", b"a"),
        (b'a="x; sandbox_aio_service=t; y"', b'a="x; y"'),
        (b" ;; SANDBOX_AIO_service =t;=sandbox_aio_service=t;sandbox_aio_service", None),
        (b"x=sandbox_aio_service=t", b"x=sandbox_aio_service=t"),
    ],
)
def test_the_servers_cookies_are_not_a_programs(cookies: bytes, kept: bytes | None) -> None:
    assert passed((b"cookie", cookies)) == ([(b"cookie", kept)] if kept else [])


def test_several_cookies_of_the_server_are_found() -> None:
    found = own_cookies(head((b"cookie", b"n=1; m=0"), (b"cookie", b"n=2;n = 3; xn=4")), b"n")
    assert found == [b"1", b"2", b"3"]
    assert not is_own_cookie(b"sandbox=1")


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        (b"a=1; Domain=localhost; Path=/", b"a=1; Path=/"),
        (b"a=1;DOMAIN = .localhost;domain;HttpOnly", b"a=1;HttpOnly"),
        (b"sandbox_aio_service=evil", None),
        (b"__Host-Sandbox_aio_service=evil; Secure; Path=/", None),
        (b"=sandbox_aio_service=evil", None),
        (b" sandbox_aio_other=1", None),
        (b"__Host-a=1; Secure; Path=/", b"__Host-a=1; Secure; Path=/"),
    ],
)
def test_cookies_of_a_program_hold_for_its_host_alone(cookie: bytes, kept: bytes | None) -> None:
    assert answered((b"set-cookie", cookie)) == ([(b"set-cookie", kept)] if kept else [])
    assert answered((b"set-cookie", cookie), prefix=PREFIX) == []


@pytest.mark.parametrize(
    ("location", "in_host_form", "in_path_form"),
    [
        (b"/a?b#c", b"/a?b#c", PREFIX + b"/a?b#c"),
        (b"a/b", b"a/b", b"a/b"),
        (b"", b"", b""),
        (PREFIX + b"/a", PREFIX + b"/a", PREFIX + b"/a"),
        (b"http://localhost:8000/a", f"http://{HOST}/a".encode(), PREFIX + b"/a"),
        (b"HTTPS://127.0.0.1:8000", f"http://{HOST}/".encode(), PREFIX + b"/"),
        (b"http://[::1]:8000?x", f"http://{HOST}/?x".encode(), PREFIX + b"/?x"),
        (b"http://0.0.0.0:8000//evil.example/", f"http://{HOST}//evil.example/".encode(), PREFIX + b"//evil.example/"),
        (b"http://localhost:8001/a", b"http://localhost:8001/a", b"http://localhost:8001/a"),
        (b"http://localhost/a", b"http://localhost/a", b"http://localhost/a"),
        (b"http://localhost:8000.evil.example/", b"http://localhost:8000.evil.example/",
         b"http://localhost:8000.evil.example/"),
        (b"http://localhost:8000@evil.example/", b"http://localhost:8000@evil.example/",
         b"http://localhost:8000@evil.example/"),
        (b"//evil.example/", b"//evil.example/", b"//evil.example/"),
        (b"/\\evil.example/", b"/\\evil.example/", b"/\\evil.example/"),
        (b"https://elsewhere.example/", b"https://elsewhere.example/", b"https://elsewhere.example/"),
    ],
)  # fmt: skip
def test_redirects_lead_where_the_client_can_follow(location: bytes, in_host_form: bytes, in_path_form: bytes) -> None:
    for name in (b"location", b"content-location"):
        assert answered((name, location)) == [(name, in_host_form)]
        assert answered((name, location), prefix=PREFIX) == [(name, in_path_form)]


def test_a_port_of_the_scheme_need_not_be_named() -> None:
    plain = ServiceForm(port=80, caller=CALLER, is_own_key=lambda key: False)
    assert (b"location", f"http://{HOST}/a".encode()) in plain.answer(302, [(b"location", b"http://localhost/a")])


def test_policies_are_joined_and_none_is_weakened() -> None:
    app = [(b"content-security-policy", b"frame-ancestors 'none'"), (b"x-frame-options", b"DENY")]
    fields = form(embed_origins=("https://a.example", "https://b;script-src *")).answer(200, app)
    assert [value for name, value in fields if name == b"content-security-policy"] == [
        b"frame-ancestors 'none'",
        b"frame-ancestors 'none'",
        b"frame-ancestors 'self' https://a.example",
    ]
    assert b"x-frame-options" not in dict(fields)
    same = form().answer(200, [(b"x-frame-options", b"SameOrigin"), (b"cross-origin-resource-policy", b"cross-origin")])
    assert (b"content-security-policy", b"frame-ancestors 'self'") in same
    assert [value for name, value in same if name == b"cross-origin-resource-policy"] == [b"cross-origin"]
    assert answered((b"x-frame-options", b"ALLOW-FROM x")) == []
    assert answered((b"x-frame-options", b"DENY"), prefix=PREFIX) == [(b"x-frame-options", b"DENY")]


def test_what_reaches_beyond_a_programs_host_is_left_out() -> None:
    assert answered((b"clear-site-data", b'"cookies"'), (b"alt-svc", b"h2=x"), (b"upgrade", b"h2c")) == []
    assert answered((b"service-worker-allowed", b"/"), (b"nel", b"x"), prefix=PREFIX) == []
    assert answered((b"content-length", b"5"), (b"transfer-encoding", b"chunked"), status=204) == []


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_where_a_request_comes_from(address: str) -> None:
    caller = Caller(address=address, scheme="https", host="x")
    fields = dict(
        ServiceForm(port=1, caller=caller, prefix=b"/p", is_own_key=lambda key: False).request(head(), websocket=False)
    )
    assert fields[b"x-forwarded-for"].decode() == address
    assert fields[b"x-forwarded-proto"] == b"https"
    assert fields[b"x-forwarded-prefix"] == b"/p"
    node = f'"[{address}]"' if ":" in address else address
    assert fields[b"forwarded"].decode() == f'for={node};host="x";proto=https'
    assert fields[b"host"] == b"localhost:1"


def test_hosts() -> None:
    hosts = ServiceHosts("Apps.Example.:8080")
    assert hosts.find(Host.parse(f"{ID.upper()}--65535.apps.EXAMPLE.:1".encode())) == ServiceTarget(ID, 65535)
    for name in ("apps.example", "x.apps.example", f"{ID}--1.apps.example.org", f"{ID}--1.xapps.example", f"{ID}--1"):
        assert hosts.find(Host.parse(name.encode())) is None
    assert Host.parse(b"[::1]:80").origin("http") == "http://[::1]"
    assert Host.parse(b"X.").origin("https") == "https://x"
    assert Host.parse(b"x:80").origin("https") == "https://x:80"
