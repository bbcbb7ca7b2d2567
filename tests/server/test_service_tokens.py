"""Tokens for services and download links: which are good, which are not, and what a restart leaves of them."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import jwt
import pytest

from sandbox_aio.server import grants, signing_keys
from sandbox_aio.server.service_tokens import (
    MAX_LIFETIME,
    DownloadGrant,
    ServiceAuthority,
    ServiceGrant,
    TokenError,
    TokenTooLongError,
)

if TYPE_CHECKING:
    from pathlib import Path

ID = "0b0f1a4e-6f0e-4c3a-9d53-2f6a3a1f0c11"
HOST = f"{ID}--8000.localhost"
START = 1_800_000_000.5


@attrs.define
class Clock:
    """Seconds since the epoch, that pass when told."""

    time: float = START

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> ServiceAuthority:
    return ServiceAuthority(tmp_path, now=clock)


def mint(authority: ServiceAuthority, **members: Any) -> str:
    wanted = {"sandbox_id": ID, "port": 8000, "audience": HOST, "expires_in": 600}
    return authority.mint(**{**wanted, **members}).token


def kind_of(authority: ServiceAuthority, token: str, *, sandbox_id: str = ID, port: int = 8000) -> str:
    """Why a token is refused."""
    with pytest.raises(TokenError) as caught:
        authority.verify(token, sandbox_id=sandbox_id, port=port)
    return caught.value.kind


def refused_link(authority: ServiceAuthority, token: str) -> str:
    with pytest.raises(TokenError) as caught:
        authority.verify_download(token)
    return caught.value.kind


def test_a_token_is_for_one_port_until_it_expires(authority: ServiceAuthority, clock: Clock) -> None:
    minted = authority.mint(
        sandbox_id=ID, port=8000, audience=HOST, expires_in=600, embed_origins=["https://a.example"]
    )
    assert minted.token not in repr(minted)
    assert minted.expires_at == datetime.fromtimestamp(int(START) + 601, UTC)
    grant = authority.verify(minted.token, sandbox_id=ID, port=8000)
    assert grant == ServiceGrant(
        sandbox_id=ID, port=8000, expires_at=minted.expires_at, embed_origins=("https://a.example",)
    )
    assert kind_of(authority, minted.token, port=8001) == "invalid"
    assert kind_of(authority, minted.token, sandbox_id=ID[:-1] + "2") == "invalid"
    clock.time = START + 600
    authority.verify(minted.token, sandbox_id=ID, port=8000)
    clock.time = int(START) + 601
    assert kind_of(authority, minted.token) == "expired"


def test_claims_can_be_checked_with_the_key_set_alone(authority: ServiceAuthority) -> None:
    token = mint(authority, issuer="http://localhost:8700")
    keys = jwt.PyJWKSet.from_dict(authority.jwks())
    kid = jwt.get_unverified_header(token)["kid"]
    claims = jwt.decode(
        token, keys[kid], algorithms=["EdDSA"], audience=HOST, options={"verify_exp": False, "verify_iat": False}
    )
    assert (claims["iss"], claims["sub"], claims["port"]) == ("http://localhost:8700", ID, 8000)
    assert "d" not in authority.jwks()["keys"][0]


def test_revoking_ends_all_tokens_of_one_port(authority: ServiceAuthority) -> None:
    first, second, other = mint(authority), mint(authority), mint(authority, port=8001)
    authority.revoke(ID, 9999)
    authority.verify(first, sandbox_id=ID, port=8000)
    authority.revoke(ID, 8000)
    assert [kind_of(authority, token) for token in (first, second)] == ["revoked", "revoked"]
    authority.verify(other, sandbox_id=ID, port=8001)
    authority.verify(mint(authority), sandbox_id=ID, port=8000)
    assert kind_of(authority, first) == "revoked"


def test_what_is_listed(authority: ServiceAuthority, clock: Clock) -> None:
    assert authority.grants(ID) == []
    mint(authority, expires_in=600)
    clock.time += 60
    mint(authority, expires_in=60, embed_origins=["https://a.example"])
    mint(authority, port=80, expires_in=10)
    ports = authority.grants(ID)
    assert [port for port, _ in ports] == [80, 8000]
    grant = ports[1][1]
    assert grant.embed_origins == ("https://a.example",)
    assert (grant.expires_at - grant.created_at).total_seconds() == pytest.approx(600, abs=1)
    clock.time += 11
    assert [port for port, _ in authority.grants(ID)] == [8000]


def test_a_restart_changes_nothing(tmp_path: Path, authority: ServiceAuthority, clock: Clock) -> None:
    token, revoked = mint(authority), mint(authority, port=1)
    authority.revoke(ID, 1)
    link = authority.mint_download(sandbox_id=ID, path="/a").token
    again = ServiceAuthority(tmp_path, now=clock)
    again.load()
    again.verify(token, sandbox_id=ID, port=8000)
    assert kind_of(again, revoked, port=1) == "revoked"
    assert again.verify_download(link).path == "/a"
    assert again.jwks() == authority.jwks()
    assert again.grants(ID) == authority.grants(ID)


def test_files_are_for_their_owner_alone(tmp_path: Path, authority: ServiceAuthority) -> None:
    mint(authority)
    authority.mint_download(sandbox_id=ID, path="/a")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [f"{ID}.json", "services.json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in files} == {0o700}


def test_keys_are_replaced_and_kept_for_as_long_as_their_tokens(authority: ServiceAuthority, clock: Clock) -> None:
    token = mint(authority, expires_in=MAX_LIFETIME)
    authority.rotate()
    fresh = mint(authority)
    assert len(authority.jwks()["keys"]) == 2
    assert jwt.get_unverified_header(token)["kid"] != jwt.get_unverified_header(fresh)["kid"]
    clock.time = START + MAX_LIFETIME - 1
    authority.verify(token, sandbox_id=ID, port=8000)
    clock.time = START + MAX_LIFETIME + 1
    assert len(authority.jwks()["keys"]) == 1
    assert kind_of(authority, token) == "invalid"  # no longer known, and expired in any case
    assert kind_of(authority, fresh) == "expired"


def test_a_key_signs_only_for_so_long(tmp_path: Path, authority: ServiceAuthority, clock: Clock) -> None:
    first = jwt.get_unverified_header(mint(authority))["kid"]
    clock.time += signing_keys.ROTATE_AFTER - 1
    assert jwt.get_unverified_header(mint(authority))["kid"] == first
    clock.time += 1
    second = jwt.get_unverified_header(mint(authority))["kid"]
    assert second != first
    kept = (tmp_path / "keys" / "services.json").read_text()
    assert json.loads(kept)["retired"][0].keys() == {"kid", "public", "retired_at"}
    assert jwt.get_unverified_header(mint(ServiceAuthority(tmp_path, now=clock)))["kid"] == second


def test_keys_are_counted(authority: ServiceAuthority) -> None:
    for _ in range(signing_keys.MAX_KEYS + 5):
        authority.rotate()
    assert len(authority.jwks()["keys"]) == signing_keys.MAX_KEYS


def test_a_cookie_is_not_a_token_nor_a_token_a_cookie(authority: ServiceAuthority, clock: Clock) -> None:
    token = mint(authority, embed_origins=["https://a.example"])
    cookie = authority.mint_cookie(token, sandbox_id=ID, port=8000)
    grant = authority.verify_cookie(cookie.token, sandbox_id=ID, port=8000)
    assert grant == authority.verify(token, sandbox_id=ID, port=8000)
    assert cookie.expires_at == grant.expires_at
    assert kind_of(authority, cookie.token) == "invalid"
    with pytest.raises(TokenError):
        authority.verify_cookie(token, sandbox_id=ID, port=8000)
    with pytest.raises(TokenError):
        authority.mint_cookie(cookie.token, sandbox_id=ID, port=8000)
    authority.revoke(ID, 8000)
    with pytest.raises(TokenError, match="revoked"):
        authority.verify_cookie(cookie.token, sandbox_id=ID, port=8000)


def forged(token: str, *, header: dict[str, Any] | None = None, claims: dict[str, Any] | None = None) -> str:
    """The token with something else in it and the signature that it had."""
    parts = token.split(".")
    for index, members in enumerate((header, claims)):
        if members is not None:
            known = json.loads(base64.urlsafe_b64decode(parts[index] + "=="))
            parts[index] = base64.urlsafe_b64encode(json.dumps({**known, **members}).encode()).rstrip(b"=").decode()
    return ".".join(parts)


def test_tokens_that_nobody_here_signed(authority: ServiceAuthority, clock: Clock, tmp_path: Path) -> None:
    token = mint(authority)
    public = authority.jwks()["keys"][0]
    kid = public["kid"]
    claims = jwt.decode(token, options={"verify_signature": False})
    header = {"typ": "sandbox-service+jwt", "kid": kid}
    own = ServiceAuthority(tmp_path / "elsewhere", now=clock)
    bad = [
        "", ".", "..", "a.b.c", "\xff", "é.é.é", token + "x", token[:-4], token.rpartition(".")[0] + ".",
        token * 10,
        forged(token, claims={"exp": 2 * START}),
        forged(token, claims={"port": 8001}),
        forged(token, header={"kid": "another"}),
        forged(token, header={"kid": 7}),
        forged(token, header={"alg": "none"}),
        forged(token, header={"alg": "HS256"}),
        forged(token, header={"crit": ["x"]}),
        jwt.encode(claims, "", algorithm="none", headers=header),
        # The public key taken for a shared secret: the classic confusion of algorithms.
        jwt.encode(claims, base64.urlsafe_b64decode(public["x"] + "="), algorithm="HS256", headers=header),
        mint(own),
        authority.mint_download(sandbox_id=ID, path="/a").token,
        "[" * 3000 + "." + "x.x",
    ]  # fmt: skip
    assert {kind_of(authority, each) for each in bad} == {"invalid"}
    assert {refused_link(authority, each) for each in [*bad[:-2], token]} == {"invalid"}
    authority.verify(token, sandbox_id=ID, port=8000)


def test_what_cannot_be_minted(authority: ServiceAuthority) -> None:
    with pytest.raises(ValueError, match="at most 86400 s"):
        mint(authority, expires_in=MAX_LIFETIME + 1)
    with pytest.raises(TokenTooLongError):
        mint(authority, embed_origins=["https://" + "a" * 3000])
    for port in range(1, grants.MAX_PORT_GRANTS + 1):
        authority._book._entries.setdefault(ID, grants._Entry()).ports[port] = grants.PortGrant(
            id="x",
            created_at=datetime.fromtimestamp(START, UTC),
            expires_at=datetime.fromtimestamp(START + 10, UTC),
        )
    mint(authority, port=1)
    with pytest.raises(ValueError, match="ports of this sandbox"):
        mint(authority, port=8000)


def test_a_link_leads_to_one_path(authority: ServiceAuthority, clock: Clock) -> None:
    plain = authority.mint_download(sandbox_id=ID, path="/a/ü b")
    assert plain.expires_at is None
    assert authority.verify_download(plain.token) == DownloadGrant(sandbox_id=ID, path="/a/ü b")
    full = authority.mint_download(
        sandbox_id=ID,
        path="/a",
        expires_in=60,
        content_type="text/html",
        content_disposition="inline",
        csp_sandbox_flags=["allow-scripts"],
    )
    assert authority.verify_download(full.token) == DownloadGrant(
        sandbox_id=ID,
        path="/a",
        content_type="text/html",
        content_disposition="inline",
        csp_sandbox_flags=("allow-scripts",),
        expires_at=full.expires_at,
    )
    clock.time += 61
    assert refused_link(authority, full.token) == "expired"
    clock.time += 10 * 365 * 24 * 3600
    authority.rotate()
    authority.verify_download(plain.token)
    with pytest.raises(TokenTooLongError):
        authority.mint_download(sandbox_id=ID, path="/" + "x" * 8000)


def test_a_link_of_one_sandbox_is_none_of_another(authority: ServiceAuthority) -> None:
    other = ID[:-1] + "2"
    link = authority.mint_download(sandbox_id=ID, path="/a").token
    authority.mint_download(sandbox_id=other, path="/a")
    assert refused_link(authority, forged(link, header={"kid": other})) == "invalid"
    key = authority._book.download_key(other)
    header = {"typ": "sandbox-download+jwt", "kid": other}
    claims = {"sub": ID, "path": "/a"}
    assert refused_link(authority, jwt.encode(claims, key, algorithm="HS256", headers=header)) == "invalid"


def test_a_sandbox_takes_everything_with_it(tmp_path: Path, authority: ServiceAuthority) -> None:
    token, link = mint(authority), authority.mint_download(sandbox_id=ID, path="/a").token
    authority.forget(ID)
    authority.forget(ID)
    assert (kind_of(authority, token), refused_link(authority, link)) == ("revoked", "invalid")
    assert os.listdir(tmp_path / "grants") == []


def test_what_went_while_nobody_served_is_forgotten(tmp_path: Path, authority: ServiceAuthority) -> None:
    other = ID[:-1] + "2"
    kept, gone = mint(authority), mint(authority, sandbox_id=other)
    authority.retain([ID])
    authority.verify(kept, sandbox_id=ID, port=8000)
    assert kind_of(authority, gone, sandbox_id=other) == "revoked"
    assert os.listdir(tmp_path / "grants") == [f"{ID}.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"ports": {"x": 1}}', b'{"signing": {}, "retired": []}'])
def test_damaged_files_are_named(tmp_path: Path, authority: ServiceAuthority, clock: Clock, content: bytes) -> None:
    mint(authority)
    for path in ("keys/services.json", f"grants/{ID}.json"):
        good = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(content)
        with pytest.raises(ValueError, match=path):
            ServiceAuthority(tmp_path, now=clock).load()
        (tmp_path / path).write_bytes(good)
    ServiceAuthority(tmp_path, now=clock).load()


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.mkdir()
    with pytest.raises(OSError, match="irectory"):
        grants.write_private(target, b"x")
    assert os.listdir(tmp_path) == ["there"]
