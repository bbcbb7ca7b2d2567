"""The facade of the fake client: generated anew for the tests, and run under the name of a file of the package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sandbox_aio.sync

ROOT = Path(__file__).resolve().parents[2]
FAKE_CLIENT = Path(__file__).with_name("fake_client.py")


def load_generator() -> Any:
    """Import `tools/gen_sync.py`."""
    spec = importlib.util.spec_from_file_location("gen_sync", ROOT / "tools" / "gen_sync.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def generate() -> str:
    """Generate the facade of the fake client."""
    text: str = load_generator().generator_for([FAKE_CLIENT], "tests.sync").generate()
    return text


def _load() -> dict[str, Any]:
    file = Path(str(sandbox_aio.sync.__file__)).with_name("_generated_for_tests.py")
    names: dict[str, Any] = {"__name__": "sandbox_aio.sync._generated_for_tests", "__package__": "sandbox_aio.sync"}
    exec(compile(generate(), str(file), "exec"), names)
    return names


if TYPE_CHECKING:
    from sandbox_aio.sync import CommandHandle, Sandbox, SandboxClient
else:
    _names = _load()
    CommandHandle, Sandbox, SandboxClient = (_names[name] for name in ("CommandHandle", "Sandbox", "SandboxClient"))
