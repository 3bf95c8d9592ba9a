"""`opampctl`: the command-line client of the admin API.

Exit codes: 0 success; 1 refused, or `diff` found changes; 2 usage error; 3 server unreachable; 4 `diff` input refused;
5 `apply --wait` timed out. Errors go to stderr as `FILE:LINE: path: reason`.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, Any

import typer

from relay.cli import agents, applying, credentials, login, package, records, review, rollout, trust
from relay.cli.client import Api, RefusedByServer, Unreachable, api_of, revealed, version_mismatch
from relay.cli.listing import print_documents, print_table
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, label_terms, read_files, usage
from relay.cli.output import EXIT_REFUSED, EXIT_UNREACHABLE, form_of, print_version, show
from relay.cli.pruning import DocumentRef, refuse_orphaning
from relay.cli.resources import kind_of, plural_of
from relay.policy.kinds import BY_PLURAL, BY_WORD
from relay.words import suggestion

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
agent_app = typer.Typer(no_args_is_help=True, help="Work with one agent.")
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
app.add_typer(credentials.key_app, name="key")
app.add_typer(credentials.token_app, name="token")
app.add_typer(credentials.node_app, name="node")
app.add_typer(trust.trust_app, name="trust")
app.command()(credentials.revoke)
app.command()(credentials.unrevoke)
app.command()(login.login)
app.command()(login.logout)
app.command()(login.whoami)
app.command("can-i")(login.can_i)
app.command("import")(review.import_agent)

_NOT_FOUND = 404
PAGE = 500
"""How many agents a list shows by default."""
_STATUSES = ("APPLIED", "APPLYING", "FAILED", "UNSET")

_RESOURCES = (
    "templates, assignments, packageassignments, strategies, regionvariables, signingkeys, regions, nodes, agents, "
    "package-status, drift, revocations, config HASH"
)


def main() -> None:
    """Run the command line."""
    gc.disable()  # a command ends before collection could pay off
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
        # Every response of our own version has this field.
        print(
            f"the server's response has no {error}{version_mismatch() or ': it is not an OpAMP relay'}", file=sys.stderr
        )
        raise SystemExit(EXIT_REFUSED) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


@app.callback()
def _options(
    server: Annotated[str, typer.Option(help="URL of the control plane's admin API")] = "",
    who: Annotated[str, typer.Option("--as", help="your name; recorded as unverified")] = "",
    token_file: Annotated[
        str, typer.Option("--token-file", help="file with your token; OPAMPCTL_TOKEN has precedence")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """The command-line client of the control plane."""
    # Commands take both options too: they mean the same before and after the command.
    for name, value in (("OPAMPCTL_SERVER", server), ("OPAMPCTL_AS", who), ("OPAMPCTL_TOKEN_FILE", token_file)):
        if value:
            os.environ[name] = value


@app.command()
def delete(
    resource: Annotated[
        str | None,
        typer.Argument(help="a kind of document, or node"),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="NAME; NAME@VERSION for a template, REGION/NAME for a node")
    ] = None,
    filename: Annotated[
        list[str] | None, typer.Option("-f", "--filename", help="delete the documents in these files")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete even if agents would then match nothing")] = False,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Delete documents. Agents that match no other assignment keep their configuration."""
    api = api_of(server, who)
    if filename and resource is None:
        keys = _document_keys(read_files(filename))
        if not yes:
            refuse_orphaning(api, [DocumentRef(plural_of(kind), kind, key) for kind, key in keys])
        for kind, key in keys:
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
            raise usage(f"{name}: expected a node as REGION/NAME")
        api.delete("nodes", region, node)
        print(f"Node/{name} deleted")
        return
    if (kind_to_delete := kind_of(resource)) is None:
        hint = suggestion(resource, (*BY_WORD, "node"))
        raise usage(f"{resource} cannot be deleted{hint}; only {', '.join(BY_PLURAL)} and nodes can")
    plural, kind = kind_to_delete.plural, kind_to_delete.name
    if not yes:
        refuse_orphaning(api, [DocumentRef(plural, kind, name)])
    api.delete("documents", plural, name)
    print(f"{kind}/{name} deleted")


def _document_keys(sources: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(kind, name) of every document in some texts; assignments first, since they use the others."""
    from relay.documents import parse, parts_of
    from relay.errors import Refused
    from relay.policy.reading import read

    keys, problems = [], []
    for source in sources:
        try:
            for raw in parts_of(parse(source["text"], source["source"])):
                document, defects = read(raw)
                problems += [str(problem) for problem in defects]
                if document is not None:
                    keys.append((document.kind, document.key))
        except Refused as refused:
            problems += [str(problem) for problem in refused.problems]
    if problems:
        raise RefusedByServer(422, problems)
    return sorted(keys)


@app.command()
def get(
    resource: Annotated[str, typer.Argument(help=_RESOURCES)],
    name: Annotated[str | None, typer.Argument(help="show only this one")] = None,
    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", help="only agents with k=v; all of several must match")
    ] = None,
    connected: Annotated[
        bool | None, typer.Option("--connected/--not-connected", help="only connected agents, or only the others")
    ] = None,
    unhealthy: Annotated[bool, typer.Option("--unhealthy", help="only connected agents that are unhealthy")] = False,
    status: Annotated[str, typer.Option(help="only agents with this status: APPLIED, APPLYING, FAILED or UNSET")] = "",
    region: Annotated[str, typer.Option(help="only agents in this region")] = "",
    node: Annotated[str, typer.Option(help="only agents at this node: NAME or REGION/NAME")] = "",
    version: Annotated[str, typer.Option(help="only agents with this service.version")] = "",
    sort: Annotated[
        str,
        typer.Option(
            help="sort agents by agent_id, region, node, status, version, host.name or last_change; prefix - to reverse"
        ),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help=f"show at most this many agents; default: {PAGE}")] = None,
    everything: Annotated[bool, typer.Option("--all", help="show all agents")] = False,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="print agents again after each change")] = False,
    reveal: Annotated[bool, typer.Option("--reveal", help="show secrets in documents and configs")] = False,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, json or yaml; for agents also wide or name")
    ] = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """List documents, regions, nodes or agents."""
    of_agents = resource in ("agents", "agent")
    form = form_of(output, ("wide", "name") if of_agents else ())
    filters = {
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
    if not of_agents and (watch or any(value is not None for value in filters.values())):
        option = next((key for key, value in filters.items() if value is not None), "watch")
        raise usage(f"--{option} applies to agents, not to {resource}")
    if label and resource not in ("agents", "agent", "package-status"):
        raise usage(f"-l applies to agents and package-status, not to {resource}")
    if status and status.upper() not in _STATUSES:
        raise usage(f"--status {status}: expected one of {', '.join(_STATUSES)}{suggestion(status, _STATUSES)}")
    labels = label_terms(label or [])
    api = Api(server)
    document_kind = kind_of(resource)
    if document_kind is not None:
        items = (
            [_document(api, plural_of(resource), name, reveal)]
            if name
            else api.get("documents", plural_of(resource), **revealed(reveal))
        )
    elif resource in ("package-status", "packagestatus"):
        package.package_status(api, labels or None, form)
        return
    elif resource in ("revocations", "revocation"):
        credentials.list_revocations(api, form)
        return
    elif resource == "drift":
        items = [entry for entry in api.get("drift") if name in (None, entry["agent"], entry["assignment"])]
    elif resource in ("config", "configs"):
        _config(api, name, form, reveal)
        return
    elif of_agents:
        if filters.pop("all") and limit is not None:
            raise usage("--all and --limit exclude each other")
        filters["limit"] = None if everything else limit or PAGE
        agents.list_agents(api, name, {"label": labels or None, **filters}, form, watch=watch)
        return
    elif resource in ("nodes", "node", "regions", "region"):
        resource = resource.removesuffix("s") + "s"
        items = [item for item in api.get(resource) if name in (None, item["name"])]
        if name and not items:
            raise RefusedByServer(404, [f"there is no {resource.removesuffix('s')} {name}"])
    else:
        hint = "; `opampctl package list` lists packages" if resource.startswith("package") else ""
        hint = hint or suggestion(
            resource, (*BY_WORD, "agents", "nodes", "regions", "drift", "package-status", "config")
        )
        raise usage(f"{resource} is not one of {_RESOURCES}{hint}")
    if form == "table" and name and document_kind is not None and _generation(resource, name):
        form = "yaml"  # a table shows what is in force now
    if form != "table":
        show(items[0] if name else items, form)
        return
    if document_kind is None:
        print_table(resource, items)
        return
    in_force = {a["name"]: a for a in api.get("assignments")} if document_kind.is_assignment else {}
    print_documents(document_kind.name, items, in_force)


def _document(api: Api, plural: str, name: str, reveal: bool) -> Any:
    """The current document; for NAME@GENERATION, the document at that generation."""
    if generation := _generation(plural, name):
        return api.get("documents", plural, name.rpartition("@")[0], "versions", generation, **revealed(reveal))
    return api.get("documents", plural, name, **revealed(reveal))


def _generation(resource: str, name: str) -> str:
    """The generation in NAME@GENERATION; empty if there is none."""
    _, at, generation = name.rpartition("@")
    return generation if at and generation.isdigit() and plural_of(resource) != "templates" else ""


def _config(api: Api, name: str | None, form: str, reveal: bool) -> None:
    if not name:
        raise usage("expected the hash of a config")
    config = api.get("configs", name.lower(), **revealed(reveal))
    if form != "table":
        show(config, form)
        return
    if config["kind"] not in ("config", "content"):
        print(f"# {config['kind']} {config['hash']}: {config['name']}")
    _print_bodies(config["slots"])


def _print_bodies(slots: dict[str, Any]) -> None:
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
    """Show everything known about one agent."""
    if resource not in ("agent", "agents"):
        raise usage(f"{resource} cannot be described; only agents can")
    agent = Api(server).get("agents", name)
    if agent["connected"] is not True and "health" in agent:
        agent["health_when_last_heard"] = agent.pop("health")  # an agent that is away does not count as healthy
    show(agent, "yaml")


@app.command()
def explain(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Explain why an agent gets its configuration and packages, and why not others."""
    form = form_of(output)
    if resource not in ("agent", "agents"):
        raise usage(f"{resource} cannot be explained; only agents can")
    explanation = Api(server).get("agents", name, "explain")
    if form != "table":
        show(explanation, form)
        return
    from relay.policy.explain import lines

    print(f"agent {explanation['agent']} in region {explanation['region']}")
    for line in [*lines(explanation["slots"], explanation["packages"]), *explanation["notes"]]:
        print(line)
    for attempt in explanation["attempts"]:
        message = f": {attempt['error_message']}" if attempt["error_message"] else ""
        print(f"  {attempt['at']} {attempt['hash'][:12]} {attempt['status']}{message}")


@agent_app.command("config")
def agent_config(
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    reveal: Annotated[bool, typer.Option("--reveal", help="show secrets")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="text, json or yaml")] = "text",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print the effective config an agent reported."""
    config = Api(server).get("agents", name, "config", **revealed(reveal))
    if output != "text":
        show(config, form_of(output))
        return
    _print_bodies(config)
