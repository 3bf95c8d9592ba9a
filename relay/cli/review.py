"""`opampctl diff`, `validate` and `import`: review documents before a change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.client import Api, RefusedByServer, Unreachable, api_of, revealed
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, read_files, usage
from relay.cli.output import EXIT_DIFF_REFUSED, EXIT_REFUSED, as_yaml, counts_of, form_of, show
from relay.cli.records import lines

if TYPE_CHECKING:
    from relay.documents import Document
    from relay.policy.reading import AnyDocument


def diff(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[rollout NAME]", help="show what this rollout changes")
    ] = None,
    filename: Annotated[
        list[str] | None, typer.Option("-f", "--filename", help="file, folder, or - for standard input")
    ] = None,
    agents: Annotated[bool, typer.Option("--agents", help="name the agents instead of only counting them")] = False,
    output: Output = "table",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show what apply would change, and for which agents. Exits 0 for no changes, 1 for changes, 4 if refused.

    `diff rollout NAME` shows what a rollout changes, and exits 0 either way.
    """
    form = form_of(output)
    if what:
        if len(what) != 2 or what[0] not in ("rollout", "rollouts") or filename:
            raise usage("expected either -f FILE or rollout NAME")
        try:
            rollout = Api(server).get("rollouts", what[1], "diff")
        except RefusedByServer as error:
            raise _print_refusal(error) from None
        print("\n".join([rollout["rollout"], *lines(rollout)])) if form == "table" else show(rollout, form)
        return
    if not filename:
        raise usage("expected either -f FILE or rollout NAME")
    sources = read_files(filename, not_text=EXIT_DIFF_REFUSED)
    try:
        preview = Api(server).post("diff", body={"sources": sources})
    except RefusedByServer as error:
        raise _print_refusal(error) from None
    changed = [item for item in preview["documents"] if item["action"] != "unchanged"]
    if form != "table":
        show(preview if agents else {**preview, "diffs": [_without_names(pair) for pair in preview["diffs"]]}, form)
    else:
        _print_diff(preview, changed, agents)
    if changed or preview["agents_changed"] or preview["conflicts"]:
        raise SystemExit(EXIT_REFUSED)


def _print_refusal(error: RefusedByServer) -> SystemExit:
    for line in error.lines:
        print(line, file=sys.stderr)
    return SystemExit(EXIT_DIFF_REFUSED)


def _without_names(pair: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in pair.items() if key != "names"}


def _print_diff(preview: dict[str, Any], changed: list[dict[str, Any]], names: bool) -> None:
    import difflib

    for item in changed:
        name = f"{item['kind']}/{item['name']}"
        before, after = _yaml_lines(item["before"]), _yaml_lines(item["after"])
        sys.stdout.writelines(difflib.unified_diff(before, after, f"{name} (in force)", f"{name} (given)"))
    if changed:
        print(f"\n{preview['agents_changed']} agents would change", end="")
        for title in ("by_region", "by_assignment"):
            if preview[title]:
                print("; " + title.replace("_", " ") + ": " + counts_of(preview[title]), end="")
        print()
    for pair in preview["diffs"]:
        print(f"\n{pair['agents']} agents, config hash {pair['from'] or 'nothing'} -> {pair['to'] or 'nothing'}")
        if names:
            print("  " + "\n  ".join([*pair["names"], *_rest(pair["agents"], pair["names"])]))
        print(pair["text"], end="")
    for agent in preview["orphans"]:
        print(f"orphaned: {agent} would match nothing, and would keep its configuration")
    for line in _rest(preview["orphans_total"], preview["orphans"]):
        print(f"orphaned: {line}")
    for item in preview["missing_components"]:
        print(f"lacking: {item['agent']} does not have {', '.join(item['components'])}")
    for line in _rest(preview["missing_components_total"], preview["missing_components"]):
        print(f"lacking: {line}")
    for title in ("conflicts", "warnings"):
        for line in preview[title]:
            print(f"{title.removesuffix('s')}: {line}")


def _rest(total: int, shown: list[Any]) -> list[str]:
    """A line for the items that are not shown, if any."""
    return [f"and {total - len(shown)} more"] if total > len(shown) else []


def validate(
    files: Annotated[
        list[str] | None, typer.Argument(help="templates or Collector configurations; - for standard input")
    ] = None,
    filename: Annotated[list[str] | None, typer.Option("-f", "--filename", help="the same as FILES")] = None,
    server: Annotated[str, typer.Option(envvar="OPAMPCTL_SERVER", help="server to check references against")] = "",
) -> None:
    """Check documents, and the structure of Collector configurations, locally. Exits 1 if any is wrong.

    References are checked against the server if --server is given, otherwise among the documents of a folder.
    """
    from relay.documents import parse, parts_of
    from relay.errors import Refused
    from relay.policy import collector
    from relay.policy.reading import read

    errors = 0
    valid: list[tuple[Document, AnyDocument]] = []
    if not (names := [*(files or []), *(filename or [])]):
        raise usage("expected a file, a folder, or - for standard input")
    for source in read_files(names):
        try:
            documents = parse(source["text"], source["source"])
        except Refused as refused:
            documents, errors = [], errors + 1
            print(refused, file=sys.stderr)
        else:
            if not documents:
                errors += 1
                print(f"{source['source']}: contains no documents", file=sys.stderr)
        for raw in parts_of(documents):
            value, prefix = raw.value, ""
            if isinstance(value, dict) and ("kind" in value or "apiVersion" in value):
                document, problems = read(raw)
                errors += len(problems)
                for problem in problems:
                    print(problem, file=sys.stderr)
                if document is not None:
                    valid.append((raw, document))
                if problems or value.get("kind") != "ConfigTemplate":
                    continue
                if "text" in value["spec"]:
                    continue  # text in an unknown language: nothing to check
                value, prefix = value["spec"]["config"], "spec.config."
            if not isinstance(value, dict):
                errors += 1
                print(raw.problem("", "not a mapping"), file=sys.stderr)
                continue
            if not prefix and "service" not in value and _SETTINGS_KEYS & value.keys():
                errors += 1
                print(raw.problem("", "this is a settings file: check it with `opamp-relay check -c`"), file=sys.stderr)
                continue
            for finding in collector.check(value):
                errors += finding.is_error
                line = raw.problem(prefix + finding.path, finding.reason)
                print(line if finding.is_error else f"warning: {line}", file=sys.stderr)
    if valid and not errors:
        reference_problems: list[str] = []
        if server:
            reference_problems = _server_problems(server, names)
        elif any(map(_is_folder, names)):
            reference_problems = _missing_references(valid)
        errors += len(reference_problems)
        for text in reference_problems:
            print(text, file=sys.stderr)
    if errors:
        raise SystemExit(EXIT_REFUSED)


_INVALID = 422
_SETTINGS_KEYS = frozenset({"node", "server", "control_plane", "data_dir"})


def _is_folder(name: str) -> bool:
    return name != "-" and Path(name).is_dir()


def _server_problems(server: str, names: list[str]) -> list[str]:
    """Problems that a dry run on the server finds; a warning and none if the server cannot check."""
    if "-" in names:
        return []  # standard input was consumed already
    try:
        Api(server).post("apply", body={"sources": read_files(names), "dry_run": True})
    except RefusedByServer as error:
        if error.status == _INVALID:
            return error.lines
        print(f"warning: references are not checked: {error}", file=sys.stderr)
    except Unreachable as error:
        print(f"warning: references are not checked: {error}", file=sys.stderr)
    return []


def _missing_references(valid: list[tuple[Document, AnyDocument]]) -> list[str]:
    """Problems with references to templates and strategies that are not among the documents."""
    from relay.policy.model import ConfigAssignment
    from relay.words import suggestion

    keys: dict[str, set[str]] = {}
    for _, document in valid:
        keys.setdefault(document.kind, set()).add(document.key)
    problems = []
    for raw, document in valid:
        references = []
        if isinstance(document, ConfigAssignment):
            references.append(("spec.template", "ConfigTemplate", document.spec.template.key))
        if strategy := getattr(document.spec, "strategy", None):
            references.append(("spec.strategy", "RolloutStrategy", strategy))
        for path, kind, name in references:
            candidates = keys.get(kind, set())
            if name not in candidates:
                problems.append(
                    str(raw.problem(path, f"{kind} {name} is not defined here{suggestion(name, candidates)}"))
                )
    return problems


def import_agent(
    resource: Annotated[str, typer.Argument(help="agent")],
    name: Annotated[str, typer.Argument(help="instance_uid or agent id")],
    template: Annotated[str, typer.Option("--name", help="name for the new template and assignment")],
    slot: Annotated[str, typer.Option(help="key in the agent's config map, if it has several")] = "",
    apply_it: Annotated[bool, typer.Option("--apply", help="apply the documents instead of printing them")] = False,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Turn an agent's config into a template, and an observe_only assignment of it; remove observe_only to adopt it."""
    if resource not in ("agent", "agents"):
        raise usage(f"{resource} cannot be imported; only agents can")
    api = api_of(server, who)
    if apply_it and any(d["metadata"]["name"] == template for d in api.get("documents", "assignments")):
        raise RefusedByServer(409, [f"ConfigAssignment {template} already exists; choose another --name"])
    agent = api.get("agents", name)
    config = api.get("agents", name, "config", **revealed(api.is_authenticated))
    if slot not in config:
        raise usage(
            f"{name} has no slot {slot or '(default)'}; it has {', '.join(config) or 'none'}: choose one with --slot"
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
    new_documents: list[dict[str, Any]] = [
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
    text = "---\n".join(as_yaml({"apiVersion": "opamp.io/v1", **document}) for document in new_documents)
    if not apply_it:
        print(text, end="")
        return
    answer = api.post("apply", body={"sources": [{"source": f"agent/{name}", "text": text}]})
    for item in answer["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}")


def _yaml_lines(value: Any) -> list[str]:
    return [] if value is None else as_yaml(value).splitlines(keepends=True)
