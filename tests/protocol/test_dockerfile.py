"""What of a folder is sent to be built, and what is run there."""

from __future__ import annotations

import json

import pytest

from sandbox_aio import errors
from sandbox_aio.models import SandboxRecord
from sandbox_aio.protocol.dockerfile import BuildWish, IgnoreRules, builder_call
from sandbox_aio.protocol.http_call import HttpResponse
from sandbox_aio.protocol.http_requests import ControlPlane

CASES = [
    # The lines, and which paths they leave out and keep.
    ("", "", "a b/c"),
    ("# a comment\n\n  \n", "", "a #"),
    ("node_modules", "node_modules node_modules/x/y", "a/node_modules nodemodules"),
    ("/secret/", "secret secret/key", "a/secret"),
    ("*.log", "a.log .log", "a/b.log log"),
    ("**/*.log", "a.log a/b.log a/b/c.log", "a.logs a/log"),
    ("a/**", "a/b a/b/c", "a b"),
    ("a/*/c", "a/b/c a/b/c/d", "a/c a/b/x/c"),
    ("a?", "ab a1 ab/c", "a abc a/b"),
    ("[a-c]x", "ax bx cx", "dx x"),
    ("[^a]x", "bx", "ax"),
    ("[!a]x", "bx", "ax"),
    ("[]]x", "]x", "x"),
    (r"\*x", "*x", "ax"),
    ("a.b", "a.b", "axb"),
    ("./a/../b//c", "b/c", "a a/b"),
    ("*\n!keep", "a b/c", "keep keep/x"),
    ("*.md\n!R*.md\nREADME-x.md", "a.md README-x.md", "README.md"),
    ("a\n!a/b\na/b/c", "a a/x a/b/c", "a/b a/b/d"),
    ("..", "", "a"),
    ("[", "[", "a"),
    ("x\\", "x\\", "x"),
]


@pytest.mark.parametrize(("text", "left_out", "kept"), CASES)
def test_what_a_dockerignore_leaves_out(text: str, left_out: str, kept: str) -> None:
    rules = IgnoreRules(text)
    assert [path for path in left_out.split() if not rules.excludes(path)] == []
    assert [path for path in kept.split() if rules.excludes(path)] == []
    assert rules.may_keep_below is ("!" in text.replace("[!", ""))


def test_a_line_that_is_no_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"line 2 of .dockerignore is no pattern"):
        IgnoreRules("a\n[z-a]x")


WISH = BuildWish(folder="/w", image="it", dockerfile="sub/Dockerfile", build_args={"A": "b c"}, target="t")


def test_the_scripts_quote_what_they_are_given() -> None:
    assert WISH.archive == "/w/context.tar"
    assert WISH.unpack_script.endswith("tar -xf /w/context.tar -C /w/context && rm /w/context.tar")
    assert WISH.buildah_script == (
        "buildah bud --tag it --file /w/context/sub/Dockerfile --target t --build-arg 'A=b c' /w/context 2>&1"
    )
    script = WISH.buildkit_script
    assert "--local dockerfile=/w/context/sub" in script
    assert "--opt filename=Dockerfile --opt target=t --opt 'build-arg:A=b c'" in script
    assert script.endswith("--output type=docker,name=it | docker load")


def test_without_a_target_none_is_named() -> None:
    plain = BuildWish(folder="/w", image="it", dockerfile="Dockerfile")
    assert "target" not in plain.buildah_script + plain.buildkit_script


@pytest.mark.parametrize("argument", [{"a b": "c"}, {"": "c"}, {"a": "\0"}])
def test_an_argument_that_no_builder_takes_is_refused(argument: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a build argument"):
        BuildWish(folder="/w", image="it", dockerfile="Dockerfile", build_args=argument)


def test_a_builder_is_asked_for_and_may_not_exist() -> None:
    call = builder_call(ControlPlane("http://h/v2", 10), 2, None)
    assert call.url == "http://h/v2/snapshots/builder"
    assert json.loads(call.body or b"") == {"vcpus": 2}
    made = HttpResponse(status=201, body=b'{"name": "b"}')
    assert call.read(made) == SandboxRecord("b")
    for status in (404, 405):
        assert call.read(HttpResponse(status=status, body=b"")) is None
    with pytest.raises(errors.SandboxClientError):
        call.read(HttpResponse(status=501, body=b'{"detail": {"error": "NotImplemented", "message": "no"}}'))
