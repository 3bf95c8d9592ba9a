"""What several commands of `opampctl` take, and read, in the same way."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.output import EXIT_USAGE

_MOST_BYTES = 1 << 20
"""Of a file: `relay.documents.MAX_DOCUMENT_BYTES`, which is not imported for the sake of a quick start."""
DEFAULT_SERVER = "http://127.0.0.1:4340"
Server = Annotated[str, typer.Option(envvar="OPAMPCTL_SERVER", help="URL of the control plane's admin API")]
Output = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml")]
Files = Annotated[list[str], typer.Option("-f", "--filename", help="file, folder, or - for standard input")]
As = Annotated[str, typer.Option("--as", envvar="OPAMPCTL_AS", help="who you are; recorded as unverified")]


def usage(message: str) -> SystemExit:
    """To be raised: the command was used wrongly."""
    print(message, file=sys.stderr)
    return SystemExit(EXIT_USAGE)


def label_terms(given: list[str]) -> list[str]:
    """`-l a=b,c=d -l e=f` as single terms. Ends the command with status 2 where one is not k=v."""
    terms = [term.strip() for item in given for term in item.split(",")]
    for term in terms:
        key, equals, _ = term.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", key):
            raise usage(f"-l {term}: expected k=v")
    return terms


def read_files(files: list[str], *, not_text: int = EXIT_USAGE) -> list[dict[str, str]]:
    """The texts of files and folders, each with its name. Ends the command where one cannot be read.

    Args:
        not_text: the status where one is no text.
    """
    sources = []
    for name in files:
        if name == "-":
            sources.append({"source": "-", "text": sys.stdin.read()})
            continue
        try:
            found = _files_of(Path(name))
        except OSError as error:
            raise usage(f"{name}: {error.strerror}") from None
        if not found:
            raise usage(f"{name}: contains no .yaml, .yml or .json files")
        for file in found:
            try:
                size = file.stat().st_size
                if size > _MOST_BYTES:
                    raise usage(f"{file}: {size} bytes; a file may have at most {_MOST_BYTES}")
                sources.append({"source": str(file), "text": file.read_text()})
            except OSError as error:
                raise usage(f"{file}: {error.strerror}") from None
            except UnicodeDecodeError:
                print(f"{file}: not UTF-8", file=sys.stderr)
                raise SystemExit(not_text) from None
    return sources


def _files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
