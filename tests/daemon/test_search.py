"""Glob and grep (wire protocol, section 4.3; choices C8 to C12)."""

from __future__ import annotations

import fnmatch
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.daemon.search import Pattern, walk
from tests.daemon.test_http import fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    import httpx

    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio

FILES = ["a.py", "b.txt", ".hidden", "a/one.py", "a/two.TXT", "a/b/three.py", "a/b/c/four.py", "a.b/five.py", "[x]/six"]


@pytest.fixture(scope="module")
def tree(daemon: Daemon) -> Path:
    """A folder with files."""
    root = daemon.root / "tree"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"first\nneedle in {name}\n")
    return root


async def ask(daemon: Daemon, call: str, **body: Any) -> httpx.Response:
    async with daemon.http() as client:
        return await client.post(f"/{call}", json={name: str(v) if name == "path" else v for name, v in body.items()})


async def glob(daemon: Daemon, tree: Path, pattern: str, **members: Any) -> list[str]:
    """Return the relative paths of all matches, in the order of the response."""
    response = await ask(daemon, "glob", pattern=pattern, path=tree, **members)
    assert response.status_code == 200, response.text
    return [os.path.relpath(match["path"], tree) for match in response.json()["matches"]]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", [".hidden", "[x]", "a", "a.b", "a.py", "b.txt"]),
        ("*.py", ["a.py"]),
        ("**/*.py", ["a.b/five.py", "a.py", "a/b/c/four.py", "a/b/three.py", "a/one.py"]),
        ("a/**", ["a", "a/b", "a/b/c", "a/b/c/four.py", "a/b/three.py", "a/one.py", "a/two.TXT"]),
        ("a/**/b/*.py", ["a/b/three.py"]),
        ("**/c/**", ["a/b/c", "a/b/c/four.py"]),
        ("?.[pt][yx]*", ["a.py", "b.txt"]),
        ("[!a].*", ["b.txt"]),
        ("[[]x]/*", ["[x]/six"]),
        ("a/two.txt", []),
        ("./a//one.py", ["a/one.py"]),
        ("../*", []),
        ("nothing", []),
    ],
)
async def test_globs(daemon: Daemon, tree: Path, pattern: str, expected: list[str]) -> None:
    assert await glob(daemon, tree, pattern) == expected


async def test_everything_is_in_the_lexical_order_of_paths_and_without_the_root(daemon: Daemon, tree: Path) -> None:
    found = await glob(daemon, tree, "**")

    assert found == sorted(found)
    assert set(FILES) < set(found)
    assert "." not in found


async def test_a_match_says_what_it_is(daemon: Daemon, tree: Path) -> None:
    response = await ask(daemon, "glob", pattern="a*", path=tree)
    folder, _, file = response.json()["matches"]

    assert response.json()["truncated"] is False
    assert (folder["path"], folder["is_dir"]) == (str(tree / "a"), True)
    assert (file["path"], file["is_dir"], file["size_bytes"]) == (str(tree / "a.py"), False, 21)
    assert file["modified_at"].endswith("Z")


async def test_symlinks_are_found_and_not_followed(daemon: Daemon, tree: Path, tmp_path: Path) -> None:
    root = daemon.root / "links"
    root.mkdir()
    (root / "folder").symlink_to(tree)
    (root / "broken").symlink_to("nowhere")
    response = await ask(daemon, "glob", pattern="**", path=root)

    found = {os.path.basename(match["path"]): match["is_dir"] for match in response.json()["matches"]}
    assert found == {"folder": True, "broken": False}


async def test_limits_truncate(daemon: Daemon, tree: Path) -> None:
    for call, pattern, count in (("glob", "**", 15), ("grep", "needle", len(FILES))):
        response = (await ask(daemon, call, pattern=pattern, path=tree, limit=2)).json()
        assert (len(response["matches"]), response["truncated"]) == (2, True)
        response = (await ask(daemon, call, pattern=pattern, path=tree, limit=count)).json()
        assert response["truncated"] is (len(response["matches"]) > count)


async def test_a_search_that_takes_too_long_is_truncated(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"search_seconds": 0.0}) as daemon:
        (daemon.root / "file").write_text("x")
        for call in ("glob", "grep"):
            response = await ask(daemon, call, pattern="x", path=daemon.root)
            assert response.json() == {"matches": [], "truncated": True}


async def test_an_answer_is_bounded(own_daemon: Callable[..., AbstractContextManager[Daemon]]) -> None:
    with own_daemon(limits={"search_bytes": 50_000}) as daemon:
        (daemon.root / "file").write_text(("x" * 1000 + "\n") * 100)
        response = (await ask(daemon, "grep", pattern="x", path=daemon.root)).json()
        assert 40 < len(response["matches"]) < 50
        assert response["truncated"]


async def test_grep_finds_lines(daemon: Daemon, tree: Path) -> None:
    response = await ask(daemon, "grep", pattern="needle", path=tree)
    matches = response.json()["matches"]

    assert [os.path.relpath(match["path"], tree) for match in matches] == sorted(FILES)
    assert {match["line"] for match in matches} == {2}
    assert matches[0]["text"] == f"needle in {sorted(FILES)[0]}"


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("*.py", ["a.b/five.py", "a.py", "a/b/c/four.py", "a/b/three.py", "a/one.py"]),
        ("a/*.py", ["a/one.py"]),
        ("**/b/*", ["a/b/three.py"]),
        ("nothing", []),
    ],
)
async def test_grep_searches_the_files_of_a_glob(daemon: Daemon, tree: Path, only: str, expected: list[str]) -> None:
    response = await ask(daemon, "grep", pattern="needle", path=tree, glob=only)

    assert [os.path.relpath(match["path"], tree) for match in response.json()["matches"]] == expected


async def test_a_pattern_of_grep_is_a_text_and_no_expression(daemon: Daemon) -> None:
    root = daemon.root / "grep"
    root.mkdir()
    (root / "text").write_bytes(b"a.c\nabc\r\nx \xff y\nlast a.c without end")
    (root / "binary").write_bytes(b"a.c\n\0")
    (root / "long").write_bytes(b"x" * 3_000_000 + b"a.c\nnext\n" + b"y" * ((1 << 20) - 1) + b"a.c")
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to(root / "text")

    response = await ask(daemon, "grep", pattern="a.c", path=root)
    found = [
        (os.path.basename(match["path"]), match["line"], match["text"][:10]) for match in response.json()["matches"]
    ]
    assert found == [
        ("long", 1, "x" * 10),
        ("long", 3, "y" * 10),
        ("text", 1, "a.c"),
        ("text", 4, "last a.c w"),
    ]
    assert len(response.json()["matches"][0]["text"]) == 2000
    single = (await ask(daemon, "grep", pattern="y", path=root / "text")).json()["matches"]
    assert single == [{"path": str(root / "text"), "line": 3, "text": "x \ufffd y"}]
    through_link = (await ask(daemon, "grep", pattern="abc", path=root / "link")).json()["matches"]
    assert [match["text"] for match in through_link] == ["abc"]


async def test_what_is_missing_is_an_error(daemon: Daemon, tree: Path) -> None:
    for call in ("glob", "grep"):
        assert fault(await ask(daemon, call, pattern="x", path=tree / "missing")) == (404, "FileNotFound")
    assert fault(await ask(daemon, "glob", pattern="x", path=tree / "a.py")) == (404, "FileNotFound")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"pattern": "", "path": "/"},
        {"pattern": 5, "path": "/"},
        {"pattern": "x"},
        {"pattern": "x", "path": ""},
        {"pattern": "x", "path": "a\0"},
        {"pattern": "x", "path": "/", "limit": 0},
        {"pattern": "x", "path": "/", "limit": "many"},
        {"pattern": "x", "path": "/", "limit": True},
    ],
)
async def test_a_request_that_makes_no_sense_is_an_error(daemon: Daemon, body: dict[str, Any]) -> None:
    for call in ("glob", "grep"):
        assert fault(await ask(daemon, call, **body)) == (400, "InvalidRequest")
    assert fault(await ask(daemon, "grep", pattern="x", path="/", glob=5)) == (400, "InvalidRequest")


async def test_what_is_forbidden_is_passed_over(own_daemon: Callable[..., AbstractContextManager[Daemon]]) -> None:
    with own_daemon() as daemon:
        (daemon.root / "a").mkdir()
        (daemon.root / "a" / "gone").symlink_to("nowhere")
        response = await ask(daemon, "grep", pattern="x", path=daemon.root)
        assert response.json() == {"matches": [], "truncated": False}


SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "?", "a*", "[ab]"]), min_size=1, max_size=4)


def slow_match(pattern: list[str], segments: list[str]) -> bool:
    """What a pattern means, told in the plainest way."""
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(slow_match(pattern[1:], segments[count:]) for count in range(len(segments) + 1))
    return bool(segments) and fnmatch.fnmatchcase(segments[0], pattern[0]) and slow_match(pattern[1:], segments[1:])


@given(PATTERNS, SEGMENTS)
def test_a_pattern_matches_what_it_means(pattern: list[str], segments: list[str]) -> None:
    compiled = Pattern("/".join(pattern))
    state = compiled.start
    for segment in segments:
        state = compiled.advance(state, segment)

    assert compiled.matches(state) == slow_match(pattern, segments)


def test_what_a_pattern_cannot_match_is_not_walked(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for index in range(20):
        (tmp_path / "c" / str(index)).mkdir(parents=True)
    looked: list[None] = []

    assert [entry.name for entry in walk(str(tmp_path), Pattern("a/b"), lambda: looked.append(None))] == ["b"]
    assert len(looked) < 15


async def test_a_text_that_is_none_is_said_to_be_none(daemon: Daemon, tree: Path) -> None:
    async with daemon.http() as client:
        response = await client.post("/grep", content=b'{"pattern":"\\ud800","path":"%b"}' % str(tree).encode())
    assert fault(response) == (400, "InvalidRequest")
