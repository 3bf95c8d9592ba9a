"""`opampctl apply`: send documents to the server, and follow the rollouts they start."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from relay.cli import rollout
from relay.cli.client import Api, RefusedByServer, api_of
from relay.cli.options import DEFAULT_SERVER, As, Files, Server, label_terms, read_files, usage
from relay.cli.output import EXIT_REFUSED, EXIT_TIMED_OUT, form_of, show
from relay.cli.pruning import DocumentRef, delete, orphan_warning, prunable, refuse_orphaning

_POLL_S = 0.5


def apply(
    filename: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check on the server without changing anything")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="wait until its rollouts end; exits 1 unless all completed, 5 on timeout"),
    ] = False,
    timeout: Annotated[str, typer.Option(help="how long --wait waits: 40s, 10m; default: no limit")] = "",
    prune: Annotated[
        bool,
        typer.Option("--prune", help="delete unused documents that have the labels of -l and are not in the files"),
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", help="k=v in metadata.labels of the documents to prune")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="prune even if agents would then match nothing")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml")] = "text",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Apply documents: all or none."""
    within_s = _seconds(timeout) if timeout else None
    form = output if output == "text" else form_of(output)
    if form == "table":
        raise usage("-o table: expected text, json or yaml")
    if bool(label) is not prune:
        raise usage("--prune needs -l, and -l needs --prune: the labels say what may be deleted")
    if timeout and not wait:
        raise usage("--timeout needs --wait")
    labels = [(key, value) for key, _, value in (term.partition("=") for term in label_terms(label or []))]
    api = api_of(server, who)
    sources = read_files(filename)
    progress = sys.stdout if form == "text" else sys.stderr
    to_delete: list[DocumentRef] = []
    if prune:
        to_delete = prunable(api, api.post("apply", body={"sources": sources, "dry_run": True})["documents"], labels)
        if not dry_run and not yes:
            refuse_orphaning(api, to_delete)
    answer = api.post("apply", body={"sources": sources, "dry_run": dry_run})
    for item in answer["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}{' (dry run)' if dry_run else ''}", file=progress)
        for warning in item["warnings"]:
            print(f"warning: {item['kind']}/{item['name']}: {warning}", file=sys.stderr)
    for document in to_delete:
        print(f"{document} {'would be deleted' if dry_run else 'will be deleted'}", file=progress)
        if dry_run and (orphans := orphan_warning(api, document)):
            print(f"warning: {orphans}", file=sys.stderr)
    pruned = _as_json(to_delete) if dry_run else _prune(api, to_delete, progress)
    for item in answer["rollouts"]:
        print(f"rollout {rollout.headline(item)}", file=progress)
    status = 0
    if wait and not dry_run:
        answer["rollouts"] += _incomplete_rollouts(api, answer)
        status = _wait(api, answer["rollouts"], within_s, progress)
    if form != "text":
        show({**answer, "pruned": pruned}, form)
    if status:
        raise SystemExit(status)


def _seconds(text: str) -> float:
    from relay.documents import parse_duration

    try:
        return parse_duration(text)
    except ValueError:
        raise usage(f"--timeout {text}: expected a duration such as 40s or 10m") from None


def _prune(api: Api, documents: list[DocumentRef], progress: Any) -> list[dict[str, str]]:
    """Delete documents except those that something uses."""
    pruned = []
    for document in documents:
        obstacle = delete(api, document)
        print(f"{document} {f'kept: {obstacle}' if obstacle else 'deleted'}", file=progress)
        if not obstacle:
            pruned.append(document)
    return _as_json(pruned)


def _as_json(documents: list[DocumentRef]) -> list[dict[str, str]]:
    return [{"kind": document.kind, "name": document.key} for document in documents]


def _wait(api: Api, rollouts: list[dict[str, Any]], within_s: float | None, progress: Any) -> int:
    """Wait until all rollouts end, and put their final state into `rollouts`. Return the exit code."""
    deadline = None if within_s is None else time.monotonic() + within_s
    last_lines: dict[str, str] = {}
    remaining = list(rollouts)
    while remaining:
        for item in list(remaining):
            current = _fetch(api, item["name"])
            item.update(state=current["state"], reason=current["reason"], stages=current["stages"])
            gate = current["stages"][current["stage"]]["gate"]["reason"]
            line = rollout.headline(current) + (f" ({gate})" if gate and not current["reason"] else "")
            if last_lines.get(item["name"]) != line:
                last_lines[item["name"]] = line
                print(f"rollout {line}", file=progress, flush=True)
            if current["state"] in rollout.FINAL_STATES:
                remaining.remove(item)
        if not remaining:
            break
        if deadline is not None and time.monotonic() >= deadline:
            names = ", ".join(item["name"] for item in remaining)
            print(f"timed out: {names} {'is' if len(remaining) == 1 else 'are'} still in progress", file=sys.stderr)
            return EXIT_TIMED_OUT
        time.sleep(_POLL_S)
    return 0 if all(item["state"] == "completed" for item in rollouts) else EXIT_REFUSED


def _incomplete_rollouts(api: Api, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Rollouts that did not complete, of assignments that this apply did not change: they may still be in progress."""
    started = {item["assignment"] for item in answer["rollouts"]}
    unchanged = {d["name"] for d in answer["documents"] if d["kind"].endswith("Assignment")} - started
    names = [a["name"] for a in api.get("assignments") if a["name"] in unchanged and a["rollout"]] if unchanged else []
    latest = [(name, _fetch(api, name)) for name in names]
    return [
        {"name": current["name"], "assignment": name, "state": current["state"], "reason": current["reason"]}
        for name, current in latest
        if current["state"] != "completed"
    ]


def _fetch(api: Api, name: str) -> dict[str, Any]:
    try:
        current: dict[str, Any] = api.get("rollouts", name)
    except RefusedByServer as error:
        return {
            "name": name,
            "state": "aborted",
            "reason": str(error),
            "stage": 0,
            "stages": [{"gate": {"reason": ""}}],
        }
    return current
