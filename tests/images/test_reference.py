"""How images are named."""

from __future__ import annotations

import pytest

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.reference import ImageReference

DIGEST = "sha256:" + "0123456789abcdef" * 4

WHOLE = {
    "debian": "docker.io/library/debian:latest",
    "debian:12": "docker.io/library/debian:12",
    "someone/tool": "docker.io/someone/tool:latest",
    "docker.io/debian": "docker.io/library/debian:latest",
    "index.docker.io/debian:a.B-c_1": "docker.io/library/debian:a.B-c_1",
    f"debian@{DIGEST}": f"docker.io/library/debian@{DIGEST}",
    f"ghcr.io/a/b/c:1@{DIGEST}": f"ghcr.io/a/b/c:1@{DIGEST}",
    "GHCR.io/a/b": "ghcr.io/a/b:latest",
    "localhost/a": "localhost/a:latest",
    "localhost:5000/a:b": "localhost:5000/a:b",
    "registry:5000/a/b__c--d.e": "registry:5000/a/b__c--d.e:latest",
    "[::1]:5000/a": "[::1]:5000/a:latest",
}


@pytest.mark.parametrize("text", WHOLE)
def test_a_name_becomes_whole(text: str) -> None:
    reference = ImageReference.parse(text)
    assert str(reference) == WHOLE[text]
    assert ImageReference.parse(str(reference)) == reference


def test_a_digest_is_asked_for_before_a_tag() -> None:
    assert ImageReference.parse(f"a/b:tag@{DIGEST}").wanted == DIGEST
    assert ImageReference.parse("a/b:tag").wanted == "tag"


WRONG = {
    "": "no repository",
    " debian": "no repository",
    "Debian": "capital letters",
    "debian:": "no tag",
    "debian:a b": "no tag",
    "debian:" + "x" * 129: "no tag",
    "debian@sha256:abc": "no digest",
    "debian@md5:" + "0" * 32: "no digest",
    "a//b": "no repository",
    "a/../b": "no repository",
    "a/b/": "no repository",
    "https://ghcr.io/a/b": "no repository|not a host",
    "-bad.example/a": "not a host",
    "host:99999/a": "not a host and a port",
    "host:0/a": "not a host and a port",
    "a..b/c": "not a host",
    "ghcr.io/" + "a" * 256: "no repository",
    "user@ghcr.io/a": "no digest",
    "debi\u00e4n": "no repository",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_name_is_said(text: str) -> None:
    with pytest.raises(ImageError, match=WRONG[text]) as caught:
        ImageReference.parse(text)
    assert caught.value.kind == "ImageReference"
    assert len(str(caught.value)) < 1000
