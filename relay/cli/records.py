"""After a change: its history, and the audit."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, show, table
from relay.cli.resources import kind_of, plural_of
from relay.cli.rollout import headline

epoch_app = typer.Typer(no_args_is_help=True, help="The epoch of what is published.")
audit_app = typer.Typer(help="Who did what.")
history_app = typer.Typer(no_args_is_help=True, help="What was in force before.")


@history_app.command("assignment")
def history_assignment(
    name: Annotated[str, typer.Argument(help="of an assignment")],
    diff: Annotated[bool, typer.Option("--diff", help="what each of them changed")] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """All rollouts of an assignment that are kept, oldest first."""
    form = form_of(output)
    api = Api(server)
    found = api.get("assignments", name, "history")
    if diff:
        for rollout in found:
            rollout["diff"] = api.get("rollouts", rollout["name"], "diff")
    if form != "table":
        show(found, form)
        return
    if diff:
        for rollout in found:
            print(
                "\n".join(
                    [f"{headline(rollout)}, {rollout['created']} by {rollout['created_by']}", *lines(rollout["diff"])]
                )
            )
        return
    columns = ("name", "state", "template", "revision", "created", "ended", "created_by", "reason")
    table(columns, [[r["candidate" if c == "revision" else c] for c in columns] for r in found])


@history_app.command("document")
def history_document(
    resource: Annotated[str, typer.Argument(help="assignment, strategy, regionvariables, ...")],
    name: Annotated[str, typer.Argument(help="of the document")],
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """When a document was changed, and by whom; `get RESOURCE NAME@GENERATION` gives it as it was."""
    form = form_of(output)
    found = Api(server).get("documents", plural_of(resource), name, "versions")
    if form != "table":
        show(found, form)
        return
    columns = ("generation", "at", "actor", "deleted", "document_digest")
    table(columns, [[v[c] for c in columns] for v in found])


def lines(diff: dict[str, Any]) -> list[str]:
    """What a rollout changes, in lines of text."""
    before = f"{diff['from']['template']} (revision {diff['from']['revision']})" if diff["from"] else "nothing"
    found = [f"  {before} -> {diff['to']['template']} (revision {diff['to']['revision']})"]
    found += [f"  {c['path']}: {_value(c['before'])} -> {_value(c['after'])}" for c in diff["changes"]]
    for config in diff["configs"]:
        where = f" in {', '.join(config['regions'])}" if config["regions"] else ""
        found.append(f"  config{where}:" if config["text"] else f"  config{where}: the same")
        found += [f"    {line}" for line in config["text"].splitlines()]
    return [*found, *(f"  note: {note}" for note in diff["notes"])]


def _value(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


@audit_app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="a duration (24h) or a date (2026-11-24)")] = "",
    until: Annotated[str, typer.Option(help="likewise: what was before that")] = "",
    actor: Annotated[str, typer.Option(help="only what they did")] = "",
    subject: Annotated[str, typer.Option(help="only what was done to it: KIND/NAME, or a beginning of that")] = "",
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List who did what, newest last."""
    if context.invoked_subcommand is not None:
        return
    form = form_of(output)
    found = Api(server).get(
        "audit",
        since_ms=_moment_ms("--since", since) if since else None,
        until_ms=_moment_ms("--until", until) if until else None,
        actor=actor or None,
        subject=_subject(subject) or None,
    )
    if form != "table":
        show(found, form)
        return
    columns = ("number", "at", "actor", "action", "subject", "before", "after", "reason")
    for entry in found:
        entry.update({side: _called(entry["subject"], entry[side]) for side in ("before", "after")})
    table(columns, [[e[c] for c in columns] for e in found])


def _called(subject: str, value: str) -> str:
    """What an entry says of the state before or after it, with its hash called what it is."""
    kind = subject.partition("/")[0]
    if not value or kind == "Epoch":
        return value
    if kind == "Rollout":
        state, _, rest = value.rpartition(":")
        return f"{state.replace(':', ', stage ')}, change {rest}" if state else f"change {value}"
    return f"{'package' if kind == 'Package' else 'document'} {value}"


def _subject(text: str) -> str:
    """KIND/NAME, where people may call the kind as they do elsewhere."""
    kind, slash, name = text.partition("/")
    known = kind_of(kind)
    return f"{known.name}{slash}{name}" if known is not None else text


@audit_app.command("show")
def audit_show(
    number: Annotated[int, typer.Argument(help="of the entry")],
    output: Annotated[str, typer.Option("-o", "--output", help="yaml or json")] = "yaml",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show one entry, and of a document what it was changed to."""
    form = form_of(output)
    api = Api(server)
    entry = api.get("audit", str(number))
    kind, _, name = entry["subject"].partition("/")
    if entry["action"] == "apply" and entry["after"]:
        versions = api.get("documents", plural_of(kind), name, "versions")
        same = [v["generation"] for v in versions if v["document_digest"] == entry["after"]]
        if same:
            entry["document"] = api.get("documents", plural_of(kind), name, "versions", str(same[-1]))
    elif kind == "Rollout":
        entry["diff"] = api.get("rollouts", name, "diff")
    show(entry, form if form != "table" else "yaml")


def _moment_ms(option: str, text: str) -> int:
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
        raise usage(f"{option} {text}: expected a duration (24h) or a date (2026-11-24)") from None
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
    reason: Annotated[str, typer.Option(help="why; recorded in the audit")],
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """After another database was put in place: what nodes hold gives way to what this control plane has."""
    answer = api_of(server, who).post("epoch", body={"reason": reason})
    print(f"epoch {answer['epoch']}")
