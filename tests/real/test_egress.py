"""What leaves a sandbox: packages installed through the server's proxy, and E14 of the documentation.

The server's operator vouches for the registries by name, since a mirror of them need not have a public address, and for
a collector on this machine, which stands for an API outside.
"""

from __future__ import annotations

import importlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest

from sandbox_aio import SandboxClient
from tests.examples.conftest import OFFICIAL
from tests.real.conftest import ASYNC_SETTINGS
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

REGISTRIES = ("pypi.org", "files.pythonhosted.org", "deb.debian.org")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
COLLECTOR_HOST = "127.0.0.2"
"""An address of this machine that no program takes for its own, so that it is reached through the proxy."""
PIP = {
    "PIP_CERT": BUNDLE,
    "PIP_NO_COMPILE": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
AGENT = """
from langsmith import Client, traceable
client = Client()
@traceable(client=client)
def answer(question):
    return question.upper()
print(answer("hello"))
client.flush()
"""


@attrs.define
class Collector:
    """What was asked of it: method, path, and headers by their lower-case names."""

    port: int = 0
    requests: list[tuple[str, str, dict[str, str]]] = attrs.field(factory=list)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """An HTTP server on this machine that says yes to everything."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            found.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((COLLECTOR_HOST, 0), Handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """A server whose operator vouches for the registries and the collector."""
    options = [word for name in REGISTRIES for word in ("--egress-allow", name)]
    options += ["--egress-allow", f"{COLLECTOR_HOST}:{collector.port}"]
    with serving(tmp_path_factory.mktemp("egress"), *options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[SandboxClient]:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as opened:
        yield opened


def agent_environment(collector: Collector) -> dict[str, str]:
    """What E14 passes in, and where this machine's registries want pip to look for certificates."""
    endpoint = f"http://{COLLECTOR_HOST}:{collector.port}"
    tracing = {"LANGSMITH_API_KEY": "key-of-the-agent", "LANGSMITH_ENDPOINT": endpoint}
    return {**PIP, **tracing, "LANGSMITH_TRACING": "true", "LANGSMITH_PROJECT": "p"}


def traced(collector: Collector) -> None:
    """Insist that a trace has come, with the agent's own key."""
    runs = [headers for method, path, headers in collector.requests if method == "POST" and "/runs" in path]
    assert runs
    assert runs[-1]["x-api-key"] == "key-of-the-agent"
    collector.requests.clear()


# --- packages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [None, {"allow_list": ["pypi.org", "files.pythonhosted.org"]}], ids=["open", "listed"])
def test_pip_installs_from_the_registry(client: SandboxClient, own: dict[str, Any] | None) -> None:
    rules = None if own is None else {"rules": [], "access_control": own}
    with client.sandbox(proxy_config=rules) as sandbox:
        done = sandbox.run("pip install --target /tmp/p six==1.16.0 && PYTHONPATH=/tmp/p python3 -c 'import six; "
                           "print(six.__version__)'", timeout=120, env=PIP)  # fmt: skip
        assert done.stdout.endswith("1.16.0\n"), done.stdout + done.stderr


def test_what_a_sandbox_does_not_list_is_refused_with_the_reason(client: SandboxClient) -> None:
    rules = {"rules": [], "access_control": {"allow_list": ["example.com"]}}
    with client.sandbox(proxy_config=rules) as sandbox:
        done = sandbox.run(f"curl --silent --show-error --cacert {BUNDLE} https://pypi.org/simple/six/")
        assert done.exit_code != 0
        assert "403" in done.stderr
        failed = sandbox.run("pip install --retries 0 --target /tmp/p six", timeout=120, env=PIP)
        assert failed.exit_code != 0
        client.update_sandbox(sandbox.name, proxy_config={"rules": []})
        again = sandbox.run(f"curl --silent --fail --cacert {BUNDLE} -o /dev/null https://pypi.org/simple/six/")
        assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("own", [None, {"allow_list": ["deb.debian.org"]}], ids=["open", "listed"])
def test_apt_reads_the_archive(client: SandboxClient, own: dict[str, Any] | None) -> None:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release["VERSION_CODENAME"].strip('"') if "debian" in release["ID"] else "bookworm"
    rules = None if own is None else {"rules": [], "access_control": own}
    with client.sandbox(proxy_config=rules) as sandbox:
        sandbox.write("/etc/apt/sources.list", f"deb [trusted=yes] http://deb.debian.org/debian {suite} main\n")
        done = sandbox.run("apt-get update", timeout=120)
        assert "Get:1 http://deb.debian.org/debian" in done.stdout, done.stdout + done.stderr
        assert done.exit_code == 0, done.stdout + done.stderr
        shown = sandbox.run("apt-cache policy hello")
        assert "Candidate: 2" in shown.stdout


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.3", "10.0.0.1", "[::1]", "0x7f000001", "2130706433"])
def test_what_is_not_public_is_refused(client: SandboxClient, address: str) -> None:
    with client.sandbox() as sandbox:
        through = sandbox.run(f"curl --silent --noproxy '' -o /dev/null -w '%{{http_code}}' 'http://{address}/'")
        assert through.stdout in ("400", "403")
        past = sandbox.run(f"curl --silent --noproxy '*' --max-time 5 'http://{address}/'")
        assert past.exit_code != 0


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_added_outside_and_shows_nowhere_inside(client: SandboxClient, collector: Collector) -> None:
    secret = "a secret that is nowhere else"
    header = {"name": "X-Secret", "type": "opaque", "value": secret}
    rules = {"rules": [{"name": "r", "match_hosts": [COLLECTOR_HOST], "headers": [header]}]}
    with client.sandbox(proxy_config=rules) as sandbox:
        done = sandbox.run(f"curl --silent --fail -H 'X-Secret: mine' http://{COLLECTOR_HOST}:{collector.port}/secret")
        assert done.exit_code == 0
        (asked,) = [headers for _, path, headers in collector.requests if path == "/secret"]
        assert asked["x-secret"] == secret
        everywhere = sandbox.run("env; cat /proc/*/environ 2>/dev/null; grep -rsl 'nowhere else' /etc /tmp /home /run")
        assert "nowhere else" not in everywhere.stdout
        url = f"{client.api_endpoint}/boxes/{sandbox.name}"
        shown = httpx.get(url, headers={"x-api-key": API_KEY})
        assert secret not in shown.text
        assert '"is_set":true' in shown.text.replace(" ", "")


def test_over_https_it_is_added_too_and_only_where_a_rule_says_so(client: SandboxClient) -> None:
    rule = {"name": "r", "match_hosts": ["pypi.org"], "headers": [{"name": "X-K", "type": "opaque", "value": "v"}]}
    with client.sandbox(proxy_config={"rules": [rule]}) as sandbox:
        ask = "curl --silent --show-error --verbose -o /dev/null -w '%{http_code}' "
        intercepted = sandbox.run(f"{ask} https://pypi.org/simple/six/")
        assert intercepted.stdout == "200", intercepted.stderr
        assert "CN=sandbox-aio egress" in intercepted.stderr
        passed = sandbox.run(f"{ask} https://files.pythonhosted.org/")
        assert "CN=sandbox-aio egress" not in passed.stderr
        assert "SSL certificate verify ok" in passed.stderr
        installed = sandbox.run("pip install --target /tmp/p six && ls /tmp/p/six.py", timeout=120)
        assert installed.exit_code == 0, installed.stdout + installed.stderr


# --- E14 -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(200)
def test_e14_a_traced_agent(m: Any, server: Server, collector: Collector) -> None:
    env = agent_environment(collector)
    client = m.SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY)
    with client.sandbox(snapshot_id=client.get_snapshot("host").id) as sb:
        installed = sb.run("pip install langsmith", timeout=120, env=env)
        assert installed.exit_code == 0, installed.stdout + installed.stderr
        sb.write("my_agent.py", AGENT)
        assert sb.run("python3 my_agent.py", env=env).stdout == "HELLO\n"
    client.close()
    traced(collector)


@pytest.mark.timeout(200)
@pytest.mark.anyio
@pytest.mark.parametrize("setting", ASYNC_SETTINGS, ids="-".join)
class TestAsync:
    @pytest.fixture
    def anyio_backend(self, setting: tuple[str, str]) -> str:
        return setting[1]

    async def test_e14_a_traced_agent(self, setting: tuple[str, str], server: Server, collector: Collector) -> None:
        m, env = importlib.import_module(setting[0]), agent_environment(collector)
        async with m.AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
            async with await client.sandbox(snapshot_id=(await client.get_snapshot("host")).id) as sb:
                installed = await sb.run("pip install langsmith", timeout=120, env=env)
                assert installed.exit_code == 0, installed.stdout + installed.stderr
                await sb.write("my_agent.py", AGENT)
                assert (await sb.run("python3 my_agent.py", env=env)).stdout == "HELLO\n"
        traced(collector)


@pytest.mark.leaks("the official client closes what it opened when it is collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_official_client_sets_rules_too(server: Server) -> None:
    official = importlib.import_module(OFFICIAL)
    client = official.SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY)
    rules = official.proxy_config(rules=[], access_control={"deny_list": ["pypi.org"]})
    try:
        with client.sandbox(snapshot_id=client.get_snapshot("host").id, proxy_config=rules) as sandbox:
            ask = f"curl --silent --show-error --cacert {BUNDLE} -o /dev/null https://pypi.org/simple/six/"
            assert "403" in sandbox.run(ask).stderr
            client.update_sandbox(sandbox.name, proxy_config=official.proxy_config(rules=[]))
            assert sandbox.run(ask).exit_code == 0
    finally:
        client.close()
