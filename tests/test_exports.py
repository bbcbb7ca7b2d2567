"""What `import sandbox_aio` offers: every name is there, in order, documented, and has its twin."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from inspect import isclass, isfunction

import pytest

import sandbox_aio
from sandbox_aio import errors
from tests.sources import sources

CORE = [f"sandbox_aio.protocol.{module.path.stem}" for module in sources("src/sandbox_aio/protocol")]
PUBLIC_MODULES = [
    "sandbox_aio", "sandbox_aio.errors", "sandbox_aio.models", "sandbox_aio.sync",
    *(name for name in CORE if not name.endswith("__init__")),
]  # fmt: skip

NOT_YET = {
    "mounts, and the types of rules": {
        "AWSMountAuthConfig", "AWSMountRoleAuthConfig", "ContextHubMountConfig", "ContextHubMountSpec",
        "GCPMountAuthConfig", "GCSMountConfig", "GCSMountSpec", "GitMountConfig", "GitMountRefSpec", "GitMountSpec",
        "MountCacheConfig", "MountEncryptionConfig", "S3MountConfig", "S3MountSpec", "SandboxMount", "SandboxMountAuth",
        "SandboxMountAuthConfig", "SandboxMountConfig", "SandboxProxyConfig", "SandboxProxyRule", "SandboxProxySecret",
        "context_hub_mount", "gcs_mount", "git_mount", "mount_config",
        "s3_mount",
    },
}  # fmt: skip
"""Names of the official client that we do not have, by what they are part of."""


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    for exported in module.__all__:
        assert getattr(module, exported) is not None
        assert exported in dir(module)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_every_export_explains_itself(name: str) -> None:
    module = importlib.import_module(name)
    exports = {exported: getattr(module, exported) for exported in module.__all__}
    speakers = {exported: value for exported, value in exports.items() if isclass(value) or isfunction(value)}
    assert not [exported for exported, value in speakers.items() if not (value.__doc__ or "").strip()]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sandbox_aio' has no attribute 'nonsense'"):
        sandbox_aio.nonsense  # noqa: B018 - looking it up is the test


def test_a_star_import_brings_everything() -> None:
    code = "from sandbox_aio import *; import sandbox_aio; assert set(sandbox_aio.__all__) <= set(globals())"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=30)


def test_every_async_name_has_its_sync_twin() -> None:
    names = set(sandbox_aio.__all__)
    assert {name.removeprefix("Async") for name in names if name.startswith("Async")} <= names


def test_the_tree_of_errors_is_as_drawn() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for bars, name in re.findall(r"^    ([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        path[len(bars) // 4 :] = [name]
        drawn[name] = path[-2] if len(path) > 1 else "Exception"
    lineage = {name: [base.__name__ for base in getattr(errors, name).__mro__[1:]] for name in errors.__all__}
    named = {*errors.__all__, "Exception"}
    assert drawn == {name: next(base for base in bases if base in named) for name, bases in lineage.items()}


def test_moving_from_the_official_client_is_one_import_line() -> None:
    code = "import langsmith.sandbox; print(*langsmith.sandbox.__all__)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    official = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    assert set(official) - set(sandbox_aio.__all__) == set().union(*NOT_YET.values())
