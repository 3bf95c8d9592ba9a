"""`opamp-relay database`: a control plane's data saved and brought back."""

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

app = typer.Typer(no_args_is_help=True, help="A control plane's data: back it up while it runs, and restore it.")
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="the archive")]
Config = Annotated[
    str | None, typer.Option("-c", "--config", help="settings file of the control plane, or of standalone")
]
Data = Annotated[str | None, typer.Option(help="folder of its data, instead of a settings file")]
_EXIT_FAILED, _EXIT_SETTINGS = 1, 2


def _settings(config: str | None, data: str | None) -> ControlPlaneSettings:
    """Of the control plane, also where the file is standalone's: what only that knows tells, or where the data are."""
    from relay.control.storage.database import FILE

    flags = {"data_dir": data}
    problems: list[Problem] = []
    found: list[ControlPlaneSettings] = []
    try:
        found.append(load(ControlPlaneSettings, file=config, environment=os.environ, flags=flags).settings)
    except SettingsError as error:
        problems = list(error.problems)
    if config is not None:
        with contextlib.suppress(SettingsError):
            standalone = load(StandaloneSettings, file=config, environment=os.environ, flags=flags)
            found.append(standalone.settings.for_control_plane())
    if not found:
        for problem in problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(_EXIT_SETTINGS)
    return next((s for s in found if (Path(s.data_dir) / FILE).is_file()), found[0])


def _fail(error: StoreError | OSError) -> typer.Exit:
    said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    print(f"opamp-relay: {said}", file=sys.stderr)
    return typer.Exit(_EXIT_FAILED)


@app.command()
def backup(
    file: Archive,
    config: Config = None,
    data: Data = None,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="include the key that signs package addresses: then keep the file secret"),
    ] = False,
) -> None:
    """Write everything into one file; the control plane may run meanwhile."""
    from relay.control.storage import backup as archives

    settings = _settings(config, data)
    in_folder = settings.storage.packages.type == "folder"
    try:
        made = archives.backup(Path(settings.data_dir), file, packages=in_folder, with_keys=with_keys)
    except (StoreError, OSError) as error:
        raise _fail(error) from None
    print(f"{file}: {made.size} bytes, {made.files} package files; verified")
    if not in_folder:
        print(f"package files are in {settings.storage.packages.type}, and not in it", file=sys.stderr)


@app.command()
def restore(file: Archive, config: Config = None, data: Data = None) -> None:
    """Make the data folder of a backup; it must not be there, or be empty."""
    from relay.control.storage import backup as archives

    settings = _settings(config, data)
    try:
        made = archives.restore(file, Path(settings.data_dir))
    except (StoreError, OSError) as error:
        raise _fail(error) from None
    print(f"{settings.data_dir}: restored, {made.files} package files; epoch {made.epoch} begins when it is started")
