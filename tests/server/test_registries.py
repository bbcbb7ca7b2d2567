"""Registries of images and their credentials. Wire protocol, section 1.11."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.images.access import Credentials, RegistryAccess
from sandbox_aio.server.database import Database
from sandbox_aio.server.errors import ApiError
from sandbox_aio.server.registries import ImageRegistry, RegistryBook, registry_host
from sandbox_aio.server.registry_requests import MAX_SECRET, RegistryChange
from sandbox_aio.server.secrets import SecretBox, SecretError

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from sandbox_aio.server.serve import Ready

pytestmark = pytest.mark.anyio

PASSWORD = "a secret that nobody may read"


async def create(http: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    body = {"name": "ours", "url": "https://registry.example.com", **members}
    answer = await http.post("/registries", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_registry_is_made_read_changed_and_deleted(http: httpx.AsyncClient) -> None:
    made = await create(http, username="alice", password=PASSWORD, auth_type="DOCKER_CONFIG")
    assert made.keys() == {
        "id", "name", "url", "auth_type", "aws_role_arn", "provider", "repository_search_mode", "created_at",
        "created_by", "updated_at", "updated_by",
    }  # fmt: skip
    assert (made["auth_type"], made["provider"], made["repository_search_mode"]) == (
        "DOCKER_CONFIG",
        "DOCKER_REGISTRY",
        "GLOBAL",
    )
    for reference in ("ours", made["id"], made["id"].upper()):
        assert (await http.get(f"/registries/{reference}")).json() == made
    changed = (await http.patch("/registries/ours", json={"name": "a/b c"})).json()
    assert (changed["name"], changed["url"], changed["id"]) == ("a/b c", made["url"], made["id"])
    assert changed["updated_at"] > made["updated_at"]
    assert (await http.get("/registries/a%2Fb%20c")).json() == changed
    assert (await http.delete("/registries/a%2Fb%20c")).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        answer = await http.request(method, "/registries/ours")
        assert (answer.status_code, answer.json()["detail"]["error"]) == (404, "RegistryNotFound")


async def test_both_prefixes_lead_to_them(http: httpx.AsyncClient, ready: Ready) -> None:
    made = await create(http)
    other = f"{ready.url}/v2/sandboxes/registries/ours"
    assert (await http.get(other)).json() == made


async def test_a_name_is_given_once(http: httpx.AsyncClient) -> None:
    await create(http)
    await create(http, name="theirs")
    again = await http.post("/registries", json={"name": "ours", "url": "https://x.example.com"})
    assert (again.status_code, again.json()["detail"]["error"]) == (409, "ResourceNameConflict")
    assert (await http.patch("/registries/theirs", json={"name": "ours"})).status_code == 409
    assert (await http.patch("/registries/theirs", json={"name": "theirs"})).status_code == 200


async def test_lists_come_in_pages_and_hold_no_secret(http: httpx.AsyncClient) -> None:
    for number in range(5):
        await create(http, name=f"r-{number}", username="alice", password=PASSWORD)
    await create(http, name="other")
    seen: list[str] = []
    asked = {"page_size": "2", "name_contains": "r-"}
    while True:
        answer = await http.get("/registries", params=asked)
        assert PASSWORD not in answer.text
        assert "alice" not in answer.text
        page = answer.json()
        assert page["items"] == page["registries"]
        seen += [registry["name"] for registry in page["items"]]
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]
    assert seen == [f"r-{number}" for number in range(5)]
    page = (await http.get("/registries?limit=1&offset=1")).json()
    assert (page["items"][0]["name"], page["offset"]) == ("r-0", 2)
    assert (await http.get("/registries?cursor=!")).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"url": "https://x.example.com"}, 422, "name"),
        ({"name": "x"}, 422, "url"),
        ({"name": "", "url": "https://x.example.com"}, 422, "name"),
        ({"name": "8b3c0a52-3e0a-5d0e-9e51-0a4f3b1f7d10", "url": "https://x.example.com"}, 422, "name"),
        ({"name": "x", "url": "ftp://x.example.com"}, 422, "url"),
        ({"name": "x", "url": "https://alice:pw@x.example.com"}, 422, "url"),
        ({"name": "x", "url": "https://x.example.com?a=b"}, 422, "url"),
        ({"name": "x", "url": "https://x.example.com/ y"}, 422, "url"),
        ({"name": "x", "url": "https://"}, 422, "url"),
        ({"name": "x", "url": "http://x.example.com"}, 422, "--registry-insecure x.example.com"),
        ({"name": "x", "url": "https://x.example.com", "username": "alice"}, 422, "password"),
        ({"name": "x", "url": "https://x.example.com", "password": "pw"}, 422, "username"),
        ({"name": "x", "url": "https://x.example.com", "username": "a:b", "password": "pw"}, 422, "username"),
        ({"name": "x", "url": "https://x.example.com", "username": "a", "password": "p\r\nw"}, 422, "password"),
        ({"name": "x", "url": "https://x.example.com", "password": "p" * (MAX_SECRET + 1)}, 422, "password"),
        ({"name": "x", "url": "https://x.example.com", "auth_type": "MAGIC"}, 422, "auth_type"),
        ({"name": "x", "url": "https://x.example.com", "auth_type": "AWS_ROLE"}, 501, "AWS roles"),
        ({"name": "x", "url": "https://x.example.com", "aws_role_arn": "arn:aws:iam::1:role/x"}, 501, "AWS roles"),
        ({"name": "x", "url": "https://x.example.com", "token": "t"}, 422, "token"),
        ([], 400, "not a JSON object"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(http: httpx.AsyncClient, body: Any, status: int, named: str) -> None:
    answer = await http.post("/registries", json=body)
    assert answer.status_code == status, answer.text
    assert named in answer.text
    assert "pw" not in answer.text
    assert (await http.get("/registries")).json()["items"] == []


@pytest.mark.parametrize(
    ("url", "host", "provider", "search"),
    [
        ("https://index.docker.io/v1/", "docker.io", "DOCKER_HUB", "NONE"),
        ("docker.io", "docker.io", "DOCKER_HUB", "NONE"),
        ("https://GHCR.io", "ghcr.io", "GHCR", "NONE"),
        ("https://1234.dkr.ecr.eu-west-1.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com", "ECR", "GLOBAL"),
        ("https://europe-docker.pkg.dev/project/images", "europe-docker.pkg.dev", "GAR", "SCOPED"),
        ("https://harbor.example.com", "harbor.example.com", "HARBOR", "SCOPED"),
        ("127.0.0.1:5000", "127.0.0.1:5000", "DOCKER_REGISTRY", "GLOBAL"),
        ("https://[::1]:5000/", "[::1]:5000", "DOCKER_REGISTRY", "GLOBAL"),
        ("https://registry", "registry:443", "DOCKER_REGISTRY", "GLOBAL"),
    ],
)
def test_the_host_and_the_provider_are_read_from_the_url(url: str, host: str, provider: str, search: str) -> None:
    registry = ImageRegistry(id="i", name="n", url=url)
    assert registry_host(url) == (host, False)
    assert (registry.host, registry.provider, registry.repository_search_mode) == (host, provider, search)


async def a_book(path: Path | None, key: Path | None, access: RegistryAccess | None = None) -> RegistryBook:
    book = RegistryBook(access or RegistryAccess())
    await book.open(await Database.open(path), SecretBox(key))
    return book


async def close(book: RegistryBook) -> None:
    await book._database.aclose()


async def test_secrets_are_sealed_on_disk_and_open_after_a_restart(tmp_path: Path) -> None:
    path, key = tmp_path / "server.db", tmp_path / "registry-key"
    book = await a_book(path, key)
    wanted = RegistryChange(name="ours", url="https://x.example.com", username="alice-in-it", password=PASSWORD)
    assert PASSWORD not in repr(wanted)
    made = await book.create(wanted)
    assert PASSWORD not in repr(made)
    await close(book)
    assert key.stat().st_mode & 0o777 == 0o600
    for file in tmp_path.iterdir():
        assert PASSWORD.encode() not in file.read_bytes()
        assert b"alice-in-it" not in file.read_bytes()
    book = await a_book(path, key)
    assert book.credentials(made.id, "x.example.com") == Credentials("alice-in-it", PASSWORD)
    assert book.credentials("ours", "x.example.com") == Credentials("alice-in-it", PASSWORD)
    await close(book)


async def test_a_lost_key_is_said_and_credentials_can_be_given_anew(tmp_path: Path) -> None:
    path, key = tmp_path / "server.db", tmp_path / "registry-key"
    book = await a_book(path, key)
    wanted = RegistryChange(name="ours", url="https://x.example.com", username="alice", password=PASSWORD)
    made = await book.create(wanted)
    await close(book)
    key.unlink()
    book = await a_book(path, key)
    with pytest.raises(ApiError, match="cannot be read: it was sealed with another key") as caught:
        book.credentials(made.id, "x.example.com")
    assert caught.value.status == 400
    await book.update("ours", RegistryChange(username="alice", password="new"))
    assert book.credentials(made.id, "x.example.com") == Credentials("alice", "new")
    await close(book)
    key.write_bytes(b"short")
    with pytest.raises(ValueError, match="not a key for secrets"):
        SecretBox(key)


async def test_a_secret_opens_for_its_registry_alone(tmp_path: Path) -> None:
    """Somebody who may write the database, and not read the key, cannot have one registry's password sent elsewhere."""
    path, key = tmp_path / "server.db", tmp_path / "registry-key"
    book = await a_book(path, key)
    ours = await book.create(RegistryChange(name="ours", url="https://x.example.com", username="a", password="p"))
    theirs = await book.create(RegistryChange(name="theirs", url="https://evil.example.com"))
    await close(book)
    with sqlite3.connect(path) as database:
        row = database.execute("SELECT record FROM registries WHERE id = ?", (ours.id,)).fetchone()[0]
        moved = row.replace(ours.id, theirs.id).replace("x.example.com", "evil.example.com")
        database.execute("UPDATE registries SET record = ? WHERE id = ?", (moved, theirs.id))
    database.close()
    book = await a_book(path, key)
    with pytest.raises(ApiError, match="cannot be read"):
        book.credentials(theirs.id, "evil.example.com")
    await close(book)


async def test_credentials_are_for_their_own_host() -> None:
    book = await a_book(None, None)
    made = await book.create(RegistryChange(name="ours", url="https://x.example.com", username="a", password="p"))
    with pytest.raises(ApiError, match=r"is at x\.example\.com, and the image is at docker\.io") as caught:
        book.credentials(made.id, "docker.io")
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="no registry 'other'") as caught:
        book.credentials("other", "docker.io")
    assert caught.value.status == 400
    await close(book)


async def test_credentials_do_not_move_to_another_host() -> None:
    book = await a_book(None, None)
    await book.create(RegistryChange(name="ours", url="https://x.example.com", username="a", password="p"))
    with pytest.raises(ApiError, match=r"the credentials are for x\.example\.com"):
        await book.update("ours", RegistryChange(url="https://evil.example.com"))
    with pytest.raises(ApiError, match=r"the credentials are for x\.example\.com"):
        await book.update("ours", RegistryChange(url="https://evil.example.com", username="b"))
    assert book.credentials("ours", "x.example.com") == Credentials("a", "p")
    await book.update("ours", RegistryChange(url="https://X.example.com/v2/"))
    assert book.credentials("ours", "x.example.com") == Credentials("a", "p")
    await book.update("ours", RegistryChange(password="q"))
    assert book.credentials("ours", "x.example.com") == Credentials("a", "q")
    await book.update("ours", RegistryChange(url="https://y.example.com", username="b", password="r"))
    assert book.credentials("ours", "y.example.com") == Credentials("b", "r")
    await book.update("ours", RegistryChange(username="", password=""))
    assert book.credentials("ours", "y.example.com") is None
    await close(book)


async def test_plain_http_is_the_operators_to_allow() -> None:
    book = await a_book(None, None, RegistryAccess(insecure=frozenset(("x.example.com",))))
    await book.create(RegistryChange(name="ours", url="http://x.example.com"))
    await book.create(RegistryChange(name="local", url="http://127.0.0.1:5000"))
    with pytest.raises(ApiError, match="plain HTTP"):
        await book.update("ours", RegistryChange(url="http://y.example.com"))
    await close(book)


def test_what_is_sealed_tells_nothing_and_cannot_be_altered() -> None:
    box = SecretBox(None)
    sealed = box.seal(b"secret", "a")
    assert b"secret" not in sealed
    assert sealed != box.seal(b"secret", "a")
    assert box.open(sealed, "a") == b"secret"
    altered = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for wrong, owner in ((sealed, "b"), (altered, "a"), (sealed[:5], "a"), (b"", "a")):
        with pytest.raises(SecretError):
            box.open(wrong, owner)
