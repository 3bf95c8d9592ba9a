"""`opampctl apply`: documents to the server, and what becomes of the rollouts that they begin."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from relay.cli import rollout
from relay.cli.client import Api, RefusedByServer, api_of
from relay.cli.options import DEFAULT_SERVER, As, Files, Server, label_terms, read_files, usage
from relay.cli.output import EXIT_REFUSED, EXIT_TIME_OVER, form_of, show
from relay.cli.pruning import Doomed, delete, doomed, orphaned, spare

_LOOK_S = 0.5


def apply(
    filename: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check on the server, change nothing")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="until its rollouts have ended; exits 1 unless all completed, 5 on timeout"),
    ] = False,
    timeout: Annotated[str, typer.Option(help="how long to wait: 40s, 10m")] = "",
    prune: Annotated[
        bool, typer.Option("--prune", help="delete what has the labels of -l, is not in the files, and is not in use")
    ] = False,
    label: Annotated[list[str] | None, typer.Option("-l", "--label", help="k=v of documents' metadata.labels")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="prune even if agents would no longer match anything")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml")] = "text",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Apply documents: all of them, or none."""
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
    ends: list[Doomed] = []
    if prune:
        ends = doomed(api, api.post("apply", body={"sources": sources, "dry_run": True})["documents"], labels)
        if not dry_run and not yes:
            spare(api, ends)
    answer = api.post("apply", body={"sources": sources, "dry_run": dry_run})
    for item in answer["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}{' (dry run)' if dry_run else ''}", file=progress)
        for warning in item["warnings"]:
            print(f"warning: {item['kind']}/{item['name']}: {warning}", file=sys.stderr)
    for document in ends:
        print(f"{document} {'would be deleted' if dry_run else 'will be deleted'}", file=progress)
        if dry_run and (orphans := orphaned(api, document)):
            print(f"warning: {orphans}", file=sys.stderr)
    pruned = _plain(ends) if dry_run else _prune(api, ends, progress)
    for begun in answer["rollouts"]:
        print(f"rollout {rollout.headline(begun)}", file=progress)
    status = 0
    if wait and not dry_run:
        answer["rollouts"] += _latest(api, answer)
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


def _prune(api: Api, documents: list[Doomed], progress: Any) -> list[dict[str, str]]:
    """Delete documents, but for those that something uses."""
    pruned = []
    for document in documents:
        kept = delete(api, document)
        print(f"{document} {f'stays: {kept}' if kept else 'deleted'}", file=progress)
        if not kept:
            pruned.append(document)
    return _plain(pruned)


def _plain(documents: list[Doomed]) -> list[dict[str, str]]:
    return [{"kind": document.kind, "name": document.key} for document in documents]


def _wait(api: Api, begun: list[dict[str, Any]], within_s: float | None, progress: Any) -> int:
    """Wait until rollouts are over, and put their last state into `begun`. Gives the exit code."""
    deadline = None if within_s is None else time.monotonic() + within_s
    said: dict[str, str] = {}
    left = list(begun)
    while left:
        for item in list(left):
            found = _look(api, item["name"])
            item.update(state=found["state"], reason=found["reason"], stages=found["stages"])
            gate = found["stages"][found["stage"]]["gate"]["reason"]
            line = rollout.headline(found) + (f" ({gate})" if gate and not found["reason"] else "")
            if said.get(item["name"]) != line:
                said[item["name"]] = line
                print(f"rollout {line}", file=progress, flush=True)
            if found["state"] in rollout.OVER:
                left.remove(item)
        if not left:
            break
        if deadline is not None and time.monotonic() >= deadline:
            names = ", ".join(item["name"] for item in left)
            print(f"timed out: {names} {'is' if len(left) == 1 else 'are'} still under way", file=sys.stderr)
            return EXIT_TIME_OVER
        time.sleep(_LOOK_S)
    return 0 if all(item["state"] == "completed" for item in begun) else EXIT_REFUSED


def _latest(api: Api, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The latest rollouts of assignments that were given as they are, and began none: they may be under way still."""
    begun = {item["assignment"] for item in answer["rollouts"]}
    given = {d["name"] for d in answer["documents"] if d["kind"].endswith("Assignment")} - begun
    known = [a["name"] for a in api.get("assignments") if a["name"] in given and a["rollout"]] if given else []
    latest = [(name, _look(api, name)) for name in known]
    return [
        {"name": found["name"], "assignment": name, "state": found["state"], "reason": found["reason"]}
        for name, found in latest
        if found["state"] != "completed"
    ]


def _look(api: Api, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = api.get("rollouts", name)
    except RefusedByServer as error:
        return {
            "name": name,
            "state": "aborted",
            "reason": str(error),
            "stage": 0,
            "stages": [{"gate": {"reason": ""}}],
        }
    return found
