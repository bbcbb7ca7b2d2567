"""Users and groups of the sandbox, read from its own `/etc` and not through the C library, which would load modules
for it.
"""

from __future__ import annotations

import os

import attrs

__all__ = ["Account", "UnknownUser", "find_account"]


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
    """Return the fields of every line; none if there is no such file."""
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return []
    return [line.split(":") for line in text.split("\n") if line and not line.startswith("#")]


def _accounts() -> list[Account]:
    return [
        Account(
            name=fields[0], uid=int(fields[2]), gid=int(fields[3]), home=fields[5] or "/", shell=fields[6] or "/bin/sh"
        )
        for fields in _lines("/etc/passwd")
        if len(fields) >= 7 and fields[2].isdecimal() and fields[3].isdecimal()
    ]


def _groups(name: str, gid: int) -> tuple[int, ...]:
    members = {
        int(fields[2])
        for fields in _lines("/etc/group")
        if len(fields) >= 4 and fields[2].isdecimal() and name in fields[3].split(",")
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
    if found is None and name.isdecimal():
        uid = int(name)
        unlisted = Account(name=name, uid=uid, gid=os.getegid() if user is None else uid, home="/", shell="/bin/sh")
        found = next((account for account in accounts if account.uid == uid), unlisted)
    if found is None:
        raise UnknownUser(f"there is no user {name!r} in the sandbox")
    if group.isdecimal():
        found = attrs.evolve(found, gid=int(group))
    return attrs.evolve(found, groups=_groups(found.name, found.gid))
