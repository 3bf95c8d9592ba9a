"""`opamp-relay database`: back up and restore the data of a control plane."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from relay.errors import Problem, SettingsError, StoreError
from relay.settings.load import load
from relay.settings.programs import ControlPlaneSettings, StandaloneSettings

app = typer.Typer(no_args_is_help=True, help="Back up the data of a control plane while it runs, and restore it.")
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="the backup file")]
Config = Annotated[
    str | None, typer.Option("-c", "--config", help="settings file of the control plane, or of standalone")
]
Data = Annotated[str | None, typer.Option(help="data folder, instead of a settings file")]
_EXIT_FAILED, _EXIT_SETTINGS = 1, 2


def _settings(config: str | None, data: str | None) -> ControlPlaneSettings:
    """Load settings of a control plane. The file may be for standalone: prefer the reading whose database exists."""
    from relay.control.storage.database import FILE

    flags = {"data_dir": data}
    problems: list[Problem] = []
    readings: list[ControlPlaneSettings] = []
    try:
        readings.append(load(ControlPlaneSettings, file=config, environment=os.environ, flags=flags).settings)
    except SettingsError as error:
        problems = list(error.problems)
    if config is not None:
        with contextlib.suppress(SettingsError):
            standalone = load(StandaloneSettings, file=config, environment=os.environ, flags=flags)
            readings.append(standalone.settings.for_control_plane())
    if not readings:
        for problem in problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(_EXIT_SETTINGS)
    return next((s for s in readings if (Path(s.data_dir) / FILE).is_file()), readings[0])


def _fail(error: StoreError | OSError) -> typer.Exit:
    message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    print(f"opamp-relay: {message}", file=sys.stderr)
    return typer.Exit(_EXIT_FAILED)


@app.command()
def backup(
    file: Archive,
    config: Config = None,
    data: Data = None,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="include keys/master.key, which opens all secrets; keep the file secret"),
    ] = False,
) -> None:
    """Write all data to one file. The control plane may be running."""
    from relay.control.secrets.vault import FILE as MASTER_FILE
    from relay.control.storage import backup as archives

    settings = _settings(config, data)
    in_folder = settings.storage.packages.type == "folder"
    try:
        master_key = Path(settings.keys_dir) / MASTER_FILE
        result = archives.backup(
            Path(settings.data_dir), file, packages=in_folder, master_key=master_key if with_keys else None
        )
    except (StoreError, OSError) as error:
        raise _fail(error) from None
    print(f"{file}: {result.size} bytes, {result.files} package files; verified")
    if not with_keys:
        print(f"its secrets open only with {master_key}: keep a copy of that elsewhere", file=sys.stderr)
    if not in_folder:
        print(f"the backup has no package files: they are stored in {settings.storage.packages.type}", file=sys.stderr)


@app.command()
def restore(file: Archive, config: Config = None, data: Data = None) -> None:
    """Create the data folder from a backup. The folder must be empty or not exist."""
    from relay.control.secrets.vault import FILE as MASTER_FILE
    from relay.control.storage import backup as archives

    settings = _settings(config, data)
    try:
        result = archives.restore(file, Path(settings.data_dir))
    except (StoreError, OSError) as error:
        raise _fail(error) from None
    print(f"{settings.data_dir}: restored, {result.files} package files; epoch {result.epoch} begins at the next start")
    master_key = Path(settings.keys_dir) / MASTER_FILE
    if not master_key.exists():
        print(
            f"before the start, put the master key at {master_key}; if it is lost: opamp-relay rekey", file=sys.stderr
        )
