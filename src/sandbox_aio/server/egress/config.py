"""`proxy_config`, as it is asked for, kept and shown. Wire protocol, section 1.14.

What this server does not do is refused by name. A secret is in `Injection.value` and nowhere else: not in a `repr`, a
log, an answer or the sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from ..errors import Detail, InvalidFieldsError
from .policy import MAX_ENTRIES, AccessControl, Entry, parse_entry

__all__ = ["NO_RULES", "HeaderRule", "Injection", "ProxyConfig", "parse_proxy_config"]

MAX_RULES: Final = 64
MAX_HEADERS: Final = 16
"""Headers that one rule adds."""
MAX_MATCHES: Final = 128
"""Hosts, paths or headers that one rule speaks of, and variables that it sets."""
MAX_TEXT: Final = 1024
"""Characters of a name, a description, or a line of a list."""
MAX_VALUE: Final = 16 * 1024
"""Characters of a header's value."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE: Final = re.compile(r"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
_VARIABLE: Final = re.compile(r"[^=\0]+")
_NOT_INJECTED: Final = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
"""Headers that frame a message, or say where it goes."""
_UNTIDY: Final = re.compile(r"//|\\|/\.{1,2}(/|$)|%2f|%5c|%2e", re.IGNORECASE)
"""In a path that a server may take for another one."""
_RULE_MEMBERS: Final = frozenset(
    (
        *("name", "type", "enabled", "headers", "env_vars", "description"),
        *("match_hosts", "match_paths", "match_headers", "match_port", "match_scheme"),
    )
)
_NOT_OFFERED: Final = {
    "aws": "this server signs no requests for AWS",
    "gcp": "this server asks Google for no tokens",
    "azure": "this server asks Azure for no tokens",
    "attribution": "this server adds no attribution headers",
    "relay": "this server has no relays",
    "rewrite": "this server sends no request elsewhere",
    "relay_id": "this server has no relays",
}


@attrs.frozen(kw_only=True)
class Injection:
    """A header that a rule adds, in the place of the client's own of that name."""

    name: str
    secret: bool
    value: str = attrs.field(repr=False)

    def shown(self, *, whole: bool = False) -> dict[str, Any]:
        """What reads show; `whole`, with the secret."""
        if self.secret and whole:
            return {"name": self.name, "type": "opaque", "value": self.value}
        if self.secret:
            return {"name": self.name, "type": "opaque", "is_set": True}
        return {"name": self.name, "type": "plaintext", "value": self.value}


@attrs.frozen(kw_only=True)
class HeaderRule:
    """Adds headers to the requests that match. What is empty or None matches all."""

    name: str
    enabled: bool = True
    hosts: Sequence[Entry] = ()
    paths: Sequence[str] = ()
    wanted: Sequence[tuple[str, str]] = ()
    """Headers that the request must have, by lower-case name, and their values."""
    port: int | None = None
    https_only: bool = False
    headers: Sequence[Injection] = ()
    env_vars: Mapping[str, str] = attrs.field(factory=dict)
    description: str | None = None

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Whether it is for requests to a host at all."""
        if (
            not self.enabled
            or not self.headers
            or self.port not in (None, port)
            or (self.https_only and scheme == "http")
        ):
            return False
        return any(entry.covers_name(host, port) or _is_literally(entry, host, port) for entry in self.hosts)

    def matches(self, path: str, headers: Mapping[str, Sequence[str]]) -> bool:
        """Whether it is for this request to such a host. The path is without its query."""
        if self.paths and (_UNTIDY.search(path) or not any(_path_matches(pattern, path) for pattern in self.paths)):
            return False
        return all(value in headers.get(name, ()) for name, value in self.wanted)

    def shown(self, *, whole: bool = False) -> dict[str, Any]:
        """What reads show: as it was asked for, without secrets unless `whole`."""
        members: dict[str, Any] = {
            "match_hosts": [entry.text for entry in self.hosts],
            "match_paths": list(self.paths),
            "match_headers": [f"{name}: {value}" for name, value in self.wanted],
            "match_port": self.port,
            "match_scheme": "https" if self.https_only else None,
            "headers": [header.shown(whole=whole) for header in self.headers],
            "env_vars": dict(self.env_vars),
            "description": self.description,
        }
        set_members = {name: value for name, value in members.items() if value}
        return {"name": self.name, "enabled": self.enabled, **set_members}


@attrs.frozen(kw_only=True)
class ProxyConfig:
    """A sandbox's rules for its way out. Of the rules that match a request, the first is followed."""

    rules: Sequence[HeaderRule] = ()
    access: AccessControl = attrs.field(factory=AccessControl)
    description: str | None = None

    def intercepts(self, host: str, port: int) -> bool:
        """Whether requests in an encrypted tunnel to a host must be seen, since a rule may add to them."""
        return any(rule.covers("https", host, port) for rule in self.rules)

    @property
    def may_intercept(self) -> bool:
        """Whether the sandbox must trust our certificates."""
        return any(rule.headers and rule.enabled for rule in self.rules)

    def rule_for(
        self, scheme: str, host: str, port: int, path: str, headers: Mapping[str, Sequence[str]]
    ) -> HeaderRule | None:
        """The rule that adds to a request."""
        for rule in self.rules:
            if rule.covers(scheme, host, port) and rule.matches(path, headers):
                return rule
        return None

    @property
    def env_vars(self) -> dict[str, str]:
        """The variables of all rules that are enabled; of the same name, the last rule's."""
        return {name: value for rule in self.rules if rule.enabled for name, value in rule.env_vars.items()}

    def shown(self) -> dict[str, Any] | None:
        """The member `proxy_config` of a sandbox; None if there is nothing to say."""
        return None if self == NO_RULES else self._render(whole=False)

    def document(self) -> dict[str, Any]:
        """What `parse_proxy_config` makes the same rules of. It holds the secrets."""
        return self._render(whole=True)

    def _render(self, *, whole: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {"rules": [rule.shown(whole=whole) for rule in self.rules]}
        if self.access.mode is not None:
            shown["access_control"] = {f"{self.access.mode}_list": [entry.text for entry in self.access.entries]}
        if self.description is not None:
            shown["description"] = self.description
        return shown


NO_RULES: Final = ProxyConfig()


def _is_literally(entry: Entry, host: str, port: int) -> bool:
    return entry.network is not None and entry.port in (None, port) and host == str(entry.network.network_address)


def _path_matches(pattern: str, path: str) -> bool:
    if pattern == "*":
        return True
    if pattern.endswith(("/*", "/**")):
        return path.startswith(pattern.rstrip("*").removesuffix("/"))
    if pattern.startswith("*/"):
        return path.endswith(pattern[2:])
    return path == pattern


def parse_proxy_config(document: object, *, before: ProxyConfig = NO_RULES) -> ProxyConfig:
    """What `proxy_config` asks for. An opaque value with `is_set` and no value is taken from the rule and header of the
    same names in `before`.

    Raises InvalidFieldsError, which names every member that is wrong or not offered.
    """
    reader = _Reader(before)
    config = reader.config(document)
    if reader.details:
        raise InvalidFieldsError(reader.details)
    return config


class _Reader:
    """Reads a document member by member, and collects what is wrong with it."""

    def __init__(self, before: ProxyConfig) -> None:
        self.details: list[Detail] = []
        self._kept = {
            (rule.name, header.name.lower()): header.value
            for rule in before.rules
            for header in rule.headers
            if header.secret
        }

    def _wrong(self, where: str, message: str) -> None:
        self.details.append(Detail(where, f"{where}: {message}"))

    def config(self, document: object) -> ProxyConfig:
        where = "proxy_config"
        members = self._object(document, where)
        self._only(members, {"rules", "access_control", "callbacks", "no_proxy", "description"}, where)
        if members.get("callbacks"):
            self._wrong(f"{where}.callbacks", "this server asks nobody for headers")
        rules = [
            self._rule(rule, f"{where}.rules.{number}")
            for number, rule in enumerate(self._list(members, "rules", where, MAX_RULES))
        ]
        names = [rule.name for rule in rules]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._wrong(f"{where}.rules", f"there are two rules named {name!r}")
        access = self._access(members.get("access_control"), f"{where}.access_control")
        return ProxyConfig(rules=tuple(rules), access=access, description=self._text(members, "description", where))

    def _access(self, document: object, where: str) -> AccessControl:
        if document is None:
            return AccessControl()
        members = self._object(document, where)
        self._only(members, {"allow_list", "deny_list"}, where)
        given = [name for name in ("allow_list", "deny_list") if members.get(name) is not None]
        if len(given) != 1:
            if given:
                self._wrong(where, "give an allow_list or a deny_list, not both")
            return AccessControl()
        entries = self._entries(members, given[0], where, MAX_ENTRIES)
        return AccessControl(mode="allow" if given[0] == "allow_list" else "deny", entries=entries)

    def _rule(self, document: object, where: str) -> HeaderRule:
        members = self._object(document, where)
        kind = members.get("type")
        for member in [kind, *members] if isinstance(kind, str) else members:
            if member in _NOT_OFFERED and (member == kind or members.get(str(member)) is not None):
                self._wrong(f"{where}.{member if member in members else 'type'}", _NOT_OFFERED[str(member)])
        self._only(members, _RULE_MEMBERS | _NOT_OFFERED.keys(), where)
        if kind not in (None, "", *_NOT_OFFERED):
            self._wrong(f"{where}.type", f"{kind!r} is not a type of rule")
        headers = tuple(self._headers(members, where))
        hosts = self._entries(members, "match_hosts", where, MAX_MATCHES)
        if headers and not hosts:
            self._wrong(f"{where}.match_hosts", "name the hosts that are to be sent these headers")
        scheme = members.get("match_scheme")
        if scheme not in (None, "https"):
            self._wrong(f"{where}.match_scheme", "must be https, or left out")
        enabled = members.get("enabled")
        if enabled not in (None, True, False):
            self._wrong(f"{where}.enabled", "must be true or false")
        port = members.get("match_port")
        if port is not None and (type(port) is not int or not 1 <= port <= 65535):
            self._wrong(f"{where}.match_port", "must be 1 to 65535")
            port = None
        name = self._text(members, "name", where)
        if not name:
            self._wrong(f"{where}.name", "a rule has a name")
        return HeaderRule(
            name=name or "",
            enabled=enabled is not False,
            hosts=hosts,
            paths=tuple(self._paths(members, where)),
            wanted=tuple(self._wanted(members, where)),
            port=port,
            https_only=scheme == "https",
            headers=headers,
            env_vars=self._variables(members.get("env_vars"), f"{where}.env_vars"),
            description=self._text(members, "description", where),
        )

    def _headers(self, rule: Mapping[str, Any], where: str) -> Iterator[Injection]:
        for number, document in enumerate(self._list(rule, "headers", where, MAX_HEADERS)):
            here = f"{where}.headers.{number}"
            members = self._object(document, here)
            self._only(members, {"name", "type", "value", "is_set"}, here)
            name, kind, value = members.get("name"), members.get("type"), members.get("value")
            if not isinstance(name, str) or not _TOKEN.fullmatch(name) or name.lower().startswith("proxy-"):
                self._wrong(f"{here}.name", "is not the name of a header")
                continue
            if name.lower() in _NOT_INJECTED:
                self._wrong(f"{here}.name", f"{name!r} cannot be set by a rule")
            if kind == "workspace_secret":
                self._wrong(f"{here}.type", "workspace_secret: this server has no workspace; send the value as opaque")
            elif kind not in ("plaintext", "opaque"):
                self._wrong(f"{here}.type", "must be plaintext or opaque")
            if kind == "opaque" and value is None and members.get("is_set") is True:
                value = self._kept.get((str(rule.get("name")), name.lower()))
                if value is None:
                    self._wrong(f"{here}.is_set", "no value of this rule and header is kept: send one")
                    continue
            if not isinstance(value, str) or len(value) > MAX_VALUE or not _VALUE.fullmatch(value):
                self._wrong(f"{here}.value", f"must be text of 1 to {MAX_VALUE:,} characters in one line")
                continue
            yield Injection(name=name, secret=kind == "opaque", value=value)

    def _paths(self, rule: Mapping[str, Any], where: str) -> Iterator[str]:
        for number, path in enumerate(self._list(rule, "match_paths", where, MAX_MATCHES)):
            inner = path.strip("*").removesuffix("/") if isinstance(path, str) else "*"
            if "*" in inner or not isinstance(path, str) or not path.startswith(("/", "*")) or len(path) > MAX_TEXT:
                self._wrong(f"{where}.match_paths.{number}", "must be a path, '/prefix/*', '*/ending' or '*'")
            else:
                yield path

    def _wanted(self, rule: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(self._list(rule, "match_headers", where, MAX_MATCHES)):
            name, colon, value = line.partition(":") if isinstance(line, str) else ("", "", "")
            if not colon or not _TOKEN.fullmatch(name) or name != name.lower() or len(line) > MAX_VALUE:
                self._wrong(f"{where}.match_headers.{number}", "must be 'name: value', the name in lower case")
            else:
                yield name, value.strip()

    def _entries(self, members: Mapping[str, Any], name: str, where: str, most: int) -> tuple[Entry, ...]:
        found = []
        for number, text in enumerate(self._list(members, name, where, most)):
            here = f"{where}.{name}.{number}"
            if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
                self._wrong(here, "must be text")
                continue
            try:
                found.append(parse_entry(text))
            except ValueError as error:
                self._wrong(here, str(error))
        return tuple(found)

    def _variables(self, document: object, where: str) -> dict[str, str]:
        members = {} if document is None else self._object(document, where)
        if len(members) > MAX_MATCHES:
            self._wrong(where, f"has more than {MAX_MATCHES} members")
        for name, value in members.items():
            if not _VARIABLE.fullmatch(name) or not isinstance(value, str) or "\0" in value:
                self._wrong(where, "maps names without '=' to texts")
                return {}
        return dict(members)

    def _object(self, document: object, where: str) -> Mapping[str, Any]:
        if isinstance(document, dict):
            return document
        self._wrong(where, "must be an object")
        return {}

    def _list(self, members: Mapping[str, Any], name: str, where: str, most: int) -> Sequence[Any]:
        value = members.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > most:
            self._wrong(f"{where}.{name}", f"must be a list of at most {most}")
            return ()
        return value

    def _text(self, members: Mapping[str, Any], name: str, where: str) -> str | None:
        value = members.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable()):
            self._wrong(f"{where}.{name}", f"must be text of at most {MAX_TEXT} characters")
            return None
        return value

    def _only(self, members: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
        for name in sorted(members.keys() - known):
            self._wrong(f"{where}.{name}", "is not a member that this server knows")
