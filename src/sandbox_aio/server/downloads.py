"""Download links: a file of a sandbox, for whoever has the link. Wire protocol, section 6.5."""

from __future__ import annotations

import mimetypes
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import attrs

from .errors import ApiError
from .forward import DataPlanePolicy, FindDaemon, forward
from .service_pages import refuse
from .service_tokens import ServiceAuthority, TokenError

if TYPE_CHECKING:
    from .exchange import Exchange, Headers
    from .service_tokens import DownloadGrant
    from .splice import Splice

__all__ = ["Downloads"]

SANDBOX_FLAG: Final = re.compile(r"allow-[a-z-]{1,64}")


@attrs.frozen(kw_only=True)
class Downloads:
    """Answers requests for links with the files they name."""

    authority: ServiceAuthority
    find_daemon: FindDaemon

    async def serve(self, exchange: Exchange, token: str) -> None:
        """Answer with the file that the link names, as it is now, or a range of it. Starts a sandbox that is stopped.

        Refusals are a page for whoever accepts HTML, else JSON: 401 for a link that has expired, 404 for what is none.
        """
        try:
            await self._serve(exchange, self._verify(token))
        except ApiError as error:
            await refuse(exchange, error, b"sandbox")

    async def _serve(self, exchange: Exchange, grant: DownloadGrant) -> None:
        if exchange.head.method not in (b"GET", b"HEAD") or exchange.head.has_body:
            raise ApiError(405, "MethodNotAllowed", "a download link is for GET and HEAD, without a body")
        _, address = await self.find_daemon(grant.sandbox_id)
        target = f"/download?path={quote(grant.path, safe='/')}"
        await forward(exchange, address, target.encode(), on_splice_gone=_no_splice, policy=LinkPolicy(grant))

    def _verify(self, token: str) -> DownloadGrant:
        try:
            return self.authority.verify_download(token)
        except TokenError as error:
            if error.kind == "expired":
                raise ApiError(401, "LinkExpired", "the download link has expired") from error
            raise ApiError(404, "NotFound", "this is not a download link, or it was revoked") from error


class LinkPolicy(DataPlanePolicy):
    """What a link says of a file: its type, and what a browser may do with it on the control plane's origin."""

    def __init__(self, grant: DownloadGrant) -> None:
        self._grant = grant

    def answer(self, status: int, headers: Headers) -> Headers:
        fields = list(super().answer(status, headers))
        if status in (200, 206, 304):
            fields = [field for field in fields if field[0] not in (b"content-type", b"content-disposition")]
            fields.append((b"content-disposition", self._disposition()))
            if status != 304:
                fields.append((b"content-type", self._content_type()))
        return [*fields, (b"content-security-policy", self.security_policy()), (b"referrer-policy", b"no-referrer")]

    def security_policy(self) -> bytes:
        """Always a sandbox of its own origin: an `allow-same-origin` would let a file act as the control plane."""
        flags = [flag for flag in self._grant.csp_sandbox_flags if SANDBOX_FLAG.fullmatch(flag)]
        return " ".join(["sandbox", *(flag for flag in flags if flag != "allow-same-origin")]).encode()

    def _content_type(self) -> bytes:
        return (
            self._grant.content_type or mimetypes.guess_type(self._grant.path)[0] or "application/octet-stream"
        ).encode()

    def _disposition(self) -> bytes:
        name = self._grant.path.rpartition("/")[2]
        plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
        kind = self._grant.content_disposition or "attachment"
        return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()


def _no_splice(splice: Splice) -> None:
    """A download never becomes a websocket: `Downloads.serve` refuses what could."""
