"""`opampctl rollout …`: watch and control rollouts."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated, Any

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, progress_bar, show, table

app = typer.Typer(no_args_is_help=True, help="Watch and control changes on their way to agents.")

Reason = Annotated[str, typer.Option("--reason", help="the reason; recorded in the audit")]
Name = Annotated[str, typer.Argument(help="ASSIGNMENT-NUMBER")]
_POLL_S = 1.0
FINAL_STATES = ("rolled_back", "completed", "superseded", "rejected", "aborted")


@app.command("list")
def list_rollouts(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List all open rollouts, and the latest rollout of each assignment."""
    form = form_of(output)
    rollouts = Api(server).get("rollouts")
    if form != "table":
        show(rollouts, form)
        return
    table(
        ("name", "state", "stage", "targets", "applied", "failed", "silent", "unhealthy", "reason"),
        [
            (
                r["name"],
                r["state"],
                f"{r['stages'][r['stage']]['name']} ({r['stage'] + 1}/{len(r['stages'])})",
                *(
                    r["stages"][r["stage"]]["counts"][k]
                    for k in ("targets", "applied", "failed", "silent", "unhealthy")
                ),
                _shorten(r["stages"][r["stage"]]["gate"]["reason"] or r["reason"]),
            )
            for r in rollouts
        ],
    )


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="follow it until it ends; exits 1 unless it completed")
    ] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show one rollout: its stages, its regions, and what it is waiting for."""
    form = form_of(output)
    api = Api(server)
    if not watch:
        rollout = api.get("rollouts", name)
        if form == "table":
            print("\n".join(render(rollout)))
        else:
            show(rollout, form)
        return
    if form != "table":
        raise usage("-w and -o exclude each other")
    state = _watch(api, name)
    if state != "completed":
        raise SystemExit(EXIT_REFUSED)


def _watch(api: Api, name: str) -> str:
    """Show a rollout until it ends: live on a terminal, else after each change. Return its final state."""
    from rich.live import Live
    from rich.text import Text

    is_live, last_text = sys.stdout.isatty(), ""
    with Live(auto_refresh=False) if is_live else contextlib.nullcontext() as live:
        while True:
            rollout = api.get("rollouts", name)
            text = "\n".join(render(rollout))
            if live is not None:
                live.update(Text(text), refresh=True)
            elif text != last_text:
                print(text, flush=True)
            last_text = text
            if rollout["state"] in FINAL_STATES:
                return str(rollout["state"])
            time.sleep(_POLL_S)


def render(rollout: dict[str, Any]) -> list[str]:
    """Format a rollout as lines of text: a bar for each stage, a row for each region."""
    before = f"{rollout['stable_template']} (revision {rollout['stable']})" if rollout["stable"] else "nothing"
    change = f"{before} -> {rollout['template']} (revision {rollout['candidate']})"
    lines = [headline(rollout), f"  {change}, by {rollout['created_by']} at {rollout['created']}"]
    if rollout["state"] == "pending_approval":
        approvers = ", ".join(a["actor"] for a in rollout["approvals"]) or "nobody yet"
        count = f"{len(rollout['approvals'])} of {rollout['approvals_needed']}"
        lines.append(f"  approvals of digest {rollout['digest'][:16]}: {count}: {approvers}")
    width = max(len(stage["name"]) for stage in rollout["stages"])
    for stage in rollout["stages"]:
        counts, gate = stage["counts"], stage["gate"]
        share = f"{stage['percentage']:g} %" if "percentage" in stage else ", ".join(stage["regions"])
        bar = progress_bar(counts["applied"], counts["failed"], counts["targets"])
        lines.append(f"  {stage['name']:<{width}}  {bar}  {share:>6}  {stage['state']}")
        if stage["started"]:
            lines.append(f"  {'':<{width}}  {_numbers(counts)}")
            lines.append(f"  {'':<{width}}  gate: {gate['verdict']}: {gate['reason']}")
    lines += [f"  region {name}: {counts['state']}: {_numbers(counts)}" for name, counts in rollout["regions"].items()]
    for agent in rollout["troubled"]:
        message = f": {_shorten(agent['message'])}" if agent["message"] else ""
        lines.append(f"  {agent['state']}: {agent['agent']} in {agent['region']}{message}")
    return lines


def _shorten(text: str, max_length: int = 120) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= max_length else plain[: max_length - 3] + "..."


def headline(rollout: dict[str, Any]) -> str:
    """Format the name, state and reason of a rollout as one line."""
    reason = f": {rollout['reason']}" if rollout["reason"] else ""
    return f"{rollout['name']} {rollout['state'].replace('_', ' ')}{reason}"


def _numbers(counts: dict[str, Any]) -> str:
    return " ".join(
        f"{key} {counts[key]}" for key in ("targets", "offered", "applied", "failed", "silent", "unhealthy")
    )


@app.command()
def approve(
    name: Name,
    digest: Annotated[str, typer.Option(help="digest of the change you reviewed; default: the current one")] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Approve a change that is waiting for approval."""
    api = api_of(server, who)
    if not digest:
        digest = api.get("rollouts", name)["digest"]
    _print_headline(api.post("rollouts", name, "approve", body={"digest": digest}))


def _act(action: str, name: str, reason: str, who: str, server: str, **more: Any) -> None:
    _print_headline(api_of(server, who).post("rollouts", name, action, body={"reason": reason, **more}))


def _print_headline(rollout: dict[str, Any]) -> None:
    print(headline(rollout))


@app.command()
def reject(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Reject a change that is waiting for approval."""
    _act("reject", name, reason, who, server)


@app.command()
def pause(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Hold a rollout in its current stage until it is resumed."""
    _act("pause", name, reason, who, server)


@app.command()
def resume(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Resume a paused rollout."""
    _act("resume", name, reason, who, server)


@app.command()
def promote(
    name: Name,
    stage: Annotated[str, typer.Option(help="the stage to end; default: the current one")] = "",
    reason: Reason = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """End the current stage without waiting for its gate."""
    api = api_of(server, who)
    rollout = api.get("rollouts", name)
    names = [s["name"] for s in rollout["stages"]]
    if stage and stage not in names:
        raise typer.BadParameter(f"{name} has no stage {stage}; it has {', '.join(names)}")
    index = names.index(stage) if stage else rollout["stage"]
    _print_headline(api.post("rollouts", name, "promote", body={"reason": reason, "stage": index}))


@app.command()
def rollback(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Return every agent to the stable revision."""
    _act("rollback", name, reason, who, server)


@app.command()
def abort(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """End a rollout now. Agents return to the stable revision; nothing waits for them."""
    _act("abort", name, reason, who, server)


@app.command()
def undo(
    assignment: Annotated[str, typer.Argument(help="name of an assignment")],
    to: Annotated[str, typer.Option(help="the rollout to return to; default: the one before")] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Return an assignment to what it was before: a new rollout, by the assignment's strategy."""
    result = api_of(server, who).post("assignments", assignment, "undo", body={"to": to})
    print(f"{result['kind']}/{assignment} {result['action']}: rollout {result['rollout']} to {result['to']}")


@app.command()
def retry(name: Name, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Forget failures: offer the change to failed agents again, or restart a rollout that did not complete."""
    _act("retry", name, "", who, server)
