"""Tables, JSON and YAML for people and scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer

from relay import __version__

EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_DIFF_REFUSED, EXIT_TIMED_OUT = 1, 2, 3, 4, 5


def print_version(requested: bool) -> None:
    """Callback of the eager option `--version`."""
    if requested:
        print(__version__)
        raise typer.Exit()


def show(value: Any, form: str) -> None:
    """Print a value as `json` or `yaml`."""
    if form == "json":
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print(as_yaml(value), end="")


def as_yaml(value: Any) -> str:
    """Dump a value as block YAML; keys keep their order."""
    import yaml  # most commands do not need it, and it takes a tenth of their startup

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def counts_of(counts: dict[str, int]) -> str:
    """Format counts as `name=count`; zero counts are left out."""
    return " ".join(f"{name}={count}" for name, count in sorted(counts.items()) if count)


def form_of(output: str, also: tuple[str, ...] = ()) -> str:
    """Check `-o`. An unknown format ends the command with status 2.

    Args:
        also: formats besides table, json and yaml.
    """
    forms = ("table", *also, "json", "yaml")
    if output not in forms:
        print(f"-o {output}: expected {', '.join(forms[:-1])} or {forms[-1]}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)
    return output


def progress_bar(done: int, failed: int, total: int, width: int = 20) -> str:
    """Draw how much of `total` is done (`#`) and how much failed (`x`)."""
    if not total:
        return "[" + " " * width + "]"
    marks = round(width * done / total)
    crosses = min(width - marks, -(-width * failed // total))
    return "[" + ("#" * marks + "x" * crosses).ljust(width, ".") + "]"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their column names; each column is as wide as its longest cell."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    lines = ([name.upper() for name in columns], *cells)
    sys.stdout.writelines("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = (",".join(map(str, value)) if isinstance(value, list) else str(value)) or "-"
    # Agents choose this text: it must not move the cursor or forge a row.
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
