"""`opampctl get agents`: list, filter, sort and watch agents."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from relay.cli.client import Api, Page
from relay.cli.output import show, table

_POLL_S = 2.0
_FIELDS = "agent_id,region,node,connected,transport,healthy,config,withheld"
_WIDE = f"{_FIELDS},host_name,version,instance_uid,last_change"


def list_agents(api: Api, name: str | None, filters: dict[str, Any], form: str, *, watch: bool) -> None:
    """Print agents.

    Args:
        filters: query parameters of the API.
        form: `table`, `wide`, `name`, `json` or `yaml`.
        watch: print again after each change, until interrupted.
    """
    if form == "json" and not name and not watch and filters["limit"] is None:
        with api.download("agents", **filters) as agents:
            shutil.copyfileobj(agents, sys.stdout.buffer)
        return
    if not watch:
        page = _fetch(api, name, filters, form)
        _print(page, form, one=name is not None)
        if page.total > len(page.rows):
            print(f"{page.total:,} agents match: show more with `--limit`, or all with `--all`", file=sys.stderr)
        return
    with contextlib.suppress(KeyboardInterrupt):
        for text in _changes(api, name, filters, form):
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print(text, end="", flush=True)


def _changes(api: Api, name: str | None, filters: dict[str, Any], form: str) -> Iterator[str]:
    last_text = ""
    while True:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            _print(_fetch(api, name, filters, form), form, one=name is not None)
        if text.getvalue() != last_text:
            last_text = text.getvalue()
            yield last_text
        time.sleep(_POLL_S)


def _fetch(api: Api, name: str | None, filters: dict[str, Any], form: str) -> Page:
    if name:
        return Page([api.get("agents", name)], 1)
    fields = {"table": _FIELDS, "wide": _WIDE, "name": "agent_id"}.get(form)
    return api.page("agents", **filters, fields=fields)


def _print(page: Page, form: str, *, one: bool) -> None:
    agents = page.rows
    if form == "name":
        sys.stdout.writelines(f"{agent['agent_id']}\n" for agent in agents)
        return
    if form not in ("table", "wide"):
        show(agents[0] if one else agents, form)
        return
    columns = ["agent", "region", "node", "connected", "transport", "healthy", "config_hash", "status", "assignments"]
    rows = [_row(agent) for agent in agents]
    if form == "wide":
        columns[1:1] = ["host", "version"]
        columns += ["instance_uid", "last_change"]
        rows = [
            [row[0], a["host_name"], a["version"], *row[1:], a["instance_uid"], a["last_change"]]
            for row, a in zip(rows, agents, strict=True)
        ]
    table(columns, rows)
    if not one:
        print(_footer(page))


def _row(agent: dict[str, Any]) -> list[Any]:
    config = agent["config"]
    withheld_reason = next((w["reason"] for w in agent["withheld"] if w["reason"]), "")
    status = f"{config['status']} {config['error_message']}" + (
        f" (keeps its config: {withheld_reason})" if withheld_reason else ""
    )
    return [
        agent["agent_id"],
        agent["region"],
        agent["node"],
        "unknown" if agent["connected"] is None else agent["connected"],
        agent["transport"],
        agent["healthy"],
        config["reported_hash"][:12],
        " ".join(status.split())[:160],
        config["assignments"],
    ]


def _footer(page: Page) -> str:
    agents = page.rows
    connected = Counter({True: "connected", False: "away", None: "unknown"}[agent["connected"]] for agent in agents)
    health = Counter({True: "healthy", False: "unhealthy"}.get(agent["healthy"], "") for agent in agents)
    status = Counter(agent["config"]["status"] for agent in agents)
    parts = [
        ", ".join(f"{number} {word}" for word, number in sorted(counts.items()) if word)
        for counts in (connected, health, status)
    ]
    of_all = f" of {page.total:,}" if page.total > len(agents) else ""
    return f"{len(agents):,}{of_all} agents" + (": " + "; ".join(part for part in parts if part) if agents else "")
