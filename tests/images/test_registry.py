"""How registries are spoken to: TLS, tokens, redirects, failures that pass, and answers that are hostile."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from typing import TYPE_CHECKING

import attrs
import jwt
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from sandbox_aio.images.access import Credentials, RegistryAccess
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.push import push
from sandbox_aio.images.reference import ImageReference
from tests.images.archives import file, layer
from tests.images.servers import Asked, Reply, Stock, serving
from tests.registry import PASSWORD, USER, make_image, registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox_aio.images.pulled import Progress
    from tests.images.pulling import Puller

pytestmark = pytest.mark.anyio

ALICE = Credentials(USER, PASSWORD)
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def one_file(root: Path) -> None:
    (root / "a").write_text("a")


def stock() -> Stock:
    data = layer(file("a", "a"), compress=False)
    return Stock([(data, data)])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"), [one_file])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("127.0.0.1", "localhost", key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


# TLS.


@pytest.mark.root
async def test_a_registry_with_tls_is_believed_by_its_authority_alone(
    tmp_path: Path, layout: Path, puller: Puller, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(str(files[0]))
    certificate.private_key_pem.write_to_path(str(files[1]))
    with registry(tmp_path / "tls", tls=files, users=True) as secure:
        image = secure.push(layout, "a/b")
        pulled = await puller.pull(image, access=RegistryAccess(ca_file=ca_file), credentials=ALICE)
        assert puller.trees(pulled) == [{"a": "a"}]
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        with pytest.raises(ImageError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            await puller.pull(image, access=RegistryAccess(ca_file=other), credentials=ALICE)


# Tokens.


class TokenService:
    """What a registry sends its clients to: alice gets tokens, and so does who only pulls what is public."""

    service = "the registry"
    issuer = "the token service"

    def __init__(self, folder: Path, lifetime: int = 300) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        leaf = authority.issue_cert("tokens.example.com", key_type=trustme.KeyType.ECDSA)
        self.bundle = folder / "tokens.pem"
        authority.cert_pem.write_to_path(str(self.bundle))
        self._key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        self._chain = [
            base64.b64encode(
                load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
            ).decode()
        ]
        self.lifetime = lifetime
        self.asked: list[Asked] = []
        self.failures: list[Reply] = []

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        if self.failures:
            return self.failures.pop(0)
        assert ("service", self.service) in asked.query
        authorization = asked.headers.get("authorization")
        if authorization not in (None, BASIC):
            return Reply(status=401)
        access = []
        for name, scope in asked.query:
            if name == "scope":
                kind, repository, actions = scope.split(":")
                allowed = actions.split(",") if authorization else ["pull"] if repository.startswith("public/") else []
                access.append({"type": kind, "name": repository, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": self.service, "sub": USER, "exp": now + self.lifetime, "nbf": now - 5,
            "iat": now - 5, "jti": str(len(self.asked)), "access": access,
        }  # fmt: skip
        token = jwt.encode(claims, self._key, "ES256", headers={"x5c": self._chain})  # type: ignore[arg-type]
        return Reply(body=b'{"token": "%s", "expires_in": %d}' % (token.encode(), self.lifetime))

    def settings(self, host: str) -> dict[str, str]:
        return {
            "realm": f"http://{host}/token",
            "service": self.service,
            "issuer": self.issuer,
            "rootcertbundle": str(self.bundle),
        }


@pytest.mark.root
async def test_a_registry_with_tokens(tmp_path: Path, layout: Path, puller: Puller) -> None:
    tokens = TokenService(tmp_path)
    async with serving(tokens.answer) as host:
        with registry(tmp_path / "tokens", token=tokens.settings(host)) as guarded:
            signed = attrs.evolve(guarded, options=("tls-verify=false", f"creds={USER}:{PASSWORD}"))
            secret = await asyncio.to_thread(signed.push, layout, "secret/a")
            public = await asyncio.to_thread(signed.push, layout, "public/a")
            tokens.asked.clear()
            assert puller.trees(await puller.pull(public)) == [{"a": "a"}]
            assert [dict(asked.query)["scope"] for asked in tokens.asked] == ["repository:public/a:pull"]
            with pytest.raises(ImageError, match="may not be read: 401") as caught:
                await puller.pull(secret)
            assert caught.value.kind == "ImageUnauthorized"
            with pytest.raises(ImageError, match="answered 401 for 'alice'"):
                await puller.pull(secret, credentials=Credentials(USER, "wrong"))
            pulled = await puller.pull(secret, credentials=ALICE)
            assert puller.trees(pulled) == [{"a": "a"}]
            tokens.asked.clear()
            target = ImageReference.parse(f"{guarded.host}/secret/b")
            progress: list[Progress] = []
            await push(
                target, store=puller.store, layers=pulled.layers, config=pulled.config, access=RegistryAccess(),
                credentials=ALICE, work=puller.blobs.directory, progress=progress.append,
            )  # fmt: skip
            # The layer was mounted from where it first came from, with a token for both.
            scopes = [[value for name, value in asked.query if name == "scope"] for asked in tokens.asked]
            own = "repository:secret/b:pull,push"
            assert scopes == [[own], [own, "repository:public/a:pull"]]
            assert progress[-1].bytes_total < 1000
            assert (await puller.pull(str(target), credentials=ALICE)).layers == pulled.layers


@pytest.mark.root
async def test_a_token_service_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, layout: Path, puller: Puller
) -> None:
    tokens = TokenService(tmp_path)
    async with serving(tokens.answer) as host:
        with registry(tmp_path / "tokens", token=tokens.settings(host)) as guarded:
            signed = attrs.evolve(guarded, options=("tls-verify=false", f"creds={USER}:{PASSWORD}"))
            image = await asyncio.to_thread(signed.push, layout, "public/a")
            tokens.failures += [Reply(status=503), Reply(body=b"x" * 10, cut=3)]
            assert puller.trees(await puller.pull(image)) == [{"a": "a"}]


def guarded(images: Stock, challenge: str, good: Callable[[str], bool]) -> Callable[[Asked], Reply]:
    """Answers of a registry that wants an authorization that is `good`."""

    def answer(asked: Asked) -> Reply:
        if good(asked.headers.get("authorization", "")):
            return images.answer(asked)
        return Reply(status=401, headers={"www-authenticate": challenge.replace("{host}", asked.headers["host"])})

    return answer


async def test_a_token_that_is_taken_back_is_renewed(puller: Puller) -> None:
    images, given = stock(), iter(range(100))
    valid = {"now": ""}

    def token(asked: Asked) -> Reply:
        valid["now"] = f"Bearer {next(given)}"
        return Reply(body=b'{"access_token": "%s"}' % valid["now"].removeprefix("Bearer ").encode())

    async with serving(token) as service:

        def good(authorization: str) -> bool:
            matches, valid["now"] = authorization == valid["now"] != "", ""
            return matches

        answer = guarded(images, f'Bearer realm="http://{service}/"', good)
        async with serving(answer) as host:
            assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a"}]


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="{service}",service="it"',
        'bearer service=it, realm="{service}", error="invalid_token"',
        'Basic realm="elsewhere", Bearer realm="{service}",service="it"',
        'Bearer realm="{service}",service="it", Basic realm="elsewhere"',
        'Negotiate, Bearer realm="{service}",service="\\i\\t"',
    ],
)
async def test_challenges_in_many_forms(puller: Puller, challenge: str) -> None:
    def token(asked: Asked) -> Reply:
        assert dict(asked.query)["service"] == "it"
        return Reply(body=b'{"token": "good"}')

    async with serving(token) as service:
        form = challenge.replace("{service}", f"http://{service}/t")
        async with serving(guarded(stock(), form, lambda value: value == "Bearer good")) as host:
            assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a"}]


ANSWERS = {
    "no JSON": (Reply(body=b"hello"), "sent no token"),
    "no token": (Reply(body=b"{}"), "sent no token"),
    "a list": (Reply(body=b"[]"), "sent no token"),
    "a number": (Reply(body=b'{"token": 7}'), "sent no token"),
    "a header in the token": (Reply(body=b'{"token": "a\\r\\nx: y"}'), "sent no token"),
    "too much": (Reply(body=b" " * 70_000), "more than 65,536"),
    "a refusal": (Reply(status=403), "answered 403 without credentials"),
    "elsewhere": (Reply(status=302, headers={"location": "/"}), "answered 302"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_token_service_that_answers_badly(puller: Puller, name: str) -> None:
    reply, reason = ANSWERS[name]
    async with serving(lambda asked: reply) as service:
        async with serving(guarded(stock(), f'Bearer realm="http://{service}/"', lambda value: False)) as host:
            with pytest.raises(ImageError, match=reason) as caught:
                await puller.pull(f"{host}/a/b")
    assert caught.value.kind == "ImageUnauthorized"


@pytest.mark.parametrize("challenge", ["Negotiate", "", "=", 'Bearer realm="file:///etc/passwd"', "Bearer", "x" * 9000])
async def test_a_challenge_that_nobody_can_meet(puller: Puller, challenge: str) -> None:
    async with serving(guarded(stock(), challenge, lambda value: False)) as host:
        with pytest.raises(ImageError, match=r"not known here|not secure") as caught:
            await puller.pull(f"{host}/a/b")
    assert caught.value.kind == "ImageUnauthorized"
    assert len(str(caught.value)) < 500


async def test_a_password_is_not_sent_where_there_is_no_tls(puller: Puller, tls: ssl.SSLContext, ca_file: Path) -> None:
    seen: list[Asked] = []

    def token(asked: Asked) -> Reply:
        seen.append(asked)
        return Reply(body=b'{"token": "good"}')

    async with serving(token) as service:
        async with serving(guarded(stock(), f'Bearer realm="http://{service}/"', lambda value: False), tls) as host:
            with pytest.raises(ImageError, match="which is not secure"):
                await puller.pull(f"{host}/a/b", access=RegistryAccess(ca_file=ca_file), credentials=ALICE)
    assert seen == []


# Redirects.


async def test_credentials_do_not_follow_to_another_host(puller: Puller) -> None:
    images = stock()
    async with serving(images.answer) as elsewhere:

        def answer(asked: Asked) -> Reply:
            if "/blobs/" in asked.path:
                return Reply(status=307, headers={"location": f"http://{elsewhere}{asked.path}"})
            return images.answer(asked)

        async with serving(guarded_by(answer, 'Basic realm="it"')) as host:
            pulled = await puller.pull(f"{host}/a/b", credentials=ALICE)
    assert puller.trees(pulled) == [{"a": "a"}]
    redirected = [asked for asked in images.asked if "/blobs/" in asked.path]
    assert len(redirected) == 2
    assert not [asked for asked in redirected if "authorization" in asked.headers]
    assert [asked.headers.get("authorization") for asked in images.asked if "/manifests/" in asked.path] == [BASIC]


def guarded_by(answer: Callable[[Asked], Reply], challenge: str) -> Callable[[Asked], Reply]:
    """Let in who has alice's password."""

    def checked(asked: Asked) -> Reply:
        if asked.headers.get("authorization") != BASIC:
            return Reply(status=401, headers={"www-authenticate": challenge})
        return answer(asked)

    return checked


async def test_credentials_come_along_to_another_path_of_the_same_host(puller: Puller) -> None:
    images = stock()

    def answer(asked: Asked) -> Reply:
        if asked.path.startswith("/v2/"):
            return Reply(status=302, headers={"location": "/v3/" + asked.path.removeprefix("/v2/")})
        return images.answer(asked)

    async with serving(guarded_by(answer, "Basic")) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b", credentials=ALICE)) == [{"a": "a"}]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/again", "redirects for ever"),
        ("file:///etc/passwd", "not secure or no URL"),
        ("http://", "redirects for ever"),
        ("http://[::1", "Invalid URL"),
        ("http://user:password@127.0.0.1/", "not secure or no URL"),
        ("http://127.0.0.1:0/", "not secure or no URL"),
        ("http://127.0.0.1:99999/", "not secure or no URL"),
        ("http://127.0.0.1:1/" + "x" * 5000, "cannot be reached"),
    ],
)
async def test_a_redirect_to_nowhere(puller: Puller, location: str, reason: str) -> None:
    async with serving(lambda asked: Reply(status=302, headers={"location": location})) as host:
        with pytest.raises(ImageError, match=reason) as caught:
            await puller.pull(f"{host}/a/b")
    assert caught.value.kind == "ImagePull"
    assert len(str(caught.value)) < 500


async def test_a_redirect_from_tls_to_none_is_refused(puller: Puller, tls: ssl.SSLContext, ca_file: Path) -> None:
    async with serving(lambda asked: Reply(status=302, headers={"location": "http://127.0.0.1:1/"}), tls) as host:
        with pytest.raises(ImageError, match="not secure"):
            await puller.pull(f"{host}/a/b", access=RegistryAccess(ca_file=ca_file))


# Failures, and what is hostile.


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_fails_for_a_while_is_asked_again(puller: Puller, status: int) -> None:
    images = stock()
    failures = iter((Reply(status=status, headers={"retry-after": "0"}), Reply(body=b"{" * 9, cut=2)))
    async with serving(lambda asked: next(failures, None) or images.answer(asked)) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a"}]


async def test_what_always_fails_is_given_up_with_the_last_answer(puller: Puller) -> None:
    asked: list[Asked] = []

    def answer(request: Asked) -> Reply:
        asked.append(request)
        return Reply(status=503, body=b"we are\n closed " + b"x" * 5000)

    async with serving(answer) as host:
        with pytest.raises(ImageError, match="answered 503 we are closed xxx") as caught:
            await puller.pull(f"{host}/a/b")
    assert caught.value.kind == "ImagePull"
    assert len(asked) == 5
    assert len(str(caught.value)) < 500


async def test_a_refusal_is_not_asked_again(puller: Puller) -> None:
    asked: list[Asked] = []

    def answer(request: Asked) -> Reply:
        asked.append(request)
        return Reply(status=418)

    async with serving(answer) as host:
        with pytest.raises(ImageError, match="answered 418"):
            await puller.pull(f"{host}/a/b")
    assert len(asked) == 1


async def test_a_manifest_without_end_is_not_read(puller: Puller) -> None:
    async with serving(lambda asked: Reply(body=b" " * (5 << 20))) as host:
        with pytest.raises(ImageError, match="longer than 4,194,304 bytes"):
            await puller.pull(f"{host}/a/b")


async def test_a_manifest_of_another_digest_is_refused(puller: Puller) -> None:
    async with serving(stock().answer) as host:
        with pytest.raises(ImageError, match="is not what its digest says"):
            await puller.pull(f"{host}/a/b@sha256:{'0' * 64}")


async def test_an_answer_that_is_no_http_is_refused(puller: Puller) -> None:
    async with serving(lambda asked: Reply(headers={"bad header": "\0"})) as host:
        with pytest.raises(ImageError, match="cannot be reached"):
            await puller.pull(f"{host}/a/b")


async def test_a_mirror_that_is_down_is_tried_once(puller: Puller) -> None:
    tried = 0

    def down(asked: Asked) -> Reply:
        nonlocal tried
        tried += 1
        raise ConnectionResetError

    async with serving(down) as mirror, serving(stock().answer) as own:
        access = RegistryAccess(mirrors={own: (f"http://{mirror}/proxy",)})
        assert puller.trees(await puller.pull(f"{own}/a/b", access=access)) == [{"a": "a"}]
    assert tried == 1


async def test_a_mirror_below_a_path_gets_no_credentials(puller: Puller) -> None:
    images, mine = stock(), stock()

    def answer(asked: Asked) -> Reply:
        assert asked.path.startswith("/proxy/v2/")
        return images.answer(attrs.evolve(asked, path=asked.path.removeprefix("/proxy")))

    async with serving(answer) as mirror, serving(mine.answer) as own:
        access = RegistryAccess(mirrors={own: (f"http://{mirror}/proxy/",)})
        assert puller.trees(await puller.pull(f"{own}/a/b", access=access, credentials=ALICE)) == [{"a": "a"}]
    assert mine.asked == []
    assert not [asked for asked in images.asked if "authorization" in asked.headers]


async def test_another_architecture_is_named(puller: Puller) -> None:
    index = b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:%s", "size": 1, "platform": %s}]}'
    data = index % (b"0" * 64, b'{"os": "linux", "architecture": "s390x"}')
    async with serving(lambda asked: Reply(body=data)) as host:
        with pytest.raises(ImageError, match="but for linux/s390x") as caught:
            await puller.pull(f"{host}/a/b")
    assert caught.value.kind == "ImagePlatform"
