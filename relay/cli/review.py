"""Before a change: what it would do, whether it is well formed, and where it can start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.client import Api, RefusedByServer, Unreachable, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, read_files, usage
from relay.cli.output import EXIT_DIFF_REFUSED, EXIT_REFUSED, as_yaml, counts_of, form_of, show
from relay.cli.records import lines

if TYPE_CHECKING:
    from relay.documents import Document
    from relay.policy.reading import AnyDocument


def diff(
    what: Annotated[list[str] | None, typer.Argument(metavar="[rollout NAME]", help="what a rollout changes")] = None,
    filename: Annotated[list[str] | None, typer.Option("-f", "--filename", help="a file, a folder, or -")] = None,
    agents: Annotated[bool, typer.Option("--agents", help="name the agents, not only count them")] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show what apply would change, and at which agents; exits 0 for nothing, 1 for something, 4 where it is refused.

    Or what a rollout has changed: `diff rollout NAME`, which exits 0 whatever that is.
    """
    form = form_of(output)
    if what:
        if len(what) != 2 or what[0] not in ("rollout", "rollouts") or filename:
            raise usage("expected either -f FILE or rollout NAME")
        try:
            found = Api(server).get("rollouts", what[1], "diff")
        except RefusedByServer as error:
            raise _refused(error) from None
        print("\n".join([found["rollout"], *lines(found)])) if form == "table" else show(found, form)
        return
    if not filename:
        raise usage("expected either -f FILE or rollout NAME")
    sources = read_files(filename, not_text=EXIT_DIFF_REFUSED)
    try:
        found = Api(server).post("diff", body={"sources": sources})
    except RefusedByServer as error:
        raise _refused(error) from None
    changed = [item for item in found["documents"] if item["action"] != "unchanged"]
    if form != "table":
        show(found if agents else {**found, "diffs": [_unnamed(pair) for pair in found["diffs"]]}, form)
    else:
        _print_diff(found, changed, agents)
    if changed or found["agents_changed"] or found["conflicts"]:
        raise SystemExit(EXIT_REFUSED)


def _refused(error: RefusedByServer) -> SystemExit:
    for line in error.lines:
        print(line, file=sys.stderr)
    return SystemExit(EXIT_DIFF_REFUSED)


def _unnamed(pair: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pair.items() if key != "names"}


def _print_diff(found: dict[str, Any], changed: list[dict[str, Any]], names: bool) -> None:
    import difflib

    for item in changed:
        name = f"{item['kind']}/{item['name']}"
        before, after = _yaml_lines(item["before"]), _yaml_lines(item["after"])
        sys.stdout.writelines(difflib.unified_diff(before, after, f"{name} (in force)", f"{name} (given)"))
    if changed:
        print(f"\n{found['agents_changed']} agents would change", end="")
        for title in ("by_region", "by_assignment"):
            if found[title]:
                print("; " + title.replace("_", " ") + ": " + counts_of(found[title]), end="")
        print()
    for pair in found["diffs"]:
        print(f"\n{pair['agents']} agents, config hash {pair['from'] or 'nothing'} -> {pair['to'] or 'nothing'}")
        if names:
            print("  " + "\n  ".join([*pair["names"], *_rest(pair["agents"], pair["names"])]))
        print(pair["text"], end="")
    for agent in found["orphans"]:
        print(f"orphaned: {agent} would no longer match anything, and would keep its configuration")
    for line in _rest(found["orphans_total"], found["orphans"]):
        print(f"orphaned: {line}")
    for item in found["missing_components"]:
        print(f"lacking: {item['agent']} does not have {', '.join(item['components'])}")
    for line in _rest(found["missing_components_total"], found["missing_components"]):
        print(f"lacking: {line}")
    for title in ("conflicts", "warnings"):
        for line in found[title]:
            print(f"{title.removesuffix('s')}: {line}")


def _rest(total: int, shown: list[Any]) -> list[str]:
    """A line for the agents that are not named."""
    return [f"and {total - len(shown)} more"] if total > len(shown) else []


def validate(
    files: Annotated[
        list[str] | None, typer.Argument(help="templates, or configurations of a Collector; - for standard input")
    ] = None,
    filename: Annotated[list[str] | None, typer.Option("-f", "--filename", help="the same, as apply takes it")] = None,
    server: Annotated[str, typer.Option(envvar="OPAMPCTL_SERVER", help="that knows what documents name")] = "",
) -> None:
    """Check documents, and the structure of Collectors' configurations, here; exits 1 where one is wrong.

    That what they name exists is checked against the server, where one is named, or else within a folder.
    """
    from relay.documents import parse, parts_of
    from relay.errors import Refused
    from relay.policy import collector
    from relay.policy.reading import read

    wrong = 0
    whole: list[tuple[Document, AnyDocument]] = []
    if not (names := [*(files or []), *(filename or [])]):
        raise usage("expected a file, a folder, or - for standard input")
    for source in read_files(names):
        try:
            documents = parse(source["text"], source["source"])
        except Refused as refused:
            documents, wrong = [], wrong + 1
            print(refused, file=sys.stderr)
        else:
            if not documents:
                wrong += 1
                print(f"{source['source']}: contains no documents", file=sys.stderr)
        for raw in parts_of(documents):
            value, prefix = raw.value, ""
            if isinstance(value, dict) and ("kind" in value or "apiVersion" in value):
                document, problems = read(raw)
                wrong += len(problems)
                for problem in problems:
                    print(problem, file=sys.stderr)
                if document is not None:
                    whole.append((raw, document))
                if problems or value.get("kind") != "ConfigTemplate":
                    continue
                if "text" in value["spec"]:
                    continue  # nobody here knows its language
                value, prefix = value["spec"]["config"], "spec.config."
            if not isinstance(value, dict):
                wrong += 1
                print(raw.problem("", "not a mapping"), file=sys.stderr)
                continue
            if not prefix and "service" not in value and _OF_SETTINGS & value.keys():
                wrong += 1
                print(raw.problem("", "settings of a program: `opamp-relay check -c` looks at those"), file=sys.stderr)
                continue
            for finding in collector.check(value):
                wrong += finding.is_error
                line = raw.problem(prefix + finding.path, finding.reason)
                print(line if finding.is_error else f"warning: {line}", file=sys.stderr)
    if whole and not wrong:
        lacking = _asked(server, names) if server else _unnamed_in(whole) if any(map(_is_folder, names)) else []
        wrong += len(lacking)
        for said in lacking:
            print(said, file=sys.stderr)
    if wrong:
        raise SystemExit(EXIT_REFUSED)


_INVALID = 422
_OF_SETTINGS = frozenset({"node", "server", "control_plane", "data_dir"})


def _is_folder(name: str) -> bool:
    return name != "-" and Path(name).is_dir()


def _asked(server: str, names: list[str]) -> list[str]:
    """What a server has against documents; nothing where it is away, which is said."""
    if "-" in names:
        return []  # standard input is read by now
    try:
        Api(server).post("apply", body={"sources": read_files(names), "dry_run": True})
    except RefusedByServer as error:
        if error.status == _INVALID:
            return error.lines
        print(f"warning: references of the documents are not checked: {error}", file=sys.stderr)
    except Unreachable as error:
        print(f"warning: references of the documents are not checked: {error}", file=sys.stderr)
    return []


def _unnamed_in(whole: list[tuple[Document, AnyDocument]]) -> list[str]:
    """References of assignments to what is not among the documents."""
    from relay.policy.model import ConfigAssignment
    from relay.words import close_to

    held: dict[str, set[str]] = {}
    for _, document in whole:
        held.setdefault(document.kind, set()).add(document.key)
    found = []
    for raw, document in whole:
        named = []
        if isinstance(document, ConfigAssignment):
            named.append(("spec.template", "ConfigTemplate", document.spec.template.key))
        if strategy := getattr(document.spec, "strategy", None):
            named.append(("spec.strategy", "RolloutStrategy", strategy))
        for path, kind, name in named:
            known = held.get(kind, set())
            if name not in known:
                found.append(str(raw.problem(path, f"{kind} {name} is not defined here{close_to(name, known)}")))
    return found


def import_agent(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    template: Annotated[str, typer.Option("--name", help="of the template and the assignment to be made")],
    slot: Annotated[str, typer.Option(help="key in the agent's config map, where it has several")] = "",
    apply_it: Annotated[bool, typer.Option("--apply", help="apply it, instead of printing it")] = False,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make what an agent runs a template, and an assignment that only observes it: remove observe_only to adopt it."""
    if resource not in ("agent", "agents"):
        raise usage(f"{resource} cannot be imported; only agents can be")
    api = api_of(server, who)
    if apply_it and any(d["metadata"]["name"] == template for d in api.get("documents", "assignments")):
        raise RefusedByServer(409, [f"there is a ConfigAssignment {template} already; choose another --name"])
    agent = api.get("agents", name)
    config = api.get("agents", name, "config")
    if slot not in config:
        raise usage(
            f"{name} has no slot {slot or '(default)'}; it has {', '.join(config) or 'none'}: --slot says which"
        )
    from relay.documents import parse
    from relay.errors import Refused

    try:
        documents = parse(config[slot]["body"], name)
    except Refused as refused:
        raise RefusedByServer(422, [str(p) for p in refused.problems]) from None
    if not documents or not isinstance(documents[0].value, dict):
        raise RefusedByServer(422, [f"{name}: its config is not a mapping"])
    metadata = {"name": template, "version": "v1"}
    made: list[dict[str, Any]] = [
        {"kind": "ConfigTemplate", "metadata": metadata, "spec": {"config": documents[0].value}},
        {
            "kind": "ConfigAssignment",
            "metadata": {"name": template},
            "spec": {
                "template": metadata,
                "target_selector": {"agent_ids": [agent["agent_id"]]},
                "slot": slot,
                "observe_only": True,
            },
        },
    ]
    text = "---\n".join(as_yaml({"apiVersion": "opamp.io/v1", **document}) for document in made)
    if not apply_it:
        print(text, end="")
        return
    answer = api.post("apply", body={"sources": [{"source": f"agent/{name}", "text": text}]})
    for item in answer["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}")


def _yaml_lines(value: Any) -> list[str]:
    return [] if value is None else as_yaml(value).splitlines(keepends=True)
