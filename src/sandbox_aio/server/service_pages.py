"""What a person sees in a browser when a service or a file cannot be shown, and the page that begins an embedded one.

The pages load nothing and run nothing but the script below, which their own policy names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .errors import ApiError
    from .exchange import Exchange, Head

__all__ = ["EMBED_PAGE", "EMBED_POLICY", "refuse"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222;background:#fff}"
    "h1{font-size:1.4em}p{margin:.6em 0}.id{color:#777;font-size:.8em}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}}"
)

SCRIPT: Final = """
(async () => {
  const given = new URLSearchParams(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  try {
    const answer = await fetch("/_svc/auth", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({token: given.get("token"), redirect: given.get("redirect") || "/"}),
    });
    const detail = await answer.json();
    if (answer.ok) return location.replace(detail.redirect);
    document.getElementById("message").textContent = detail.detail.message;
  } catch (error) {
    document.getElementById("message").textContent = "The server cannot be reached.";
  }
})();
"""

TITLES: Final = {
    "Unauthorized": ("This service needs a link", "Ask whoever runs the sandbox for its browser URL, and open that."),
    "LinkExpired": ("This link has expired", "Ask whoever runs the sandbox for a new one: links last a limited time."),
    "AccessRevoked": ("Access to this service was revoked", "Ask whoever runs the sandbox for a new browser URL."),
    "SandboxNotFound": ("This sandbox is gone", "It was deleted. Its files and services went with it."),
    "NotReady": ("The sandbox does not run", "It has failed. Start it again, or make a new one."),
    "ConnectionRefused": (
        "Nothing listens on this port",
        "Is the program running, and does it listen on this very port, on 127.0.0.1 or on all addresses? Then reload.",
    ),
    "Forbidden": ("This is not allowed", "Pages of other origins cannot use this service."),
    "NotFound": ("There is nothing here", "Check the address."),
}
"""For each kind of error a headline, and what a reader can do."""


async def refuse(exchange: Exchange, error: ApiError, policy: bytes) -> None:
    """Answer an error, as a page if the client shows pages. `policy` is the rest of its Content-Security-Policy.

    Raises ConnectionAbortedError when another answer has begun.
    """
    if exchange.answered:
        raise ConnectionAbortedError(str(error)) from error  # Too late for another answer.
    logger.info("%s (error_id=%s)", error, error.error_id)
    headers = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
    if _prefers_html(exchange.head):
        body = _error_page(error)
        headers += [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"content-security-policy", _error_policy(policy)),
        ]
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
    else:
        body = error.body()
        headers += [*error.headers(), (b"content-security-policy", policy)]
    await exchange.respond(error.status, headers, body)


def _prefers_html(head: Head) -> bool:
    """Whether an error is for a person to read."""
    return any(b"text/html" in value.lower() for value in head.values(b"accept"))


def _error_page(error: ApiError) -> bytes:
    """An error as a page; every text in it is escaped."""
    title, advice = TITLES.get(error.error, ("The service did not answer", "Try again in a moment."))
    body = (
        f"<h1>{html.escape(title)}</h1><p>{html.escape(error.message)}</p><p>{html.escape(advice)}</p>"
        f'<p class="id">{error.status} {html.escape(error.error)} {error.error_id}</p>'
    )
    return _page(title, body)


def _error_policy(policy: bytes) -> bytes:
    """The Content-Security-Policy of an error page."""
    return b"default-src 'none'; style-src %b; base-uri 'none'; form-action 'none'; %b" % (_hash(STYLE), policy)


def _page(title: str, body: str) -> bytes:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><body>{body}</body></html>'
    ).encode()


def _hash(text: str) -> bytes:
    return b"'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()) + b"'"


EMBED_PAGE: Final = _page(
    "Opening the service", f'<p id="message">Opening the service&hellip;</p><script>{SCRIPT}</script>'
)

EMBED_POLICY: Final = (
    b"default-src 'none'; style-src %b; script-src %b; connect-src 'self'; base-uri 'none'; form-action 'none'"
    % (_hash(STYLE), _hash(SCRIPT))
)
"""Anybody may frame this page: it holds nothing, and who may frame what it leads to is in the token, which only the
page's script sees. The next page says it."""
