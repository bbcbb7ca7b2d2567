"""Users and groups of the sandbox, read from its own `/etc` and not through the C library, which would load modules
for it.
"""

from __future__ import annotations

import os

import attrs

__all__ = ["Account", "UnknownUser", "find_account"]


_LAST_ID = 2**32 - 2
"""The largest number that a user or a group can have."""


class UnknownUser(Exception):
    """No such user; the message names it."""


@attrs.frozen(kw_only=True)
class Account:
    """A user as `/etc/passwd` has it."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...] = ()


def _lines(path: str) -> list[list[str]]:
    """Return the fields of every line; none if there is no such file. The sandbox may have put anything there."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            text = (file.read(1 << 20) or b"").decode("utf-8", "replace")
    except OSError:
        return []
    return [line.split(":") for line in text.split("\n") if line and not line.startswith("#")]


def _number(text: str) -> int | None:
    """Read a user's or a group's number; None if it is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_LAST_ID))):
        return None
    return int(text) if int(text) <= _LAST_ID else None


def _accounts() -> list[Account]:
    return [
        Account(name=fields[0], uid=uid, gid=gid, home=fields[5] or "/", shell=fields[6] or "/bin/sh")
        for fields in _lines("/etc/passwd")
        if len(fields) >= 7 and (uid := _number(fields[2])) is not None and (gid := _number(fields[3])) is not None
    ]


def _groups(name: str, gid: int) -> tuple[int, ...]:
    members = {
        number
        for fields in _lines("/etc/group")
        if len(fields) >= 4 and (number := _number(fields[2])) is not None and name in fields[3].split(",")
    }
    return tuple(sorted(members | {gid}))


def find_account(user: str | None) -> Account:
    """Return the account of `user`: a name, a uid, or `uid:gid`. None is the user that the daemon runs as.

    A uid needs no entry in `/etc/passwd`; its home is then `/`.

    Raises:
        UnknownUser: there is no user of this name.
    """
    name, _, group = (str(os.geteuid()) if user is None else user).partition(":")
    accounts = _accounts()
    found = next((account for account in accounts if account.name == name), None)
    if found is None and (uid := _number(name)) is not None:
        unlisted = Account(name=name, uid=uid, gid=os.getegid() if user is None else uid, home="/", shell="/bin/sh")
        found = next((account for account in accounts if account.uid == uid), unlisted)
    if found is None:
        raise UnknownUser(f"there is no user {name!r} in the sandbox")
    if (gid := _number(group)) is not None:
        found = attrs.evolve(found, gid=gid)
    return attrs.evolve(found, groups=_groups(found.name, found.gid))
