"""`opampctl`: the people's client of the admin API.

Exit codes: 0 done, 1 refused or different, 2 usage, 3 the server cannot be reached. Errors go to stderr as
`FILE:LINE: path: reason`.
"""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from relay.cli import rollout
from relay.cli.client import Api, RefusedByServer, Unreachable, api_of
from relay.cli.output import EXIT_USAGE, as_yaml, form_of, show, table

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
audit_app = typer.Typer(help="Who did what.")
history_app = typer.Typer(no_args_is_help=True, help="What was in force before.")
agent_app = typer.Typer(no_args_is_help=True, help="One agent.")
app.add_typer(agent_app, name="agent")
app.add_typer(rollout.app, name="rollout")
app.add_typer(audit_app, name="audit")
app.add_typer(history_app, name="history")

_NOT_FOUND = 404
EXIT_REFUSED, EXIT_UNREACHABLE = 1, 3

Server = Annotated[str, typer.Option(envvar="OPAMPCTL_SERVER", help="URL of the control plane's admin API")]
Output = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml")]
Files = Annotated[list[str], typer.Option("-f", "--filename", help="file, folder, or - for standard input")]
DEFAULT_SERVER = "http://127.0.0.1:4340"

_DOCUMENTS = {
    "configtemplates": ("ConfigTemplate", "templates"),
    "configassignments": ("ConfigAssignment", "assignments"),
    "variables": ("RegionVariables", "regionvariables"),
    "templates": ("ConfigTemplate", "templates"),
    "template": ("ConfigTemplate", "templates"),
    "configtemplate": ("ConfigTemplate", "templates"),
    "assignments": ("ConfigAssignment", "assignments"),
    "assignment": ("ConfigAssignment", "assignments"),
    "configassignment": ("ConfigAssignment", "assignments"),
    "regionvariables": ("RegionVariables", "regionvariables"),
    "regionvariable": ("RegionVariables", "regionvariables"),
    "strategies": ("RolloutStrategy", "strategies"),
    "strategy": ("RolloutStrategy", "strategies"),
    "rolloutstrategies": ("RolloutStrategy", "strategies"),
    "rolloutstrategy": ("RolloutStrategy", "strategies"),
}
_RESOURCES = "templates, assignments, strategies, regionvariables, regions, nodes, agents, config HASH"


def main() -> None:
    """Run the command line."""
    gc.disable()  # a command lives too shortly for what it would free
    try:
        app()
    except Unreachable as error:
        print(f"cannot reach the server: {error}", file=sys.stderr)
        raise SystemExit(EXIT_UNREACHABLE) from None
    except RefusedByServer as error:
        for line in error.lines:
            print(line, file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from relay import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="and exit")
    ] = False,
) -> None:
    """The people's client of the control plane."""


def _usage(message: str) -> SystemExit:
    print(message, file=sys.stderr)
    return SystemExit(EXIT_USAGE)


def _read(files: list[str]) -> list[dict[str, str]]:
    """The texts of files and folders, each with its name."""
    sources = []
    for name in files:
        if name == "-":
            sources.append({"source": "-", "text": sys.stdin.read()})
            continue
        path = Path(name)
        found = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
        if not found:
            raise _usage(f"{name}: holds no .yaml, .yml or .json file")
        for file in found:
            try:
                sources.append({"source": str(file), "text": file.read_text()})
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise _usage(f"{file}: {reason}") from None
    return sources


@app.command()
def apply(
    filename: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check on the server, change nothing")] = False,
    who: rollout.As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Apply documents: all of them, or none."""
    answer = api_of(server, who).post("apply", body={"sources": _read(filename), "dry_run": dry_run})
    for item in answer["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}{' (dry run)' if dry_run else ''}")


@app.command()
def diff(filename: Files, server: Server = DEFAULT_SERVER) -> None:
    """Show what apply would change; exits 1 where there is a difference."""
    import difflib

    answer = Api(server).post("apply", body={"sources": _read(filename), "dry_run": True})
    different = False
    for item in answer["documents"]:
        if item["action"] == "unchanged":
            continue
        different = True
        name = f"{item['kind']}/{item['name']}"
        before = _yaml_lines(item["before"])
        after = _yaml_lines(item["after"])
        sys.stdout.writelines(difflib.unified_diff(before, after, f"{name} (in force)", f"{name} (given)"))
    if different:
        raise SystemExit(EXIT_REFUSED)


def _yaml_lines(value: Any) -> list[str]:
    return [] if value is None else as_yaml(value).splitlines(keepends=True)


@app.command()
def delete(
    resource: Annotated[
        str | None, typer.Argument(help="template, assignment, strategy, regionvariables or node")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="its name; a template's is NAME@VERSION, a node's REGION/NAME")
    ] = None,
    filename: Annotated[list[str] | None, typer.Option("-f", "--filename", help="delete what these files name")] = None,
    who: rollout.As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Delete documents. Agents that nothing else matches keep what they have."""
    api = api_of(server, who)
    if filename and resource is None:
        for kind, key in _named(_read(filename)):
            try:
                api.delete("documents", _DOCUMENTS[kind.lower()][1], key)
                print(f"{kind}/{key} deleted")
            except RefusedByServer as error:
                if error.status != _NOT_FOUND:
                    raise
                print(f"{kind}/{key} not found")
        return
    if resource is None or name is None or filename:
        raise _usage("either RESOURCE NAME or -f FILE is expected")
    if resource.lower() in ("node", "nodes"):
        region, slash, node = name.partition("/")
        if not slash:
            raise _usage(f"{name}: REGION/NAME of a node is expected")
        api.delete("nodes", region, node)
        print(f"Node/{name} deleted")
        return
    kind, plural = _DOCUMENTS.get(resource.lower(), ("", ""))
    if not kind:
        raise _usage(f"{resource} cannot be deleted; templates, assignments, strategies, regionvariables and nodes can")
    api.delete("documents", plural, name)
    print(f"{kind}/{name} deleted")


def _named(sources: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(kind, name) of the documents of some texts; assignments first, since they use the others."""
    from relay.documents import parse
    from relay.errors import Refused
    from relay.policy.kinds import read

    found, problems = [], []
    for source in sources:
        try:
            for raw in parse(source["text"], source["source"]):
                document, wrong = read(raw)
                problems += [str(problem) for problem in wrong]
                if document is not None:
                    found.append((document.kind, document.key))
        except Refused as refused:
            problems += [str(problem) for problem in refused.problems]
    if problems:
        raise RefusedByServer(422, problems)
    return sorted(found)


@app.command()
def get(
    resource: Annotated[str, typer.Argument(help=_RESOURCES)],
    name: Annotated[str | None, typer.Argument(help="one of them")] = None,
    label: Annotated[list[str] | None, typer.Option("-l", "--label", help="k=v; several must all match")] = None,
    connected: Annotated[bool, typer.Option("--connected", help="only agents that are connected")] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List documents, regions, nodes or agents."""
    form = form_of(output)
    if (label or connected) and resource not in ("agents", "agent"):
        raise _usage(f"-l and --connected choose agents, not {resource}")
    wanted = _labels(label or [])
    api = Api(server)
    if resource.lower() in _DOCUMENTS:
        plural = _DOCUMENTS[resource.lower()][1]
        found = [api.get("documents", plural, name)] if name else api.get("documents", plural)
    elif resource in ("config", "configs"):
        _config(api, name, form)
        return
    elif resource in ("agents", "agent"):
        resource = "agents"
        fields = "agent_id,region,node,connected,transport,healthy,config" if form == "table" else None
        if name:
            found = [api.get("agents", name)]
        else:
            found = api.get("agents", label=wanted or None, connected="true" if connected else None, fields=fields)
    elif resource in ("nodes", "node", "regions", "region"):
        resource = resource.removesuffix("s") + "s"
        found = [item for item in api.get(resource) if name in (None, item["name"])]
        if name and not found:
            raise RefusedByServer(404, [f"there is no {resource.removesuffix('s')} {name}"])
    else:
        raise _usage(f"{resource} is not one of {_RESOURCES}")
    if form != "table":
        show(found[0] if name else found, form)
    else:
        _tables(resource.lower(), found)


def _config(api: Api, name: str | None, form: str) -> None:
    if not name:
        raise _usage("the hash of a config is expected")
    found = api.get("configs", name.lower())
    if form != "table":
        show(found, form)
        return
    _bodies(found["slots"])


def _bodies(slots: dict[str, Any]) -> None:
    for slot, item in slots.items():
        if len(slots) > 1:
            print(f"# ---- {slot or '(default)'}")
        print(item["body"], end="" if item["body"].endswith("\n") else "\n")


def _labels(given: list[str]) -> list[str]:
    """`-l a=b,c=d -l e=f` as single terms."""
    terms = [term.strip() for item in given for term in item.split(",")]
    for term in terms:
        key, equals, _ = term.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", key):
            raise _usage(f"-l {term}: k=v is expected")
    return terms


def _tables(resource: str, found: list[dict[str, Any]]) -> None:
    rows: list[tuple[Any, ...]]
    columns: tuple[str, ...]
    if resource == "agents":
        columns = ("agent", "region", "node", "connected", "transport", "healthy", "config", "status", "assignments")
        rows = [
            (
                a["agent_id"],
                a["region"],
                a["node"],
                "unknown" if a["connected"] is None else a["connected"],
                a["transport"],
                a["healthy"],
                a["config"]["reported_hash"][:12],
                " ".join(f"{a['config']['status']} {a['config']['error_message']}".split())[:160],
                a["config"]["assignments"],
            )
            for a in sorted(found, key=lambda a: a["agent_id"])
        ]
        table(columns, rows)
    elif resource == "nodes":
        columns = ("name", "region", "connected", "agents", "manifest", "policy_age_s", "rejected")
        for node in found:
            node["policy_age_s"] = None if node["policy_age_s"] is None else round(node["policy_age_s"], 1)
            node["rejected"] = [f"{r['name']}: {r['reason']}"[:100] for r in node["rejected"]]
        table(columns, [[node[c] for c in columns] for node in found])
    elif resource == "regions":
        columns = ("name", "nodes", "nodes_connected", "agents", "connected", "healthy", "unhealthy", "unknown")
        table((*columns, "config"), [[*(r[c] for c in columns), _counts(r["config_status"])] for r in found])
    elif resource.startswith(("assignment", "configassignment")):
        rows = [
            (
                d["metadata"]["name"],
                f"{d['spec']['template']['name']}@{d['spec']['template']['version']}",
                d["spec"].get("priority", 0),
                d["spec"].get("slot", ""),
                _selector(d["spec"].get("target_selector", {})),
            )
            for d in found
        ]
        table(("name", "template", "priority", "slot", "for"), rows)
    elif resource.startswith(("template", "configtemplate")):
        table(("name", "version"), [(d["metadata"]["name"], d["metadata"]["version"]) for d in found])
    elif resource.startswith(("strateg", "rolloutstrateg")):
        table(("name", "stages"), [(d["metadata"]["name"], [s["name"] for s in d["spec"]["stages"]]) for d in found])
    else:
        table(("name", "values"), [(d["metadata"]["name"], sorted(d["spec"]["values"])) for d in found])


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counts.items()) if count)


def _selector(selector: dict[str, Any]) -> str:
    terms = [f"{k}={v}" for k, v in selector.get("labels", {}).items()]
    terms += [f"attribute {k}={v}" for k, v in selector.get("attributes", {}).items()]
    if selector.get("agent_ids"):
        terms.append(f"{len(selector['agent_ids'])} agent ids")
    return ", ".join(terms) or "every agent"


@app.command()
def describe(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show everything that is known of one agent."""
    if resource not in ("agent", "agents"):
        raise _usage(f"{resource} cannot be described; agents can")
    show(Api(server).get("agents", name), "yaml")


@app.command()
def explain(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Say why an agent gets what it gets, and what would have to be otherwise."""
    form = form_of(output)
    if resource not in ("agent", "agents"):
        raise _usage(f"{resource} cannot be explained; agents can")
    found = Api(server).get("agents", name, "explain")
    if form != "table":
        show(found, form)
        return
    from relay.policy.explain import lines

    print(f"agent {found['agent']} in region {found['region']}")
    for line in [*lines(found["slots"]), *found["notes"]]:
        print(line)
    for attempt in found["attempts"]:
        said = f": {attempt['error_message']}" if attempt["error_message"] else ""
        print(f"  {attempt['at']} {attempt['hash'][:12]} {attempt['status']}{said}")


@agent_app.command("config")
def agent_config(
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml")] = "text",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print the effective config that an agent reported."""
    config = Api(server).get("agents", name, "config")
    if output != "text":
        show(config, form_of(output))
        return
    _bodies(config)


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
        raise _usage(f"--since {text}: a duration (24h) or a date (2026-11-24) is expected") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@audit_app.command("verify")
def audit_verify(server: Server = DEFAULT_SERVER) -> None:
    """Check the chain of hashes; exits 1 where it is broken."""
    found = Api(server).get("audit", "verify")
    if not found["ok"]:
        print(f"broken at entry {found['broken_at']}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED)
    print(f"{found['entries']} entries, whole; the last hash is {found['hash']}")
