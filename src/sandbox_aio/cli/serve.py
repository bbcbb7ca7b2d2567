"""`sandbox-aio serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import complain

if TYPE_CHECKING:
    import argparse

__all__ = ["serve_command"]


def serve_command(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Return 0, or 1 when the server cannot start."""
    try:
        from sandbox_aio.server.serve import Ready, ServeError, ServerConfig, raise_file_limit, serve
    except ModuleNotFoundError as error:
        complain(f"the server needs {error.name}", "pip install 'sandbox-aio[server]'")
        return 1

    def ready(server: Ready) -> None:
        print(server, flush=True)
        for note in server.capabilities.notes:
            logging.getLogger("sandbox_aio.server").info("%s", note)

    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    raise_file_limit()
    config = ServerConfig(
        state_dir=Path(arguments.state_dir).absolute() if arguments.state_dir else _default_state_dir(),
        host=arguments.host,
        port=arguments.port,
        api_keys=(*arguments.api_key, *_keys_from_environment()),
        runtime=arguments.runtime,
        ephemeral=arguments.ephemeral,
        public_url=arguments.public_url,
        service_domain=arguments.service_domain,
        snapshots=tuple(arguments.snapshot),
        builds=arguments.builds,
        egress=arguments.egress,
        egress_allow=tuple(arguments.egress_allow),
        registry_mirrors=tuple(arguments.registry_mirror),
        registry_insecure=tuple(arguments.registry_insecure),
        registry_ca=Path(arguments.registry_ca) if arguments.registry_ca else None,
        tls_cert=Path(arguments.tls_cert) if arguments.tls_cert else None,
        tls_key=Path(arguments.tls_key) if arguments.tls_key else None,
    )
    try:
        asyncio.run(serve(config, on_ready=ready))
    except ServeError as error:
        complain(str(error), error.hint)
        return 1
    except Exception as error:
        logging.getLogger("sandbox_aio.server").debug("the server failed", exc_info=True)
        complain(f"the server failed: {error!r}", "--log-level debug shows where")
        return 1
    return 0


def _keys_from_environment() -> list[str]:
    return [key for key in os.environ.get("SANDBOX_AIO_API_KEYS", "").split(",") if key]


def _default_state_dir() -> Path:
    if os.getuid() == 0:
        return Path("/var/lib/sandbox-aio")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "sandbox-aio"
