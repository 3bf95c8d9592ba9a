"""`opampctl rollout …`: what is going out, how far it is, and what people do about it."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated, Any

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, as_bar, form_of, show, table

app = typer.Typer(no_args_is_help=True, help="Changes on their way to agents.")

Reason = Annotated[str, typer.Option("--reason", help="why; recorded in the audit")]
Name = Annotated[str, typer.Argument(help="ASSIGNMENT-NUMBER")]
_WATCH_S = 1.0
OVER = ("rolled_back", "completed", "superseded", "rejected", "aborted")


@app.command("list")
def list_rollouts(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List what is going on, and the latest rollout of each assignment."""
    form = form_of(output)
    found = Api(server).get("rollouts")
    if form != "table":
        show(found, form)
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
                _cut(r["stages"][r["stage"]]["gate"]["reason"] or r["reason"]),
            )
            for r in found
        ],
    )


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="until it has ended; exits 1 unless it completed")
    ] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show one rollout: its stages, its regions, and what it waits for."""
    form = form_of(output)
    api = Api(server)
    if not watch:
        found = api.get("rollouts", name)
        if form == "table":
            print("\n".join(picture(found)))
        else:
            show(found, form)
        return
    if form != "table":
        raise usage("-w prints for people: it does not take -o")
    state = _watch(api, name)
    if state != "completed":
        raise SystemExit(EXIT_REFUSED)


def _watch(api: Api, name: str) -> str:
    """Show a rollout until it is over, live on a terminal and else each time that it changed; give its last state."""
    from rich.live import Live
    from rich.text import Text

    is_live, shown = sys.stdout.isatty(), ""
    with Live(auto_refresh=False) if is_live else contextlib.nullcontext() as live:
        while True:
            found = api.get("rollouts", name)
            text = "\n".join(picture(found))
            if live is not None:
                live.update(Text(text), refresh=True)
            elif text != shown:
                print(text, flush=True)
            shown = text
            if found["state"] in OVER:
                return str(found["state"])
            time.sleep(_WATCH_S)


def picture(rollout: dict[str, Any]) -> list[str]:
    """A rollout in lines of text: a bar for each stage, a row for each region."""
    before = f"{rollout['stable_template']} (revision {rollout['stable']})" if rollout["stable"] else "nothing"
    change = f"{before} -> {rollout['template']} (revision {rollout['candidate']})"
    lines = [headline(rollout), f"  {change}, by {rollout['created_by']} at {rollout['created']}"]
    if rollout["state"] == "pending_approval":
        given = ", ".join(a["actor"] for a in rollout["approvals"]) or "nobody yet"
        count = f"{len(rollout['approvals'])} of {rollout['approvals_needed']}"
        lines.append(f"  approvals of digest {rollout['digest'][:16]}: {count}: {given}")
    width = max(len(stage["name"]) for stage in rollout["stages"])
    for stage in rollout["stages"]:
        counts, gate = stage["counts"], stage["gate"]
        share = f"{stage['percentage']:g} %" if "percentage" in stage else ", ".join(stage["regions"])
        bar = as_bar(counts["applied"], counts["failed"], counts["targets"])
        lines.append(f"  {stage['name']:<{width}}  {bar}  {share:>6}  {stage['state']}")
        if stage["started"]:
            lines.append(f"  {'':<{width}}  {_numbers(counts)}")
            lines.append(f"  {'':<{width}}  gate: {gate['verdict']}: {gate['reason']}")
    lines += [f"  region {name}: {counts['state']}: {_numbers(counts)}" for name, counts in rollout["regions"].items()]
    for agent in rollout["troubled"]:
        said = f": {_cut(agent['message'])}" if agent["message"] else ""
        lines.append(f"  {agent['state']}: {agent['agent']} in {agent['region']}{said}")
    return lines


def _cut(text: str, most: int = 120) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def headline(rollout: dict[str, Any]) -> str:
    """Name, state and reason of a rollout in a line."""
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
    """Approve a change that waits for it."""
    api = api_of(server, who)
    if not digest:
        digest = api.get("rollouts", name)["digest"]
    _say(api.post("rollouts", name, "approve", body={"digest": digest}))


def _act(action: str, name: str, reason: str, who: str, server: str, **more: Any) -> None:
    _say(api_of(server, who).post("rollouts", name, action, body={"reason": reason, **more}))


def _say(rollout: dict[str, Any]) -> None:
    print(headline(rollout))


@app.command()
def reject(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Say no to a change that waits for approval."""
    _act("reject", name, reason, who, server)


@app.command()
def pause(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Stay in the stage that it is in, until it is resumed."""
    _act("pause", name, reason, who, server)


@app.command()
def resume(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Go on after a pause."""
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
    found = api.get("rollouts", name)
    names = [s["name"] for s in found["stages"]]
    if stage and stage not in names:
        raise typer.BadParameter(f"{name} has no stage {stage}; it has {', '.join(names)}")
    index = names.index(stage) if stage else found["stage"]
    _say(api.post("rollouts", name, "promote", body={"reason": reason, "stage": index}))


@app.command()
def rollback(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Take every agent back to the stable revision."""
    _act("rollback", name, reason, who, server)


@app.command()
def abort(name: Name, reason: Reason = "", who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """End it now; agents go back to the stable revision, and nobody waits for them."""
    _act("abort", name, reason, who, server)


@app.command()
def undo(
    assignment: Annotated[str, typer.Argument(help="name of an assignment")],
    to: Annotated[str, typer.Option(help="one of its rollouts; default: what it was before")] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Ask again for what an assignment was before: a new rollout, by the assignment's strategy."""
    done = api_of(server, who).post("assignments", assignment, "undo", body={"to": to})
    print(f"{done['kind']}/{assignment} {done['action']}: rollout {done['rollout']} to {done['to']}")


@app.command()
def retry(name: Name, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Forgive failures: offer again what failed, or begin anew what was given up."""
    _act("retry", name, "", who, server)
