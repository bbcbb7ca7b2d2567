"""What the runtime says of the machine, when it works there and when it does not."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.runtimes.base import Capabilities, RuntimeFailure, Unavailable
from sandbox_aio.runtimes.namespaces import NamespacesRuntime, probe, syscalls
from sandbox_aio.runtimes.namespaces.cgroups import Cgroups
from sandbox_aio.runtimes.namespaces.idmap import SLOTS, IdMap, IdSupply
from tests.runtimes.machine import ENTRY, Machine

if TYPE_CHECKING:
    from pathlib import Path

NO_GROUPS = Cgroups(parents={}, versions={})


def test_what_is_enforced_is_what_a_sandbox_feels(machine: Machine) -> None:
    capabilities = machine.run(machine.runtime.probe())
    assert isinstance(capabilities, Capabilities)
    assert (capabilities.runtime, capabilities.strength, capabilities.network) == (
        "namespaces",
        "namespace",
        "loopback",
    )
    assert capabilities.seccomp
    assert capabilities.uids == ("range" if os.geteuid() == 0 else "single")
    assert bool(capabilities.notes) == (os.geteuid() != 0 or "none" in (capabilities.memory, capabilities.cpu))


@pytest.mark.anyio
async def test_probing_without_opening_tries_it_and_leaves_nothing(tmp_path: Path) -> None:
    runtime = NamespacesRuntime(tmp_path / "state", ephemeral=True, daemon_entry=ENTRY)
    found = await runtime.probe()
    assert isinstance(found, Capabilities)
    assert not (tmp_path / "state").exists()
    assert await runtime.open(lambda id, reason: None) == found
    assert await runtime.probe() == found
    await runtime.aclose(destroy=True)
    await runtime.aclose(destroy=True)


@pytest.mark.anyio
async def test_probing_a_directory_that_is_in_use(tmp_path: Path) -> None:
    first, second = (NamespacesRuntime(tmp_path, ephemeral=True, daemon_entry=ENTRY) for _ in range(2))
    await first.open(lambda id, reason: None)
    found = await second.probe()
    assert isinstance(found, Unavailable)
    assert "another server" in found.reason
    await first.aclose(destroy=True)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("sys.platform", "darwin", "it needs Linux"),
        ("syscalls.ARCHITECTURE", "riscv64", "it does not know riscv64"),
        ("_effective_capabilities", lambda: 0, "root without CAP_SYS_ADMIN"),
        ("region_is_available", lambda: False, "too few ids"),
    ],
)
def test_what_can_be_told_without_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, reason: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(probe, "_effective_capabilities", lambda: (1 << 41) - 1)
    monkeypatch.setattr(f"sandbox_aio.runtimes.namespaces.probe.{name}", value)
    found = probe.preconditions()
    monkeypatch.undo()
    assert found is not None
    assert reason in found.reason
    assert found.hint


def test_a_runtime_that_is_unavailable_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "ARCHITECTURE", "vax")
    runtime = NamespacesRuntime(tmp_path / "state", ephemeral=True)
    with pytest.raises(RuntimeFailure, match=r"cannot run here: it does not know vax.*To mend it") as caught:
        asyncio.run(runtime.open(lambda id, reason: None))
    assert caught.value.kind == "RuntimeUnavailable"
    assert isinstance(asyncio.run(runtime.probe()), Unavailable)
    assert not (tmp_path / "state").exists()
    assert platform.machine() != "vax"


@pytest.mark.parametrize(
    ("stage", "number", "switches", "hint"),
    [
        ("create namespaces", errno.EPERM, {}, "seccomp=unconfined"),
        ("mount /proc", errno.EPERM, {}, "systempaths=unconfined"),
        ("mount the layers", errno.ENODEV, {}, "modprobe overlay"),
        ("mount the layers", errno.EINVAL, {}, "ext4, xfs, btrfs or tmpfs"),
        ("create namespaces", errno.ENOSPC, {"user/max_user_namespaces": "0"}, "user.max_user_namespaces=15000"),
        (
            "map user ids",
            errno.EACCES,
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            "apparmor_restrict_unprivileged_userns=0",
        ),
        ("create namespaces", errno.EPERM, {"kernel/unprivileged_userns_clone": "0"}, "unprivileged_userns_clone=1"),
    ],
)
def test_each_failure_has_one_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int, switches: dict[str, str], hint: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(probe, "_read", lambda path: switches.get(path.removeprefix("/proc/sys/"), ""))
    found = probe.explain({"stage": stage, "errno": number, "error": "it says no"}, tmp_path)
    assert hint in found.hint
    assert stage in found.reason
    assert "it says no" in found.reason


def test_what_is_weaker_is_noted() -> None:
    several, one = IdMap.of_slot(0), IdMap(uid=1000, gid=1000, count=1)
    strong = probe.capabilities(several, NO_GROUPS, frozenset(), shared_ids=False)
    assert (strong.uids, strong.memory, strong.cpu) == ("range", "none", "none")
    assert "no limit of memory and cpu" in " ".join(strong.notes)
    assert "one user" in " ".join(probe.capabilities(one, NO_GROUPS, frozenset(), shared_ids=False).notes)
    weak = probe.capabilities(several, NO_GROUPS, frozenset({"/usr", "/var/lib/x/skeleton"}), shared_ids=True)
    assert "share one range" in " ".join(weak.notes)
    assert "cannot change what is in /usr:" in " ".join(weak.notes)


def test_ids_are_given_once_as_long_as_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    supply = IdSupply(SLOTS - 1)
    expected = supply.next
    first = supply.take(set())
    assert first == expected == IdMap.of_slot(SLOTS - 1)
    assert supply.take({first}) == IdMap.of_slot(0)
    assert supply.take({IdMap.of_slot(1), IdMap.of_slot(2)}) == IdMap.of_slot(3)
    with pytest.raises(LookupError, match="no more user ids"):
        supply.take({IdMap.of_slot(slot) for slot in range(SLOTS)})
    shared = supply.share()
    assert supply.take({shared}) == shared == supply.next
    assert IdMap.of_slot(SLOTS - 1).uid + 65_536 < 1 << 32


def test_an_ordinary_user_has_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    supply = IdSupply(5)
    assert supply.take({supply.next}) == IdMap(uid=1000, gid=100, count=1)
