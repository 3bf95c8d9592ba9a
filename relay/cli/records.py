"""`opampctl history`, `audit` and `epoch`: records of past changes."""

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

epoch_app = typer.Typer(no_args_is_help=True, help="Manage the epoch of the published policy.")
audit_app = typer.Typer(help="List who did what.")
history_app = typer.Typer(no_args_is_help=True, help="Show what was in force before.")


@history_app.command("assignment")
def history_assignment(
    name: Annotated[str, typer.Argument(help="name of an assignment")],
    diff: Annotated[bool, typer.Option("--diff", help="show what each rollout changed")] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List the retained rollouts of an assignment, oldest first."""
    form = form_of(output)
    api = Api(server)
    rollouts = api.get("assignments", name, "history")
    if diff:
        for rollout in rollouts:
            rollout["diff"] = api.get("rollouts", rollout["name"], "diff")
    if form != "table":
        show(rollouts, form)
        return
    if diff:
        for rollout in rollouts:
            print(
                "\n".join(
                    [f"{headline(rollout)}, {rollout['created']} by {rollout['created_by']}", *lines(rollout["diff"])]
                )
            )
        return
    columns = ("name", "state", "template", "revision", "created", "ended", "created_by", "reason")
    table(columns, [[r["candidate" if c == "revision" else c] for c in columns] for r in rollouts])


@history_app.command("document")
def history_document(
    resource: Annotated[str, typer.Argument(help="assignment, strategy, regionvariables, ...")],
    name: Annotated[str, typer.Argument(help="name of the document")],
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List the changes of a document. `get RESOURCE NAME@GENERATION` shows an earlier generation."""
    form = form_of(output)
    versions = Api(server).get("documents", plural_of(resource), name, "versions")
    if form != "table":
        show(versions, form)
        return
    columns = ("generation", "at", "actor", "deleted", "document_digest")
    table(columns, [[v[c] for c in columns] for v in versions])


def lines(diff: dict[str, Any]) -> list[str]:
    """Format what a rollout changes as lines of text."""
    before = f"{diff['from']['template']} (revision {diff['from']['revision']})" if diff["from"] else "nothing"
    text = [f"  {before} -> {diff['to']['template']} (revision {diff['to']['revision']})"]
    text += [f"  {c['path']}: {_value(c['before'])} -> {_value(c['after'])}" for c in diff["changes"]]
    for config in diff["configs"]:
        where = f" in {', '.join(config['regions'])}" if config["regions"] else ""
        text.append(f"  config{where}:" if config["text"] else f"  config{where}: unchanged")
        text += [f"    {line}" for line in config["text"].splitlines()]
    return [*text, *(f"  note: {note}" for note in diff["notes"])]


def _value(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


@audit_app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="only entries since then: a duration (24h) or a date (2026-11-24)")] = "",
    until: Annotated[str, typer.Option(help="only entries before then: likewise")] = "",
    actor: Annotated[str, typer.Option(help="only actions by this user")] = "",
    subject: Annotated[str, typer.Option(help="only entries about KIND/NAME, or a prefix of it")] = "",
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List who did what, newest last."""
    if context.invoked_subcommand is not None:
        return
    form = form_of(output)
    entries = Api(server).get(
        "audit",
        since_ms=_moment_ms("--since", since) if since else None,
        until_ms=_moment_ms("--until", until) if until else None,
        actor=actor or None,
        subject=_subject(subject) or None,
    )
    if form != "table":
        show(entries, form)
        return
    columns = ("number", "at", "actor", "action", "subject", "before", "after", "reason")
    for entry in entries:
        entry.update({side: _labelled(entry["subject"], entry[side]) for side in ("before", "after")})
    table(columns, [[e[c] for c in columns] for e in entries])


def _labelled(subject: str, value: str) -> str:
    """The state before or after an entry, with a word for what its hash identifies."""
    kind = subject.partition("/")[0]
    if not value or kind == "Epoch":
        return value
    if kind == "Rollout":
        state, _, rest = value.rpartition(":")
        return f"{state.replace(':', ', stage ')}, change {rest}" if state else f"change {value}"
    return f"{'package' if kind == 'Package' else 'document'} {value}"


def _subject(text: str) -> str:
    """Normalize the kind in KIND/NAME; users may write it as in other commands."""
    kind, slash, name = text.partition("/")
    match = kind_of(kind)
    return f"{match.name}{slash}{name}" if match is not None else text


@audit_app.command("show")
def audit_show(
    number: Annotated[int, typer.Argument(help="number of the entry")],
    output: Annotated[str, typer.Option("-o", "--output", help="yaml or json")] = "yaml",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show one entry, with the document after an apply or the diff of a rollout."""
    form = form_of(output)
    api = Api(server)
    entry = api.get("audit", str(number))
    kind, _, name = entry["subject"].partition("/")
    if entry["action"] == "apply" and entry["after"]:
        versions = api.get("documents", plural_of(kind), name, "versions")
        generations = [v["generation"] for v in versions if v["document_digest"] == entry["after"]]
        if generations:
            entry["document"] = api.get("documents", plural_of(kind), name, "versions", str(generations[-1]))
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
    """Verify the hash chain; exits 1 if it is broken."""
    result = Api(server).get("audit", "verify")
    if not result["ok"]:
        print(f"the hash chain is broken at entry {result['broken_at']}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED)
    print(f"{result['entries']} entries, hash chain intact; the last hash is {result['hash']}")


@epoch_app.command("raise")
def raise_epoch(
    reason: Annotated[str, typer.Option(help="the reason; recorded in the audit")],
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Raise the epoch after the database was replaced: nodes then replace their policy with this control plane's."""
    answer = api_of(server, who).post("epoch", body={"reason": reason})
    print(f"epoch {answer['epoch']}")
