"""Files in and out of the sandbox (wire protocol, sections 4.1 and 4.2).

The daemon lives inside the sandbox's root, so a path or a symlink cannot lead out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from email.utils import formatdate
from typing import TYPE_CHECKING

from .accounts import UnknownUser, find_account
from .faults import Fault
from .multipart import FormFile
from .paths import resolve
from .ranges import NotModified, Part, Unsatisfiable, select

if TYPE_CHECKING:
    from types import TracebackType

    from .http import Exchange
    from .settings import DaemonSettings

__all__ = ["Files"]

_PIECE_BYTES = 256 * 1024
_UNSIZED_BYTES = 4 << 20
"""How much is read of a file that does not tell its size."""
_MODE = 0o644


class Files:
    """Serves `/upload` and `/download`."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._settings = settings

    async def upload(self, exchange: Exchange) -> None:
        """Write the file of a form to `path`, as a whole or not at all.

        Raises:
            Fault: 400 or 413 `WriteError`.
        """
        path = resolve(self._settings, exchange.query.get("path"), "WriteError")
        limit = self._settings.limits.upload_bytes
        form = FormFile(exchange.headers.get(b"content-type", b""))
        try:
            with _Replacement(path, self._settings.user) as replacement:
                async for data in exchange.body():
                    for piece in form.feed(data):
                        replacement.write(piece)
                    if replacement.size > limit:
                        raise Fault(413, "WriteError", f"a file is limited to {limit} bytes")
                form.finish()
                replacement.commit()
        except OSError as exc:
            raise Fault(400, "WriteError", f"{path} cannot be written: {exc.strerror}") from None
        await exchange.reply(200, {"path": path, "written": replacement.size})

    async def download(self, exchange: Exchange) -> None:
        """Send a file or a part of it; for HEAD only the headers.

        Raises:
            Fault: 404 `FileNotFound`, or 400 or 403 `ReadError`.
        """
        path = resolve(self._settings, exchange.query.get("path"), "ReadError")
        fd = _open(path)
        try:
            await self._send(exchange, fd, path)
        finally:
            os.close(fd)

    async def _send(self, exchange: Exchange, fd: int, path: str) -> None:
        status = os.fstat(fd)
        if status.st_size == 0 and (content := _unsized(fd, path)):
            await exchange.start(200, {"content-type": "application/octet-stream", "content-length": str(len(content))})
            await exchange.write(content)
            await exchange.end()
            return
        etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"'
        headers = {"etag": etag, "last-modified": formatdate(status.st_mtime, usegmt=True), "accept-ranges": "bytes"}
        choice = select(
            status.st_size,
            etag.encode(),
            range=exchange.headers.get(b"range") if exchange.method == "GET" else None,
            if_range=exchange.headers.get(b"if-range"),
            if_none_match=exchange.headers.get(b"if-none-match"),
        )
        if isinstance(choice, NotModified):
            await exchange.start(304, headers)
            await exchange.end()
            return
        if isinstance(choice, Unsatisfiable):
            headers["content-range"] = f"bytes */{status.st_size}"
            text = f"{path} has {status.st_size} bytes, and the range begins behind them"
            await exchange.reply(416, Fault(416, "ReadError", text).body, headers)
            return
        start, end = (choice.start, choice.end + 1) if isinstance(choice, Part) else (0, status.st_size)
        headers |= {"content-type": "application/octet-stream", "content-length": str(end - start)}
        if isinstance(choice, Part):
            headers["content-range"] = f"bytes {start}-{end - 1}/{status.st_size}"
        await exchange.start(206 if isinstance(choice, Part) else 200, headers)
        if exchange.method == "GET":
            await _copy(exchange, fd, start, end)
        await exchange.end()


async def _copy(exchange: Exchange, fd: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(fd, min(_PIECE_BYTES, end - start), start)
        if not data:
            raise Fault(400, "ReadError", "the file became shorter while it was read")
        start += len(data)
        await exchange.write(data)


def _unsized(fd: int, path: str) -> bytes:
    """Read a file that says it is empty; those of `/proc` say so whatever they hold."""
    content = b""
    try:
        while len(content) < _UNSIZED_BYTES and (data := os.read(fd, _PIECE_BYTES)):
            content += data
    except OSError as exc:
        raise Fault(400, "ReadError", f"{path} cannot be read: {exc.strerror}") from None
    return content


def _open(path: str) -> int:
    """Open a regular file for reading; anything else is not even opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if os.path.isdir(path) else "not a regular file"
            raise Fault(400, "ReadError", f"{path} is {what}")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Fault(404, "FileNotFound", f"there is no file {path}") from None
        denied = exc.errno in (errno.EACCES, errno.EPERM)
        raise Fault(403 if denied else 400, "ReadError", f"{path} cannot be read: {exc.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # it was exchanged for something else in between
        os.close(fd)
        raise Fault(400, "ReadError", f"{path} is not a regular file")
    return fd


class _Replacement:
    """A new version of a file, beside it until `commit` puts it in its place. Leaving without that leaves nothing
    behind.

    The new file has the mode and the owner of the old one, if there is one; else 0644, and the sandbox's user.
    """

    def __init__(self, path: str, user: str | None) -> None:
        self._path = os.path.realpath(path)
        self._owner = _owner(user)
        self._fd = -1
        self._temporary = ""
        self.size = 0

    def __enter__(self) -> _Replacement:
        old = self._old()
        directory = os.path.dirname(self._path)
        self._make(directory)
        self._temporary = os.path.join(directory, f".upload-{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o600)
        if old is not None:
            self._chown(old.st_uid, old.st_gid)
            os.fchmod(self._fd, stat.S_IMODE(old.st_mode))
        else:
            self._chown(*self._owner)
            os.fchmod(self._fd, _MODE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def write(self, data: bytes) -> None:
        """Append to the new version."""
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(self._fd, view[written:])
        self.size += len(data)

    def commit(self) -> None:
        """Put the new version in the place of the old one, in one step."""
        os.rename(self._temporary, self._path)
        self._temporary = ""

    def _old(self) -> os.stat_result | None:
        try:
            old = os.stat(self._path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(old.st_mode):
            what = "a directory" if stat.S_ISDIR(old.st_mode) else "not a regular file"
            raise Fault(400, "WriteError", f"{self._path} is {what}")
        return old

    def _make(self, directory: str) -> None:
        """Make a directory and its parents; those that are new belong to the sandbox's user."""
        missing = []
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        for path in reversed(missing):
            os.mkdir(path)
            with contextlib.suppress(PermissionError):
                os.chown(path, *self._owner)

    def _chown(self, uid: int, gid: int) -> None:
        with contextlib.suppress(PermissionError):  # an unprivileged daemon gives nothing away
            os.fchown(self._fd, uid, gid)


def _owner(user: str | None) -> tuple[int, int]:
    if user is None:
        return os.geteuid(), os.getegid()
    try:
        account = find_account(user)
    except UnknownUser as exc:
        raise Fault(400, "WriteError", str(exc)) from None
    return account.uid, account.gid
