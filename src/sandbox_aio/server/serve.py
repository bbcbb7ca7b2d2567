"""A server from its configuration to its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import resource
import signal
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs

from sandbox_aio.images.access import RegistryAccess
from sandbox_aio.images.download import BlobStore
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerStore
from sandbox_aio.removal import remove_tree
from sandbox_aio.runtimes.base import Capabilities, DaemonAddress, Runtime, RuntimeFailure, Unavailable

from .app import ControlPlane
from .auth import Gate
from .builds import Builds
from .database import Database, StoreError
from .downloads import Downloads
from .egress import EgressGateway
from .egress.policy import OperatorPolicy, parse_entry
from .hosts import ServiceHosts
from .limits import MAX_CONNECTIONS
from .registries import RegistryBook, registry_host
from .router import Router, Services
from .sandboxes import SandboxRegistry
from .secrets import SecretBox
from .service_access import ServiceAccess
from .service_proxy import ServiceProxy
from .service_tokens import ServiceAuthority
from .services import ServiceLinks
from .snapshots import SnapshotRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ready", "ServeError", "Server", "ServerConfig", "make_runtime", "raise_file_limit", "serve"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

RUNTIMES: Final = ("namespaces",)

TAKEOVER_PATIENCE: Final = 5.0
"""Seconds that a start waits for the state directory of a server that is just ending."""


DATABASE: Final = "server.db"
"""What a server that keeps its sandboxes has in its state directory."""


class ServeError(Exception):
    """The server cannot start. The message says why and `hint` what to do; both are for the operator."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@attrs.frozen(kw_only=True)
class ServerConfig:
    """How to serve. `port` 0 lets the system choose; without keys only a loopback address is served."""

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    runtime: str = "namespaces"
    ephemeral: bool = True
    """Whether stopping the server destroys its sandboxes."""
    public_url: str | None = None
    """The origin that clients reach, if it is not the address they name in `Host`."""
    service_domain: str = "localhost"
    """What follows `{sandbox_id}--{port}.` in the hosts of services. It needs a wildcard record, and should be used
    for nothing else."""
    snapshots: tuple[tuple[str, Path], ...] = ()
    """Names and directories of snapshots beside `host`: root file systems that are there unpacked."""
    egress: Literal["open", "closed"] = "open"
    """Whether sandboxes may reach public addresses, through the server's proxy."""
    egress_allow: tuple[str, ...] = ()
    """Hosts, with a port or without, that they may reach wherever these are, and when nothing else may be reached."""
    registry_mirrors: tuple[tuple[str, str], ...] = ()
    """Registries and the URLs of mirrors, which are asked before them."""
    registry_insecure: tuple[str, ...] = ()
    """Registries that are spoken to without TLS."""
    registry_ca: Path | None = None
    """Certificates to trust in registries beside the system's, PEM."""
    builds: bool = True
    """Whether images may be built in sandboxes with a profile that opens more of the kernel."""
    tls_cert: Path | None = None
    tls_key: Path | None = None


@attrs.frozen(kw_only=True)
class Ready:
    """A server that accepts requests."""

    url: str
    """The origin, without a trailing slash."""
    capabilities: Capabilities
    egress: str = "open"
    """What sandboxes may reach, for the operator."""

    @property
    def endpoint(self) -> str:
        """What a client takes as `api_endpoint`."""
        return f"{self.url}/api/v2/sandboxes"

    def __str__(self) -> str:
        found = self.capabilities
        enforced = ", ".join(f"{what} {getattr(found, what)}" for what in ("memory", "cpu", "pids", "disk", "network"))
        seccomp = "on" if found.seccomp else "off"
        runtime = f"runtime {found.runtime}: {enforced}, uids {found.uids}, seccomp {seccomp}"
        return f"listening on {self.url}; {runtime}, egress {self.egress}"


class Server:
    """A router, a control plane and a registry over one runtime."""

    def __init__(self, config: ServerConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._database: Database | None = None
        self._has_snapshots = False
        gate = Gate(config.api_keys)
        self.router: Router = Router(gate, max_connections=_affordable_connections())
        self.authority: ServiceAuthority = ServiceAuthority(config.state_dir)
        self.egress: EgressGateway = EgressGateway(_operator_policy(config), config.state_dir)
        self.registry: SandboxRegistry = SandboxRegistry(runtime, detach=self._detach, egress=self.egress)
        access = _registry_access(config)
        self.registries: RegistryBook = RegistryBook(access)
        self.snapshots: SnapshotRegistry = SnapshotRegistry(runtime, self.registry, access, self.registries.credentials)
        self.snapshots.builds = Builds(self.registry, self.snapshots.index, access, offered=config.builds)
        self.registry.on_gone = self.snapshots.collect
        links = ServiceLinks(registry=self.registry, authority=self.authority, domain=config.service_domain)
        plane = ControlPlane(self.registry, self.snapshots, self.registries, links, public_url=config.public_url)
        self.router.app = plane.app
        self.router.find_daemon = self._find_daemon
        self.router.services = self._services(gate)

    def _services(self, gate: Gate) -> Services:
        config = self._config
        proxy = ServiceProxy(
            access=ServiceAccess(self.authority, config.service_domain, self.registry.knows),
            find_daemon=self._find_daemon,
            is_own_key=gate.knows,
            https=(config.public_url or "").startswith("https:"),
        )
        return Services(
            authority=self.authority,
            hosts=ServiceHosts(config.service_domain),
            proxy=proxy,
            downloads=Downloads(authority=self.authority, find_daemon=self._find_daemon),
        )

    async def open(self) -> Ready:
        """Start the runtime and listen. Raises ServeError, and leaves nothing behind then."""
        config = self._config
        _check(config)
        tls = _tls_context(config)
        try:
            config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServeError(
                f"cannot use the state directory {config.state_dir}: {error.strerror}",
                hint="choose another --state-dir",
            ) from error
        if config.ephemeral and (config.state_dir / DATABASE).exists():
            raise ServeError(
                f"{config.state_dir} holds what a server with --no-ephemeral keeps, which this one would destroy",
                hint="add --no-ephemeral, or choose another --state-dir",
            )
        capabilities = await self._open_runtime()
        self.egress.offered = capabilities.network == "loopback"
        await self._open_state()
        try:
            host, port = await self.router.listen(config.host, config.port, tls=tls)
        except OSError as error:
            await self._close_all()
            raise ServeError(
                f"cannot listen on {config.host} port {config.port}: {error.strerror}", hint="choose another --port"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        url = config.public_url or f"{'https' if tls else 'http'}://{shown}:{port}"
        return Ready(url=url.rstrip("/"), capabilities=capabilities, egress=self.egress.summary)

    async def aclose(self) -> None:
        """Stop accepting, tell those attached, and let go of the runtime: with `ephemeral`, nothing is left."""
        await self.router.aclose()
        await self._close_all()

    async def _open_state(self) -> None:
        """Learn what an earlier server has left: sandboxes, keys, layers, snapshots. Raises ServeError."""
        config = self._config
        layers = LayerStore(self._runtime.layers_directory, self._runtime.layer_owner)
        blobs = BlobStore(config.state_dir / "blobs")
        try:
            await asyncio.to_thread(layers.open)
            await asyncio.to_thread(blobs.open)
            box = SecretBox(None if config.ephemeral else config.state_dir / "registry-key")
            self._database = await Database.open(None if config.ephemeral else config.state_dir / DATABASE)
            await self.registry.open(self._database)
            self.authority.load()
            self.authority.retain([sandbox.id for sandbox in self.registry.list()])
            await self.registries.open(self._database, box)
            self._has_snapshots = True
            await self.snapshots.open(self._database, layers, blobs)
        except (OSError, ImageError, StoreError, ValueError) as error:
            await self._close_all()
            raise ServeError(f"cannot use the state directory {config.state_dir}: {error}") from error
        except RuntimeFailure as failure:
            await self._close_all()
            raise ServeError(f"what an earlier server left cannot be taken over: {failure}") from failure

    async def _close_all(self) -> None:
        """Let go of everything but the listener, as far as it was opened."""
        try:
            await self.registry.aclose()
            await self.egress.aclose()
            self.snapshots.builds.close()
            if self._has_snapshots:
                await self.snapshots.aclose()
            if self._database is not None:
                await self._database.aclose()
            if self._config.ephemeral:
                await asyncio.to_thread(remove_tree, str(self._config.state_dir / "blobs"))
        finally:
            await self._runtime.aclose(destroy=self._config.ephemeral)

    async def _open_runtime(self) -> Capabilities:
        """Open the runtime. The state directory of a server that was killed is in use until its remains are removed."""
        deadline = time.monotonic() + TAKEOVER_PATIENCE
        while True:
            try:
                return await self._runtime.open(self.registry.daemon_ended)
            except RuntimeFailure as failure:
                if failure.kind != "StateDirectoryInUse" or time.monotonic() > deadline:
                    raise await self._unavailable(failure) from failure
            await asyncio.sleep(0.05)

    async def _find_daemon(self, reference: str) -> tuple[str, DaemonAddress]:
        sandbox, address = await self.registry.daemon(reference)
        return sandbox.id, address

    async def _detach(self, id: str, why: Literal["stopped", "deleted"]) -> None:
        if why == "deleted":
            self.authority.forget(id)
        await self.router.detach(id, why)

    async def _unavailable(self, failure: RuntimeFailure) -> ServeError:
        if failure.kind == "SnapshotConfig":
            return ServeError(str(failure), hint="--snapshot takes NAME=DIRECTORY")
        found = await self._runtime.probe()
        if isinstance(found, Unavailable):
            return ServeError(f"the runtime {found.runtime} cannot run here: {found.reason}", hint=found.hint)
        return ServeError(f"the runtime {self._runtime.name} did not start: {failure}")


async def serve(
    config: ServerConfig,
    *,
    on_ready: Callable[[Ready], None],
    runtime: Runtime | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Serve until `until` is set, or without it until SIGTERM or SIGINT. Raises ServeError when it cannot begin."""
    server = Server(config, runtime if runtime is not None else make_runtime(config))
    end = until if until is not None else _on_signals()
    ready = await server.open()
    try:
        on_ready(ready)
        await end.wait()
    finally:
        await asyncio.shield(server.aclose())


def make_runtime(config: ServerConfig) -> Runtime:
    """The runtime that the configuration names. Raises ServeError for an unknown one."""
    if config.runtime not in RUNTIMES:
        raise ServeError(f"there is no runtime {config.runtime!r}", hint=f"choose one of: {', '.join(RUNTIMES)}")
    from sandbox_aio.runtimes.namespaces import NamespacesRuntime

    return NamespacesRuntime(config.state_dir, ephemeral=config.ephemeral, snapshots=config.snapshots)


def raise_file_limit() -> None:
    """Allow this process as many open files as the system lets it have: a splice takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _affordable_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MAX_CONNECTIONS, (soft - 64) // 2))


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _check(config: ServerConfig) -> None:
    if any(not key for key in config.api_keys):
        raise ServeError("an API key is empty", hint="give --api-key a value")
    if config.public_url is not None and not re.fullmatch(r"https?://[^/?#\s]+/?", config.public_url):
        raise ServeError(f"the public URL {config.public_url!r} is not an origin", hint="such as https://host:port")
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?", config.service_domain):
        raise ServeError(
            f"the service domain {config.service_domain!r} is not a domain", hint="such as sandboxes.example.com"
        )
    if not config.api_keys and not _is_loopback(config.host):
        raise ServeError(
            f"refusing to serve {config.host} without an API key: anyone who reaches it could run commands",
            hint="add --api-key KEY, or listen on 127.0.0.1",
        )


def _operator_policy(config: ServerConfig) -> OperatorPolicy:
    try:
        allowed = tuple(parse_entry(text) for text in config.egress_allow)
    except ValueError as error:
        raise ServeError(f"--egress-allow: {error}", hint="name a host, such as registry.internal:8443") from error
    return OperatorPolicy(open=config.egress == "open", allowed=allowed)


def _registry_access(config: ServerConfig) -> RegistryAccess:
    mirrors: dict[str, tuple[str, ...]] = {}
    for registry, url in config.registry_mirrors:
        try:
            host, _ = registry_host(registry)
            registry_host(url)
        except ValueError as error:
            raise ServeError(
                f"--registry-mirror {registry}={url}: {error}", hint="such as docker.io=https://mirror.example.com"
            ) from error
        mirrors[host] = (*mirrors.get(host, ()), url)
    for name in config.registry_insecure:
        if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", name):
            raise ServeError(f"--registry-insecure: {name!r} is not a host", hint="such as registry.internal:5000")
    access = RegistryAccess(mirrors=mirrors, insecure=frozenset(config.registry_insecure), ca_file=config.registry_ca)
    try:
        access.tls()
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"cannot use the certificates {config.registry_ca}: {error}", hint="--registry-ca takes a PEM file"
        ) from error
    return access


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None and config.tls_key is None:
        return None
    if config.tls_cert is None:
        raise ServeError("--tls-key without --tls-cert", hint="give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(f"cannot load the certificate {config.tls_cert}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
