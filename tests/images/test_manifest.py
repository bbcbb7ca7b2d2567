"""What a registry says of an image, and what it must not say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.manifest import (
    ARCHITECTURE,
    MAX_IMAGE_LAYERS,
    Manifest,
    chain_ids,
    choose_platform,
    parse_config,
    parse_manifest,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
PART = {"digest": A, "size": 3}
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", **PART}


def manifest(document: Any) -> Manifest:
    found = parse_manifest(json.dumps(document).encode(), image="it")
    assert isinstance(found, Manifest)
    return found


def index(*platforms: dict[str, str] | None) -> bytes:
    entries = [{"digest": "sha256:" + f"{number:064}", "size": 1, "platform": p} for number, p in enumerate(platforms)]
    return json.dumps({"manifests": entries}).encode()


def choose(*platforms: dict[str, str] | None) -> int:
    found = parse_manifest(index(*platforms), image="it")
    assert isinstance(found, list)
    return int(choose_platform(found, image="it").digest[7:])


def test_a_manifest_names_its_parts() -> None:
    found = manifest({"schemaVersion": 2, "config": CONFIG, "layers": [PART, {"digest": B, "size": 9}]})
    assert (found.config.digest, [layer.size for layer in found.layers]) == (A, [3, 9])


WRONG: dict[str, tuple[Any, str]] = {
    "not an object": ([1], "no object"),
    "schema 1": ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
    "no layers": ({"config": CONFIG}, "no layers"),
    "two at once": ({"config": CONFIG, "layers": [], "manifests": []}, "at once"),
    "an artifact": (
        {"config": {**PART, "mediaType": "application/vnd.cncf.helm.config.v1+json"}, "layers": []},
        "helm",
    ),
    "a digest that is none": ({"config": {"digest": "sha256:../../x", "size": 1}, "layers": []}, "no descriptor"),
    "a negative size": ({"config": {"digest": A, "size": -1}, "layers": []}, "no descriptor"),
    "a size that is none": ({"config": {"digest": A, "size": True}, "layers": []}, "no descriptor"),
    "a huge size": ({"config": {"digest": A, "size": 1 << 60}, "layers": []}, "no descriptor"),
    "too many layers": ({"config": CONFIG, "layers": [PART] * (MAX_IMAGE_LAYERS + 1)}, "flatten"),
    "an index of nonsense": ({"manifests": [1]}, "no descriptor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_that_cannot_be_used_says_why(name: str) -> None:
    document, reason = WRONG[name]
    with pytest.raises(ImageError, match=reason) as caught:
        parse_manifest(json.dumps(document).encode(), image="it")
    assert caught.value.kind == "ImagePull"
    assert str(caught.value).startswith("it cannot be used: ")


@pytest.mark.parametrize("data", [b"", b"<html>", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not JSON"):
        parse_manifest(data, image="it")


def test_this_machines_platform_is_chosen() -> None:
    other = {"os": "linux", "architecture": "s390x"}
    attestation = {"os": "unknown", "architecture": "unknown"}
    windows = {"os": "windows", "architecture": ARCHITECTURE}
    assert choose(attestation, other, windows, {"os": "linux", "architecture": ARCHITECTURE}, other) == 3
    assert choose(other, None) == 1


def test_other_platforms_are_listed_but_not_without_end() -> None:
    with pytest.raises(ImageError, match=r"but for linux/arm/v7, linux/s390x$") as caught:
        choose({"os": "linux", "architecture": "s390x"}, {"os": "linux", "architecture": "arm", "variant": "v7"})
    assert caught.value.kind == "ImagePlatform"
    with pytest.raises(ImageError, match="and more") as caught:
        choose(*({"os": "x" * 1000, "architecture": str(number)} for number in range(500)),
               *({"os": str(number), "architecture": "x" * 1000} for number in range(500)))  # fmt: skip
    assert len(str(caught.value)) < 2000
    with pytest.raises(ImageError, match="but for nothing"):
        choose({"os": "unknown", "architecture": "unknown"})


def config(document: Any, layers: int = 1) -> Any:
    whole = {"architecture": ARCHITECTURE, "os": "linux", "rootfs": {"diff_ids": [A] * layers}, **document}
    return parse_config(json.dumps(whole).encode(), image="it", layers=1)


def test_a_configuration_is_taken_as_far_as_it_makes_sense() -> None:
    found = config(
        {
            "config": {
                "User": "1000:1000",
                "WorkingDir": "app",
                "Env": ["A=1=2", "B=", "=x", "C", 7, "D=\0"],
                "Entrypoint": ["/bin/x"],
                "Cmd": None,
                "ExposedPorts": {"80/tcp": {}},
                "Labels": {"a": 1},
            }
        }
    )
    assert (found.user, found.work_dir, found.env_vars) == ("1000:1000", "/app", {"A": "1=2", "B": ""})
    assert (found.entrypoint, found.cmd, found.exposed_ports, found.labels) == (
        ("/bin/x",),
        (),
        ("80/tcp",),
        {"a": "1"},
    )
    bare = config({"config": {"User": "", "Env": "A=1"}})
    assert (bare.user, bare.work_dir, bare.env_vars) == (None, None, {})


def test_a_configuration_of_another_machine_or_another_image_is_refused() -> None:
    with pytest.raises(ImageError, match="linux/s390x") as caught:
        config({"architecture": "s390x"})
    assert caught.value.kind == "ImagePlatform"
    with pytest.raises(ImageError, match="names 2 layers, and its manifest 1"):
        config({}, layers=2)
    with pytest.raises(ImageError, match="names 1 layers, and its manifest 1"):
        config({"rootfs": {"diff_ids": ["sha256:short"]}})


def test_chain_ids_follow_the_specification() -> None:
    both = hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    assert chain_ids((A, B)) == (A, f"sha256:{both}")
    assert chain_ids(()) == ()
