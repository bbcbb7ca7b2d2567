"""Tokens of people and signatures of callbacks: what is proven by the service's keys, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import jwt
import pytest
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from sandbox_aio import (
    CALLBACK_SIGNATURE_HEADER,
    USER_TOKEN_HEADER,
    SandboxCallback,
    SandboxCallbackIdentity,
    SandboxCallbackRequest,
    SandboxTokenVerificationError,
    SandboxTokenVerifier,
    SandboxUser,
)
from sandbox_aio.client import verifier as verifier_module
from tests.client.fake_service import FakeService, Reply, Request, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

ED = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
STRANGER = ed25519.Ed25519PrivateKey.generate()
KEYS: dict[str, tuple[Any, str]] = {"ed": (ED, "EdDSA"), "ec": (EC, "ES256"), "rsa": (RSA, "RS256")}
HOST = "box--80.services.example"
URL = "https://me.example/hook"
BODY = json.dumps({"host": "a.example", "port": 443, "identity": {"tenant_id": "t", "sandbox_id": "s"}}).encode()


def jwk(kid: str, *, alg: bool = True) -> dict[str, Any]:
    """The public half of a key, as a JSON Web Key."""
    key, algorithm = KEYS[kid]
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return found | {"kid": kid} | ({"alg": algorithm} if alg else {})


@attrs.define(eq=False)
class KeyServer:
    """Serves the keys."""

    reply: Reply = attrs.field(factory=lambda: Reply(json={"keys": [jwk("ed"), jwk("ec", alg=False), jwk("rsa")]}))
    fetched: int = 0

    async def __call__(self, request: Request) -> Reply:
        assert request.target == "/.well-known/jwks.json"
        self.fetched += 1
        return self.reply


@pytest.fixture
def keys() -> KeyServer:
    return KeyServer()


@pytest.fixture
async def server(keys: KeyServer) -> AsyncIterator[FakeService]:
    async with fake_service(keys) as running:
        yield running


@pytest.fixture
def verifier(server: FakeService) -> SandboxTokenVerifier:
    return SandboxTokenVerifier(api_url=f"{server.url}/api/v1")


def sign(claims: dict[str, Any], kid: str = "ed", *, key: Any = None, **header: Any) -> str:
    own, algorithm = KEYS.get(kid, (ED, "EdDSA"))
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key or own, algorithm=header.pop("alg", algorithm), headers={"kid": kid, **header})


def user_token(kid: str = "ed", *, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "https://api.example", "aud": HOST, "sub": "u1", "iat": now, "exp": now + 600}
    return sign(claims | changes, kid, key=key, **(header or {}))


def signature(body: bytes = BODY, kid: str = "ed", **changes: Any) -> str:
    digest = hashlib.sha256(body).hexdigest()
    now = int(time.time())
    claims = {"iss": "https://api.example", "aud": URL, "sub": "langsmith-sandbox-callback", "iat": now}
    return sign(claims | {"exp": now + 60, "body_sha256": digest} | changes, kid)


async def user(verifier: SandboxTokenVerifier, token: str, audience: str = HOST, issuer: str | None = None) -> Any:
    """What both forms of the method say, which must be the same."""
    there = await refusal_or(lambda: to_thread.run_sync(
        lambda: verifier.verify_user_token(token, audience=audience, issuer=issuer)))  # fmt: skip
    here = await refusal_or(lambda: verifier.averify_user_token(token, audience=audience, issuer=issuer))
    assert here == there
    return here


async def callback(verifier: SandboxTokenVerifier, signature: str, body: bytes = BODY, **options: Any) -> Any:
    there = await refusal_or(lambda: to_thread.run_sync(
        lambda: verifier.verify_callback(body=body, signature=signature, **options)))  # fmt: skip
    here = await refusal_or(lambda: verifier.averify_callback(body=body, signature=signature, **options))
    assert here == there
    return here


async def refusal_or(function: Any) -> Any:
    """The result, or the words of the refusal."""
    try:
        return await function()
    except SandboxTokenVerificationError as error:
        return str(error)


@pytest.mark.parametrize("kid", ["ed", "ec", "rsa"])
async def test_who_has_logged_in(verifier: SandboxTokenVerifier, keys: KeyServer, kid: str) -> None:
    expires = int(time.time()) + 100
    token = user_token(kid, email="a@b.example", name="A", exp=expires)
    found = await user(verifier, token)
    assert found == SandboxUser("u1", "a@b.example", "A", datetime.fromtimestamp(expires, UTC))
    assert await user(verifier, user_token(kid, email=1, exp=expires)) == attrs.evolve(found, email=None, name=None)
    assert keys.fetched == 1
    assert (USER_TOKEN_HEADER, CALLBACK_SIGNATURE_HEADER) == ("X-Langsmith-User-Token", "X-LangSmith-Signature-JWT")


async def test_audience_and_issuer(verifier: SandboxTokenVerifier) -> None:
    token = user_token(aud=["other", f"{HOST}:8443"])
    assert isinstance(await user(verifier, token, f"https://{HOST}:8443/x"), SandboxUser)
    for audience in (HOST, f"https://{HOST}", "", "https://"):
        assert "is for" in await user(verifier, token, audience)
    for issuer in ("https://api.example", "https://api.example/"):
        assert isinstance(await user(verifier, user_token(), issuer=issuer), SandboxUser)
    assert "issued by" in await user(verifier, user_token(), issuer="https://b.example")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sub": ""}, "not that of a person"),
        ({"sub": "langsmith-sandbox-callback"}, "not that of a person"),
        ({"sub": 3}, "ubject"),
        ({"sub": None}, 'missing the "sub" claim'),
        ({"aud": None}, 'missing the "aud" claim'),
        ({"aud": 3}, "is for 3"),
        ({"iss": None}, 'missing the "iss" claim'),
        ({"iat": None}, 'missing the "iat" claim'),
        ({"exp": None}, 'missing the "exp" claim'),
        ({"exp": 1_000_000_000}, "expired"),
        ({"iat": 4_000_000_000}, "not yet valid"),
        ({"nbf": 4_000_000_000}, "not yet valid"),
    ],
)
async def test_claims_that_do_not_do(verifier: SandboxTokenVerifier, changes: dict[str, Any], words: str) -> None:
    assert words in await user(verifier, user_token(**changes))


async def test_clocks_may_differ_a_little(verifier: SandboxTokenVerifier) -> None:
    now = int(time.time())
    assert isinstance(await user(verifier, user_token(exp=now - 20, iat=now - 600)), SandboxUser)
    assert isinstance(await user(verifier, user_token(iat=now + 20)), SandboxUser)
    assert "expired" in await user(verifier, user_token(exp=now - 40))


async def test_what_the_service_has_not_signed(verifier: SandboxTokenVerifier, keys: KeyServer) -> None:
    good = user_token()
    claims = jwt.decode(good, options={"verify_signature": False})
    public = jwk("ed")["x"].encode()
    bad = [
        "", "x", "a.b.c", good[:-8], good + "x", "x" * 20_000,
        user_token(key=STRANGER),
        user_token(key=EC, header={"alg": "ES256"}),
        sign(claims, "ec", key=ED, alg="EdDSA"),
        sign(claims, "rsa", key=ED, alg="EdDSA"),
        jwt.encode(claims, "", algorithm="none", headers={"kid": "ed"}),
        jwt.encode(claims, public, algorithm="HS256", headers={"kid": "ed"}),
        jwt.encode(claims, ED, algorithm="EdDSA"),
        jwt.encode(claims, ED, algorithm="EdDSA", headers={"kid": ""}),
        sign(claims, "unknown"),
    ]  # fmt: skip
    for token in bad:
        assert isinstance(await user(verifier, token), str), token
    assert keys.fetched == 1
    assert isinstance(await user(verifier, good), SandboxUser)


async def test_a_shared_secret_is_no_key(verifier: SandboxTokenVerifier, keys: KeyServer) -> None:
    keys.reply = Reply(json={"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "ed"}, {"kid": "ec", "kty": "EC"}]})
    for kid in ("ed", "ec"):
        assert "not valid" in await user(verifier, user_token(kid))


async def test_keys_are_fetched_as_rarely_as_may_be(
    verifier: SandboxTokenVerifier, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    shift = 0.0
    monkeypatch.setattr(verifier_module, "time", SimpleNamespace(monotonic=lambda: now + shift))
    assert isinstance(await user(verifier, user_token()), SandboxUser)
    shift = 29
    assert "no key 'new'" in await user(verifier, user_token("new"))
    assert keys.fetched == 1
    shift = 30
    keys.reply = Reply(json={"keys": [jwk("ed") | {"kid": "new"}]})
    assert isinstance(await user(verifier, user_token("new")), SandboxUser)
    assert keys.fetched == 2
    assert "no key 'ed'" in await user(verifier, user_token())
    shift = 330
    keys.reply = Reply(status=500)
    assert "answered 500" in await user(verifier, user_token("new"))
    keys.reply = Reply(json={"keys": [jwk("ed")]})
    assert isinstance(await user(verifier, user_token()), SandboxUser)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=b"<html>"), "JSON Web Key Set"),
        (Reply(status=302, headers={"location": "/x"}), "answered 302"),
        (Reply(body=b"x" * (1024 * 1024 + 1)), "longer than 1048576 bytes"),
        (Reply(raw=b""), "could not fetch"),
        (Reply(body=b"{}", cut_after=1), "could not fetch"),
    ],
)
async def test_keys_that_are_not_to_be_had(
    verifier: SandboxTokenVerifier, keys: KeyServer, reply: Reply, words: str
) -> None:
    keys.reply = reply
    with pytest.raises(SandboxTokenVerificationError, match=words):
        await verifier.averify_user_token(user_token(), audience=HOST)
    with pytest.raises(SandboxTokenVerificationError, match=words):
        await to_thread.run_sync(lambda: verifier.verify_user_token(user_token(), audience=HOST))


async def test_a_callback(verifier: SandboxTokenVerifier) -> None:
    plain = SandboxCallback("a.example", 443, SandboxCallbackIdentity("t", "s"))
    assert await callback(verifier, signature()) == plain
    assert await callback(verifier, signature(), aud=URL, issuer="https://api.example") == plain
    assert await callback(verifier, signature(), aud=lambda url: url.startswith("https://me.")) == plain
    request: dict[str, Any] = {
        "method": "GET",
        "url": "u",
        "scheme": "https",
        "host": "h",
        "path": "/",
        "headers": {"a": ["b", "c"]},
    }
    body = json.dumps(
        {**json.loads(BODY), "request": {**request, "body_base64": "eA==", "body_truncated": True}}
    ).encode()
    assert await callback(verifier, signature(body), body) == attrs.evolve(
        plain,
        request=SandboxCallbackRequest(
            "GET", "u", "https", "h", "/", headers={"a": ["b", "c"]}, body_base64="eA==", body_truncated=True
        ),
    )


async def test_callbacks_that_are_refused(verifier: SandboxTokenVerifier) -> None:
    assert "another body" in await callback(verifier, signature(), BODY + b" ")
    assert "another body" in await callback(verifier, signature(body_sha256="é"))
    assert "is for" in await callback(verifier, signature(), aud=URL + "/")
    assert "is for" in await callback(verifier, signature(), aud=lambda _: False)
    assert "issued by" in await callback(verifier, signature(), issuer="x")
    assert "not that of a callback" in await callback(verifier, signature(sub="u1"))
    assert "not one of" in await callback(verifier, signature(kid="rsa"))
    assert 'missing the "body_sha256" claim' in await callback(verifier, signature(body_sha256=None))
    for body in (b"", b"[]", b"{}", b'{"host": "h", "port": 1}', b'{"host": "h", "port": 1, "identity": 3}'):
        assert "cannot be read" in await callback(verifier, signature(body), body)
    assert "not that of a person" in await user(verifier, signature(aud=HOST))


def test_urls_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "https://a.example/api")
    assert "https://a.example/.well-known/jwks.json" in repr(SandboxTokenVerifier())
    with pytest.raises(ValueError, match="not https"):
        SandboxTokenVerifier(jwks_url="http://a.example/keys")
    SandboxTokenVerifier(jwks_url="http://a.example/keys", allow_insecure_jwks=True)
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ImportError, match=r"sandbox-aio\[auth\]"):
        SandboxTokenVerifier()
