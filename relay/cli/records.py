"""After a change: its history, and the audit."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, show, table

epoch_app = typer.Typer(no_args_is_help=True, help="The epoch of what is published.")
audit_app = typer.Typer(help="Who did what.")
history_app = typer.Typer(no_args_is_help=True, help="What was in force before.")


@history_app.command("assignment")
def history_assignment(
    name: Annotated[str, typer.Argument(help="of an assignment")],
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """All rollouts of an assignment that are kept, oldest first."""
    form = form_of(output)
    found = Api(server).get("assignments", name, "history")
    if form != "table":
        show(found, form)
        return
    columns = ("name", "state", "template", "candidate", "created", "ended", "created_by", "reason")
    table(columns, [[r[c] for c in columns] for r in found])


@audit_app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="a duration (24h) or a date (2026-11-24)")] = "",
    actor: Annotated[str, typer.Option(help="only what they did")] = "",
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List who did what, newest last."""
    if context.invoked_subcommand is not None:
        return
    form = form_of(output)
    found = Api(server).get("audit", since_ms=_since_ms(since) if since else None, actor=actor or None)
    if form != "table":
        show(found, form)
        return
    columns = ("at", "actor", "action", "subject", "before", "after", "reason")
    table(columns, [[e[c] for c in columns] for e in found])


def _since_ms(text: str) -> int:
    import time
    from datetime import UTC, datetime

    from relay.documents import parse_duration

    try:
        return int((time.time() - parse_duration(text)) * 1000)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise usage(f"--since {text}: a duration (24h) or a date (2026-11-24) is expected") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@audit_app.command("verify")
def audit_verify(server: Server = DEFAULT_SERVER) -> None:
    """Check the chain of hashes; exits 1 where it is broken."""
    found = Api(server).get("audit", "verify")
    if not found["ok"]:
        print(f"broken at entry {found['broken_at']}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED)
    print(f"{found['entries']} entries, whole; the last hash is {found['hash']}")


@epoch_app.command("raise")
def raise_epoch(
    reason: Annotated[str, typer.Option(help="why; it stands in the audit")],
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """After another database was put in place: what nodes hold gives way to what this control plane has."""
    answer = api_of(server, who).post("epoch", body={"reason": reason})
    print(f"epoch {answer['epoch']}")
