"""`opampctl`: the people's client of the admin API.

Exit codes: 0 done, 1 refused or different, 2 usage, 3 the server cannot be reached, 4 what `diff` was given was refused, 5
`apply --wait` ran out of time. Errors go to stderr as `FILE:LINE: path: reason`.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, Any

import typer

from relay.cli import agents, applying, package, records, review, rollout
from relay.cli.client import Api, RefusedByServer, Unreachable, api_of, versions_apart
from relay.cli.listing import table_of, table_of_documents
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, label_terms, read_files, usage
from relay.cli.output import EXIT_REFUSED, EXIT_UNREACHABLE, form_of, print_version, show
from relay.cli.pruning import Doomed, spare
from relay.cli.resources import kind_of, plural_of
from relay.policy.kinds import BY_PLURAL, BY_WORD
from relay.words import close_to

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
agent_app = typer.Typer(no_args_is_help=True, help="One agent.")
app.add_typer(agent_app, name="agent")
app.add_typer(rollout.app, name="rollout")
app.add_typer(package.app, name="package")
app.add_typer(package.bundle_app, name="bundle")
app.add_typer(records.audit_app, name="audit")
app.add_typer(records.history_app, name="history")
app.add_typer(records.epoch_app, name="epoch")
app.command()(applying.apply)
app.command()(review.diff)
app.command()(review.validate)
app.command()(package.prefetch)
app.command("import")(review.import_agent)

_NOT_FOUND = 404
PAGE = 500
"""Agents that a list shows where nobody says how many."""
_STATUSES = ("APPLIED", "APPLYING", "FAILED", "UNSET")

_RESOURCES = (
    "templates, assignments, packageassignments, strategies, regionvariables, signingkeys, regions, nodes, agents, "
    "package-status, drift, config HASH"
)


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
    except KeyError as error:
        # A field that every answer of our own version has.
        print(f"the server's answer has no {error}{versions_apart() or ': it is not an OpAMP relay'}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


@app.callback()
def _options(
    server: Annotated[str, typer.Option(help="URL of the control plane's admin API")] = "",
    who: Annotated[str, typer.Option("--as", help="who you are; recorded as unverified")] = "",
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="and exit")] = False,
) -> None:
    """The people's client of the control plane."""
    # Commands take both as well: before or behind the command is the same.
    for name, value in (("OPAMPCTL_SERVER", server), ("OPAMPCTL_AS", who)):
        if value:
            os.environ[name] = value


@app.command()
def delete(
    resource: Annotated[
        str | None,
        typer.Argument(help="what `get` lists of documents, or node"),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="its name; a template's is NAME@VERSION, a node's REGION/NAME")
    ] = None,
    filename: Annotated[list[str] | None, typer.Option("-f", "--filename", help="delete what these files name")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="even if agents would no longer match anything")] = False,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Delete documents. Agents that nothing else matches keep what they have."""
    api = api_of(server, who)
    if filename and resource is None:
        named = _named(read_files(filename))
        if not yes:
            spare(api, [Doomed(plural_of(kind), kind, key) for kind, key in named])
        for kind, key in named:
            try:
                api.delete("documents", plural_of(kind), key)
                print(f"{kind}/{key} deleted")
            except RefusedByServer as error:
                if error.status != _NOT_FOUND:
                    raise
                print(f"{kind}/{key} not found")
        return
    if resource is None or name is None or filename:
        raise usage("expected either RESOURCE NAME or -f FILE")
    if resource.lower() in ("node", "nodes"):
        region, slash, node = name.partition("/")
        if not slash:
            raise usage(f"{name}: expected REGION/NAME of a node")
        api.delete("nodes", region, node)
        print(f"Node/{name} deleted")
        return
    if (of_documents := kind_of(resource)) is None:
        hint = close_to(resource, (*BY_WORD, "node"))
        raise usage(f"{resource} cannot be deleted{hint}; only {', '.join(BY_PLURAL)} and nodes can be")
    if not yes:
        spare(api, [Doomed(of_documents.plural, of_documents.name, name)])
    api.delete("documents", of_documents.plural, name)
    print(f"{of_documents.name}/{name} deleted")


def _named(sources: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(kind, name) of the documents of some texts; assignments first, since they use the others."""
    from relay.documents import parse, parts_of
    from relay.errors import Refused
    from relay.policy.reading import read

    found, problems = [], []
    for source in sources:
        try:
            for raw in parts_of(parse(source["text"], source["source"])):
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
    connected: Annotated[bool | None, typer.Option("--connected/--not-connected", help="agents that are")] = None,
    unhealthy: Annotated[bool, typer.Option("--unhealthy", help="agents that are connected and unhealthy")] = False,
    status: Annotated[str, typer.Option(help="agents: APPLIED, APPLYING, FAILED or UNSET")] = "",
    region: Annotated[str, typer.Option(help="agents of this one")] = "",
    node: Annotated[str, typer.Option(help="agents at this one: NAME or REGION/NAME")] = "",
    version: Annotated[str, typer.Option(help="agents of this service.version")] = "",
    sort: Annotated[
        str,
        typer.Option(
            help="agents by agent_id, region, node, status, version, host.name or last_change; - before it turns the order"
        ),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help=f"so many agents; {PAGE} where nothing is said")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all agents, however many there are")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="show agents again at each change")] = False,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json or yaml; of agents wide or name too")
    ] = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List documents, regions, nodes or agents."""
    of_agents = resource in ("agents", "agent")
    form = form_of(output, ("wide", "name") if of_agents else ())
    chosen = {
        "connected": connected if connected is None else str(connected).lower(),
        "healthy": "false" if unhealthy else None,
        "status": status.upper() or None,
        "region": region or None,
        "node": node or None,
        "version": version or None,
        "sort": sort or None,
        "limit": limit,
        "all": everything or None,
    }
    if not of_agents and (watch or any(value is not None for value in chosen.values())):
        named = next((key for key, value in chosen.items() if value is not None), "watch")
        raise usage(f"--{named} chooses agents, not {resource}")
    if label and resource not in ("agents", "agent", "package-status"):
        raise usage(f"-l chooses agents, not {resource}")
    if status and status.upper() not in _STATUSES:
        raise usage(f"--status {status}: one of {', '.join(_STATUSES)} is expected{close_to(status, _STATUSES)}")
    wanted = label_terms(label or [])
    api = Api(server)
    of_documents = kind_of(resource)
    if of_documents is not None:
        found = [_document(api, plural_of(resource), name)] if name else api.get("documents", plural_of(resource))
    elif resource in ("package-status", "packagestatus"):
        package.package_status(api, wanted or None, form)
        return
    elif resource == "drift":
        found = [entry for entry in api.get("drift") if name in (None, entry["agent"], entry["assignment"])]
    elif resource in ("config", "configs"):
        _config(api, name, form)
        return
    elif of_agents:
        if chosen.pop("all") and limit is not None:
            raise usage("--all and --limit exclude each other")
        chosen["limit"] = None if everything else limit or PAGE
        agents.list_agents(api, name, {"label": wanted or None, **chosen}, form, watch=watch)
        return
    elif resource in ("nodes", "node", "regions", "region"):
        resource = resource.removesuffix("s") + "s"
        found = [item for item in api.get(resource) if name in (None, item["name"])]
        if name and not found:
            raise RefusedByServer(404, [f"there is no {resource.removesuffix('s')} {name}"])
    else:
        hint = "; packages are listed by `opampctl package list`" if resource.startswith("package") else ""
        hint = hint or close_to(resource, (*BY_WORD, "agents", "nodes", "regions", "drift", "package-status", "config"))
        raise usage(f"{resource} is not one of {_RESOURCES}{hint}")
    if form == "table" and name and of_documents is not None and _generation(resource, name):
        form = "yaml"  # a table says what is in force now
    if form != "table":
        show(found[0] if name else found, form)
        return
    if of_documents is None:
        table_of(resource, found)
        return
    in_force = {a["name"]: a for a in api.get("assignments")} if of_documents.is_assignment else {}
    table_of_documents(of_documents.name, found, in_force)


def _document(api: Api, plural: str, name: str) -> Any:
    """A document as it is, or NAME@GENERATION: as it was."""
    if generation := _generation(plural, name):
        return api.get("documents", plural, name.rpartition("@")[0], "versions", generation)
    return api.get("documents", plural, name)


def _generation(resource: str, name: str) -> str:
    """Of NAME@GENERATION; empty where it is none."""
    _, at, generation = name.rpartition("@")
    return generation if at and generation.isdigit() and plural_of(resource) != "templates" else ""


def _config(api: Api, name: str | None, form: str) -> None:
    if not name:
        raise usage("expected the hash of a config")
    found = api.get("configs", name.lower())
    if form != "table":
        show(found, form)
        return
    if found["kind"] not in ("config", "content"):
        print(f"# {found['kind']} {found['hash']}: {found['name']}")
    _bodies(found["slots"])


def _bodies(slots: dict[str, Any]) -> None:
    for slot, item in slots.items():
        if len(slots) > 1:
            print(f"# ---- {slot or '(default)'}")
        print(item["body"], end="" if item["body"].endswith("\n") else "\n")


@app.command()
def describe(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show everything that is known of one agent."""
    if resource not in ("agent", "agents"):
        raise usage(f"{resource} cannot be described; only agents can be")
    found = Api(server).get("agents", name)
    if found["connected"] is not True and "health" in found:
        found["health_when_last_heard"] = found.pop("health")  # who is away is not healthy
    show(found, "yaml")


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
        raise usage(f"{resource} cannot be explained; only agents can be")
    found = Api(server).get("agents", name, "explain")
    if form != "table":
        show(found, form)
        return
    from relay.policy.explain import lines

    print(f"agent {found['agent']} in region {found['region']}")
    for line in [*lines(found["slots"], found["packages"]), *found["notes"]]:
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
