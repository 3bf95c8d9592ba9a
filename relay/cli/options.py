"""Options and file arguments that several `opampctl` commands share."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.output import EXIT_USAGE

_MAX_FILE_BYTES = 1 << 20
"""Equals `relay.documents.MAX_DOCUMENT_BYTES`; importing that would slow the start."""
DEFAULT_SERVER = "http://127.0.0.1:4340"
Server = Annotated[str, typer.Option(envvar="OPAMPCTL_SERVER", help="URL of the control plane's admin API")]
Output = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml")]
Files = Annotated[list[str], typer.Option("-f", "--filename", help="file, folder, or - for standard input")]
As = Annotated[str, typer.Option("--as", envvar="OPAMPCTL_AS", help="your name; recorded as unverified")]


def usage(message: str) -> SystemExit:
    """Print a usage error and return the exit to raise."""
    print(message, file=sys.stderr)
    return SystemExit(EXIT_USAGE)


def label_terms(options: list[str]) -> list[str]:
    """Split `-l a=b,c=d -l e=f` into single terms. A term that is not k=v ends the command with status 2."""
    terms = [term.strip() for option in options for term in option.split(",")]
    for term in terms:
        key, equals, _ = term.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", key):
            raise usage(f"-l {term}: expected k=v")
    return terms


def read_files(files: list[str], *, not_text: int = EXIT_USAGE) -> list[dict[str, str]]:
    """Read files and folders into texts with their names. A file that cannot be read ends the command.

    Args:
        not_text: exit status for a file that is not text.
    """
    sources = []
    for name in files:
        if name == "-":
            sources.append({"source": "-", "text": sys.stdin.read()})
            continue
        try:
            paths = _files_of(Path(name))
        except OSError as error:
            raise usage(f"{name}: {error.strerror}") from None
        if not paths:
            raise usage(f"{name}: contains no .yaml, .yml or .json files")
        for file in paths:
            try:
                size = file.stat().st_size
                if size > _MAX_FILE_BYTES:
                    raise usage(f"{file}: {size} bytes is greater than the maximum, {_MAX_FILE_BYTES}")
                sources.append({"source": str(file), "text": file.read_text()})
            except OSError as error:
                raise usage(f"{file}: {error.strerror}") from None
            except UnicodeDecodeError:
                print(f"{file}: not UTF-8 text", file=sys.stderr)
                raise SystemExit(not_text) from None
    return sources


def _files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
