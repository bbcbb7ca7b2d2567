"""Building from a Dockerfile, as data: what of a folder is sent, and what is run where it arrives (section 1.10).

The build runs in a sandbox. A service of this project makes one for it (`builder_call`), with buildah in it; another
service's default snapshot has BuildKit and a Docker engine. Both end with an image of a name that is captured.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..models import SandboxRecord
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import create_error

if TYPE_CHECKING:
    from .http_requests import ControlPlane

__all__ = ["BuildWish", "IgnoreRules", "builder_call"]

_BUILDER_TIMEOUT: Final = 60.0
_START_TRIES: Final = 150
"""Looks for BuildKit, five a second."""


@attrs.frozen
class _Rule:
    """One line of a `.dockerignore`."""

    pattern: re.Pattern[str]
    keeps: bool


class IgnoreRules:
    """What a `.dockerignore` leaves out: the last line decides that matches a path or a folder it is in."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for a pattern that is none, with its line."""
        self._rules: list[_Rule] = []
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            pattern = line.strip()
            if not pattern or line.startswith("#"):
                continue
            keeps = pattern.startswith("!")
            cleaned = _clean(pattern.removeprefix("!").strip())
            if cleaned:
                try:
                    self._rules.append(_Rule(re.compile(_translate(cleaned)), keeps))
                except re.error as error:
                    raise ValueError(f"line {number} of .dockerignore is no pattern: {line!r}: {error}") from error

    def excludes(self, path: str) -> bool:
        """Whether a path, relative to the folder and with `/` between its parts, is left out."""
        parts = path.split("/")
        ways = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        excluded = False
        for rule in self._rules:
            if rule.keeps is excluded and any(rule.pattern.fullmatch(way) for way in ways):
                excluded = not rule.keeps
        return excluded

    @property
    def may_keep_below(self) -> bool:
        """Whether something in a folder that is left out may be kept all the same."""
        return any(rule.keeps for rule in self._rules)


def _clean(pattern: str) -> str:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _translate(pattern: str) -> str:
    """The regular expression of a pattern: `*` and `?` stay within a part of a path, `**` does not."""
    out, position = "", 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith("**/"):
            out, position = f"{out}(?:.*/)?", position + 3
        elif rest.startswith("**"):
            out, position = f"{out}.*", position + 2
        elif rest[0] == "*":
            out, position = f"{out}[^/]*", position + 1
        elif rest[0] == "?":
            out, position = f"{out}[^/]", position + 1
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            out, position = f"{out}[{_members(rest[1:end])}]", position + end + 1
        elif rest[0] == "\\" and len(rest) > 1:
            out, position = out + re.escape(rest[1]), position + 2
        else:
            out, position = out + re.escape(rest[0]), position + 1
    return out


def _members(text: str) -> str:
    negated = "^" if text[0] in "^!" else ""
    return negated + re.sub(r"([\\\[\]&~|^])", r"\\\1", text[len(negated) :])


@attrs.frozen(kw_only=True)
class BuildWish:
    """One build. `folder` is where it happens, in the sandbox; `image` is what its result is called there."""

    folder: str
    image: str
    dockerfile: str
    """Within the context."""
    build_args: Mapping[str, str] = attrs.field(factory=dict)
    target: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what no builder takes.

        Raises:
            ValueError: It says what is wrong.
        """
        for name, value in self.build_args.items():
            if not re.fullmatch(r"\w+", name) or "\0" in value:
                raise ValueError(f"a build argument has a name of letters, digits and '_', not {name!r}, and no NUL")

    @property
    def archive(self) -> str:
        """Where the context is put, as a tar file."""
        return f"{self.folder}/context.tar"

    @property
    def unpack_script(self) -> str:
        """What makes a folder of the archive."""
        context, archive = shlex.quote(f"{self.folder}/context"), shlex.quote(self.archive)
        return f"rm -rf {context} && mkdir -p {context} && tar -xf {archive} -C {context} && rm {archive}"

    @property
    def buildah_script(self) -> str:
        """The build by buildah, which needs no daemon."""
        context = f"{self.folder}/context"
        words = ["buildah", "bud", "--tag", self.image, "--file", f"{context}/{self.dockerfile}"]
        words += [] if self.target is None else ["--target", self.target]
        words += [word for name, value in self.build_args.items() for word in ("--build-arg", f"{name}={value}")]
        return f"{shlex.join([*words, context])} 2>&1"

    @property
    def buildkit_script(self) -> str:
        """The build by BuildKit, whose result a Docker engine loads."""
        context, root = f"{self.folder}/context", f"{self.folder}/buildkit"
        address = f"unix://{root}/buildkitd.sock"
        folder, _, name = f"{context}/{self.dockerfile}".rpartition("/")
        options = [f"filename={name}"]
        options += [] if self.target is None else [f"target={self.target}"]
        options += [f"build-arg:{key}={value}" for key, value in self.build_args.items()]
        build = ["buildctl", "--addr", address, "build", "--progress", "plain", "--frontend", "dockerfile.v0"]
        build += ["--local", f"context={context}", "--local", f"dockerfile={folder}"]
        build += [word for option in options for word in ("--opt", option)]
        build += ["--output", f"type=docker,name={self.image}"]
        daemon = ["buildkitd", "--root", f"{root}/root", "--addr", address, "--oci-worker-binary", "buildkit-runc"]
        daemon += ["--oci-worker-snapshotter", "native"]
        return _lines(
            (
                "set -euo pipefail",
                f"mkdir -p {shlex.quote(root)}",
                f"{shlex.join(daemon)} >{shlex.quote(f'{root}/log')} 2>&1 &",
                "trap 'kill %1' EXIT",
                f"for _ in $(seq {_START_TRIES}); do",
                f"  {shlex.join(['buildctl', '--addr', address, 'debug', 'workers'])} >/dev/null 2>&1 && break",
                "  sleep 0.2",
                "done",
                f"{shlex.join(build)} | docker load",
            )
        )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def builder_call(control: ControlPlane, vcpus: float | None, mem_bytes: int | None) -> HttpCall[SandboxRecord | None]:
    """`POST /snapshots/builder`: a sandbox to build in; None from a service that makes none."""

    def read(response: HttpResponse) -> SandboxRecord | None:
        if response.status in (404, 405):
            return None
        if not response.success:
            raise create_error(response)
        return SandboxRecord.from_dict(json_object(response))

    payload: dict[str, Any] = {"vcpus": vcpus, "mem_bytes": mem_bytes}
    return HttpCall(
        method="POST",
        url=f"{control.url}/snapshots/builder",
        read=read,
        timeout=_BUILDER_TIMEOUT,
        resend=Resend.IF_REFUSED,
        **json_body({name: value for name, value in payload.items() if value is not None}),
    )
