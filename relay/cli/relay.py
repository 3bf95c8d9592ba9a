"""`opamp-relay`: the servers, the simulator, and tools for settings and data."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from relay import __version__
from relay.cli import database
from relay.cli.output import print_version
from relay.errors import RelayError, SettingsError
from relay.settings.load import Loaded, load
from relay.settings.parts import Part
from relay.settings.programs import ControlPlaneSettings, NodeSettings, Settings, StandaloneSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
S = TypeVar("S", bound=Part)

ConfigFile = Annotated[str | None, typer.Option("-c", "--config", help="settings file (YAML)")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warn or error")]

EXIT_SETTINGS = 2
EXIT_FAILED = 1


def main() -> None:
    """Run the command line."""
    os.umask(0o077)  # every file that we write may contain secrets
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's log lines tell users nothing that our errors do not
    app()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """The OpAMP regional relay: nodes, their control plane, and tools for both."""


def _load(kind: type[S], file: str | None, **flags: Any) -> Loaded[S]:
    try:
        return load(kind, file=file, environment=os.environ, flags={k.replace("__", "."): v for k, v in flags.items()})
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS) from None


def _program_of(file: str | None) -> str:
    from relay.cli.check import detect_program

    return detect_program(Path(file)) if file is not None else "control-plane"


def _serve(settings: Settings, component: str, program: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> None:
    from relay.aio.loop import run
    from relay.observe import log
    from relay.transport.places import raise_descriptor_limit

    logs = settings.telemetry.logs
    readable = {"auto": None, "json": False, "readable": True}[logs.format]
    if sys.stderr is None:  # the parent closed it; the next file we open would become our standard error
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    log.configure(level=logs.level, component=component, readable=readable)
    raise_descriptor_limit()
    try:
        status = run(program)
    except SettingsError as error:
        log.say(f"{component}: {error}")
        raise typer.Exit(EXIT_SETTINGS) from None
    except (RelayError, OSError, RuntimeError) as error:
        log.say(f"{component}: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    finally:
        log.close()
    raise typer.Exit(status)


@app.command()
def node(
    config: ConfigFile = None,
    region: Annotated[str | None, typer.Option(help="region of the node")] = None,
    name: Annotated[str | None, typer.Option(help="name of the node, unique in its region")] = None,
    data: Annotated[str | None, typer.Option(help="data folder")] = None,
    control_plane: Annotated[str | None, typer.Option(help="HOST:PORT of the control plane")] = None,
    websocket: Annotated[str | None, typer.Option(help="HOST:PORT for agents over WebSocket")] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT for agents over HTTP")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT for agents over gRPC")] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus")] = None,
    join: Annotated[str, typer.Option(help="join token; not looked at by a node that has joined")] = "",
    log_level: LogLevel = None,
) -> None:
    """Run a regional relay node."""
    loaded = _load(
        NodeSettings,
        config,
        node__region=region,
        node__name=name,
        node__data_dir=data,
        control_plane__endpoint=control_plane,
        server__websocket__endpoint=websocket,
        server__http__endpoint=http,
        server__grpc__endpoint=grpc,
        telemetry__metrics__endpoint=metrics,
        telemetry__logs__level=log_level,
    )

    async def program(stop: asyncio.Event) -> int:
        from relay.aio.tasks import beside
        from relay.node.app import Node
        from relay.node.joining import identified

        identifying = identified(loaded.settings, join, frozenset(loaded.origins))
        async with beside(identifying, name="join") as joining, beside(stop.wait(), name="stop") as stopping:
            await asyncio.wait([joining, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                return 0
            settings, identity = await joining
        running = Node(settings, identity=identity)
        await running.start()
        await stop.wait()
        return 0 if await running.stop() else EXIT_FAILED

    _serve(loaded.settings, "opamp-relay", program)


@app.command()
def control_plane(
    config: ConfigFile = None,
    data: Annotated[str | None, typer.Option(help="data folder")] = None,
    link: Annotated[str | None, typer.Option(help="HOST:PORT for nodes")] = None,
    api: Annotated[str | None, typer.Option(help="HOST:PORT of the admin API")] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus")] = None,
    log_level: LogLevel = None,
) -> None:
    """Run the global control plane."""
    loaded = _load(
        ControlPlaneSettings,
        config,
        data_dir=data,
        server__link__endpoint=link,
        server__api__endpoint=api,
        telemetry__metrics__endpoint=metrics,
        telemetry__logs__level=log_level,
    )

    async def program(stop: asyncio.Event) -> int:
        from relay.control.app import ControlPlane

        running = ControlPlane(loaded.settings)
        await running.start()
        await stop.wait()
        await running.stop()
        return 0

    _serve(loaded.settings, "opamp-control-plane", program)


@app.command()
def standalone(
    config: ConfigFile = None,
    data: Annotated[str | None, typer.Option(help="data folder")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="add a sample policy and 20 simulated agents")] = False,
    demo_failure: Annotated[
        bool, typer.Option("--demo-failure", help="like --demo, plus a canary that fails and is rolled back")
    ] = False,
    websocket: Annotated[str | None, typer.Option(help="HOST:PORT for agents over WebSocket")] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT for agents over HTTP")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT for agents over gRPC")] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus")] = None,
    link: Annotated[str | None, typer.Option(help="HOST:PORT for nodes")] = None,
    api: Annotated[str | None, typer.Option(help="HOST:PORT of the admin API")] = None,
    log_level: LogLevel = None,
) -> None:
    """Run a control plane and a node in region `local` in one process."""
    demo = demo or demo_failure
    if demo and log_level is None:
        log_level = "error" if demo_failure else "warn"
    loaded = _load(
        StandaloneSettings,
        config,
        data_dir=data,
        server__websocket__endpoint=websocket,
        server__http__endpoint=http,
        server__grpc__endpoint=grpc,
        server__link__endpoint=link,
        server__api__endpoint=api,
        telemetry__metrics__endpoint=metrics,
        telemetry__logs__level=log_level,
    )

    async def program(stop: asyncio.Event) -> int:
        from relay.cli.standalone import run_standalone

        return await run_standalone(loaded.settings, stop, demo=demo, failure=demo_failure)

    _serve(loaded.settings, "opamp-relay", program)


@app.command()
def simulate(
    agents: Annotated[int, typer.Option(min=1, max=100_000, help="number of agents")] = 20,
    endpoint: Annotated[str, typer.Option(help="ws:// or http:// URL")] = "ws://127.0.0.1:4320/v1/opamp",
    heartbeat: Annotated[float, typer.Option(min=0.01, help="seconds between heartbeats or polls")] = 30.0,
    prefix: Annotated[str, typer.Option(help="prefix of agent names")] = "agent",
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same instance ids")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print only counts, at most once a second")] = False,
    token: Annotated[
        str, typer.Option("--token", envvar="OPAMP_TOKEN", show_default=False, help="token that all agents send")
    ] = "",
    cert: Annotated[str, typer.Option("--cert", help="file with the certificate that all agents have (PEM)")] = "",
    key: Annotated[str, typer.Option("--key", help="file with its key, if that is another one")] = "",
    ca: Annotated[str, typer.Option("--ca", help="file with the CA of the node's certificate")] = "",
) -> None:
    """Run many agents from one process."""
    from relay.aio.loop import run
    from relay.cli.simulate import TlsFiles, run_simulation

    if not endpoint.startswith(("ws://", "wss://", "http://", "https://")):
        print(f"--endpoint: {endpoint} is not a ws:// or http:// URL", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS)

    async def program(stop: asyncio.Event) -> int:
        return await run_simulation(
            stop,
            agents,
            endpoint,
            heartbeat_s=heartbeat,
            prefix=prefix,
            seed=seed,
            quiet=quiet,
            token=token,
            files=TlsFiles(ca, cert, key),
        )

    try:
        status = run(program)
    except OSError as error:
        print(f"--cert, --key, --ca: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS) from None
    raise typer.Exit(status)


@app.command()
def check(
    config: Annotated[str, typer.Option("-c", "--config", help="settings file (YAML)")],
    program: Annotated[
        str | None, typer.Option("--for", help="node, control-plane or standalone; default: detected from the file")
    ] = None,
) -> None:
    """Print every value of a settings file with its origin, then every problem, including unusable folders and ports."""
    from relay.cli.check import check_settings, detect_program

    kinds: dict[str, type[Part]] = {
        "node": NodeSettings,
        "control-plane": ControlPlaneSettings,
        "standalone": StandaloneSettings,
    }
    name = program or detect_program(Path(config))
    if name not in kinds:
        print(f"--for: {name} is not one of {', '.join(kinds)}", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS)
    loaded = _load(kinds[name], config)
    raise typer.Exit(EXIT_SETTINGS if check_settings(name, loaded, config) else 0)


app.add_typer(database.app, name="database")


@app.command("admin-token")
def admin_token(
    config: ConfigFile = None, data: Annotated[str | None, typer.Option(help="data folder of the control plane")] = None
) -> None:
    """Make an admin's token for 24 hours, on the machine of the control plane. It may be running."""
    from relay.control.credentials.admin_token import FILE, write_admin_token
    from relay.control.storage.database import FILE as DATABASE

    folder = Path(_control_plane_settings(config, data).data_dir)
    if not (folder / DATABASE).exists():
        print(f"{folder}: no control plane has its data here; its first start writes a token itself", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS)
    try:
        token = write_admin_token(folder / FILE)
    except OSError as error:
        print(f"{folder / FILE}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    print(f"in {folder / FILE}; a running control plane accepts it within 2 s, for 24 h:", file=sys.stderr)
    print(token)


@app.command()
def rekey(
    config: ConfigFile = None,
    data: Annotated[str | None, typer.Option(help="data folder of the control plane")] = None,
    root_key: Annotated[str, typer.Option("--root-key", help="file of the root key (PEM)")] = "",
    new_root: Annotated[
        bool, typer.Option("--new-root", help="the root key is lost too: nodes must join again")
    ] = False,
) -> None:
    """Make all keys of a stopped control plane anew, where its master key is lost. Tokens and agents' keys stay."""
    from relay.aio.clock import SystemClock
    from relay.aio.loop import run
    from relay.cli.trust import read_root
    from relay.control.keys.rekey import rekey as make_anew

    if bool(root_key) == new_root:
        print("expected either --root-key FILE or --new-root", file=sys.stderr)
        raise typer.Exit(EXIT_SETTINGS)
    root = read_root(root_key) if root_key else None
    settings = _control_plane_settings(config, data)

    async def program(_: asyncio.Event) -> int:
        return await make_anew(Path(settings.data_dir), Path(settings.keys_dir), root, clock=SystemClock())

    try:
        version = run(program)
    except (RelayError, OSError) as error:
        print(f"rekey: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    if version:
        print(f"key set {version} is signed; nodes take it after the start, and keep their identities")
    else:
        print(f"the next start makes a new root key in {settings.keys_dir}; all nodes must join again")


def _control_plane_settings(config: str | None, data: str | None) -> ControlPlaneSettings:
    """The settings of a control plane, also of the one in a standalone program."""
    if _program_of(config) == "standalone":
        return _load(StandaloneSettings, config, data_dir=data).settings.for_control_plane()
    return _load(ControlPlaneSettings, config, data_dir=data).settings


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)
