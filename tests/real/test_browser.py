"""Services in a real browser: Chromium, without a window, driven by selenium and Debian's chromium-driver."""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import httpx
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from sandbox_aio import SandboxClient
from tests.real.packages import PACKAGES, put_packages
from tests.serving import API_KEY, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandbox_aio import Sandbox

PROGRAM = Path(__file__).with_name("browser_app.py")
SCREENSHOT = Path(__file__).parents[2] / "build/browser-url.png"
DRIVER = "/usr/bin/chromedriver"
DEADLINE = 20.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's own, which it cannot have as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=800,450",
)

FRAMING = """
<!doctype html><title>nothing yet</title>
<script>onmessage = event => { document.title = event.data; };</script>
<iframe id="frame" src="URL"></iframe>
"""

FETCH = """
const [url, done] = arguments;
fetch(url, {credentials: "include"}).then(answer => done(answer.status), error => done(String(error)));
"""

BLIND_FETCH = """
const [url, done] = arguments;
const options = {credentials: "include", mode: "no-cors"};
fetch(url, options).then(answer => done(answer.type), error => done(String(error)));
"""


@contextmanager
def program(client: SandboxClient, name: str) -> Iterator[Sandbox]:
    """A sandbox that serves the page on port 8000."""
    with client.sandbox() as sandbox:
        put_packages(sandbox, "fastapi", "uvicorn", "websockets")
        sandbox.write("/srv/app.py", PROGRAM.read_text())
        command = sandbox.run(f"python3 /srv/app.py {name}", env={"PYTHONPATH": PACKAGES}, timeout=0, wait=False)
        for chunk in command:
            if "Uvicorn running" in chunk.data:
                break
        yield sandbox


@pytest.fixture(scope="module")
def sandboxes(server: Server) -> Iterator[tuple[str, str]]:
    """The names of two, `one` and `two` as they call themselves."""
    with (
        SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client,
        program(client, "one") as first,
        program(client, "two") as second,
    ):
        yield first.name, second.name


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser, with a profile of its own and, by its own rules, `*.localhost` on this machine."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(executable_path=DRIVER, env=dict(os.environ)))
    try:
        driver.set_page_load_timeout(DEADLINE)
        driver.set_script_timeout(DEADLINE)
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Chrome:
    """The browser, without a cookie."""
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chromium.get_log("browser")  # type: ignore[no-untyped-call]  # what came before is nobody's
    return chromium


class Pages(http.server.BaseHTTPRequestHandler):
    """Pages of somebody else, by path."""

    timeout = 0.5  # seconds: a browser also connects to be ready for more, and then says nothing

    def __init__(self, pages: dict[str, str], *args: Any) -> None:
        self.pages = pages
        super().__init__(*args)

    def do_GET(self) -> None:
        body = self.pages.get(self.path, "").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, dict[str, str]]]:
    """Another origin, and the pages that it serves."""
    pages: dict[str, str] = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, pages))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://localhost:{server.server_port}", pages
    server.shutdown()
    server.server_close()
    thread.join()


def wait(browser: Chrome, condition: Callable[[Chrome], object]) -> None:
    WebDriverWait(browser, DEADLINE, poll_frequency=0.05).until(condition)


@attrs.frozen
class Link:
    """What a service URL is made of."""

    browser_url: str
    service_url: str
    embed_url: str
    token: str


def link_to(sandbox: str, embed_origins: Sequence[str] = ()) -> Link:
    """Make a link to the page, by a client of its own, which leaves no connection to the test."""
    with SandboxClient() as client:
        made = client.service(sandbox, 8000, embed_origins=embed_origins)
        return Link(made.browser_url, made.service_url, made.embed_url, made.token)


def framing(sandbox: str, allowed: str) -> str:
    """A page with the service in a frame, by a link that allows the pages of one origin to do so."""
    return FRAMING.replace("URL", link_to(sandbox, [allowed]).embed_url)


def requests_of(link: Link) -> int:
    """How often the page's data have been fetched so far."""
    answer = httpx.get(f"{link.service_url}count", headers={"X-Langsmith-Sandbox-Service-Token": link.token})
    count: int = answer.json()["count"]
    return count


def open_service(browser: Chrome, sandbox: str) -> str:
    """Open the sandbox's page by a new link, and return its origin."""
    url = link_to(sandbox).browser_url
    browser.get(url)
    wait(browser, lambda each: each.title != "loading")
    assert browser.title == "done", browser.page_source
    return f"http://{urlsplit(url).netloc}"


def test_a_page_works_on_an_origin_of_its_own(browser: Chrome, sandboxes: tuple[str, str]) -> None:
    origin = open_service(browser, sandboxes[0])
    assert browser.current_url == f"{origin}/"  # the token is gone from the address
    assert re.fullmatch(r"http://[0-9a-f-]{36}--8000\.localhost:\d+", origin)
    assert browser.find_element("id", "origin").text == origin
    assert browser.find_element("id", "fetched").text == "data of one"
    assert browser.find_element("id", "echoed").text == "one heard: Anybody there?"
    (cookie,) = [each for each in browser.get_cookies() if each["name"] != "page"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert browser.execute_script("return document.cookie") == "page=one"
    SCREENSHOT.parent.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOT))
    browser.refresh()
    wait(browser, lambda each: each.title == "done")


def test_without_a_cookie_there_is_a_page_that_says_what_to_do(browser: Chrome, sandboxes: tuple[str, str]) -> None:
    origin = open_service(browser, sandboxes[0])
    browser.delete_all_cookies()
    assert browser.execute_async_script(FETCH, f"{origin}/api/data") == 401
    browser.get(origin)
    assert browser.find_element("tag name", "h1").text == "This service needs a link"


def test_a_page_of_an_allowed_origin_embeds_the_service(
    browser: Chrome, sandboxes: tuple[str, str], elsewhere: tuple[str, dict[str, str]]
) -> None:
    origin, pages = elsewhere
    pages["/"] = framing(sandboxes[0], origin)
    browser.get(origin)
    wait(browser, lambda each: each.title != "nothing yet")
    assert browser.title == "data of one; one heard: Anybody there?"


def test_a_page_of_another_origin_does_not(
    browser: Chrome, sandboxes: tuple[str, str], elsewhere: tuple[str, dict[str, str]]
) -> None:
    origin, pages = elsewhere
    pages["/"] = framing(sandboxes[0], "http://localhost:1")
    browser.get(origin)
    said: list[str] = []

    def refused(each: Chrome) -> bool:
        said.extend(entry["message"] for entry in each.get_log("browser"))  # type: ignore[no-untyped-call]
        return any("frame-ancestors" in message for message in said)

    wait(browser, refused)
    assert browser.title == "nothing yet", said


def test_two_sandboxes_see_nothing_of_each_other(browser: Chrome, sandboxes: tuple[str, str]) -> None:
    first = open_service(browser, sandboxes[0])
    second = open_service(browser, sandboxes[1])
    assert first != second
    assert browser.find_element("id", "fetched").text == "data of two"
    assert browser.execute_script("return [document.cookie, {...localStorage}]") == ["page=two", {"page": "two"}]

    assert browser.execute_async_script(FETCH, f"{second}/count") == 200
    asked = requests_of(first_link := link_to(sandboxes[0]))
    assert browser.execute_async_script(FETCH, f"{first}/api/data") == "TypeError: Failed to fetch"
    assert browser.execute_async_script(BLIND_FETCH, f"{first}/api/data") == "opaque"  # sent, and refused
    assert requests_of(first_link) == asked  # none has reached the program

    browser.get(f"{first}/")  # whose cookie has been there all the time, for its own pages
    wait(browser, lambda each: each.title == "done")
    assert browser.execute_script("return document.cookie") == "page=one"
