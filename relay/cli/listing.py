"""Tables of documents, nodes, regions and drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from relay.cli.output import counts_of, table
from relay.policy.kinds import KINDS


def print_table(resource: str, items: list[dict[str, Any]]) -> None:
    """Print nodes, regions or drift."""
    columns: tuple[str, ...]
    if resource == "drift":
        columns = ("agent", "region", "assignment", "slot", "state", "differences")
        for entry in items:
            entry["differences"] = [d["path"] for d in entry["differences"]]
        table(columns, [[entry[c] for c in columns] for entry in items])
    elif resource == "nodes":
        columns = ("name", "region", "connected", "identity", "agents", "manifest", "policy_age_s", "problems")
        for node in items:
            node["policy_age_s"] = None if node["policy_age_s"] is None else round(node["policy_age_s"], 1)
            refusals = [f"{r['name']}: {r['reason']}"[:100] for r in node["rejected"]]
            failures = [f"package {p['sha256'][:12]}: {p['reason']}" for p in node["package_problems"]]
            node["problems"] = [*node["problems"], *refusals, *failures]
        table(columns, [[node[c] for c in columns] for node in items])
    else:
        columns = ("name", "nodes", "nodes_connected", "agents", "connected", "healthy", "unhealthy", "unknown")
        table((*columns, "config"), [[*(r[c] for c in columns), counts_of(r["config_status"])] for r in items])


class Columns(NamedTuple):
    """The table columns of one document kind."""

    names: tuple[str, ...]
    """Column names after the document's name."""
    values: Callable[[dict[str, Any]], tuple[Any, ...]]
    """Computes the cells from a document's spec."""


COLUMNS = {
    "ConfigTemplate": Columns((), lambda _: ()),
    "ConfigAssignment": Columns(
        ("template", "priority", "slot", "for"),
        lambda spec: (_version(spec["template"]), spec.get("priority", 0), spec.get("slot", ""), _selector(spec)),
    ),
    "RegionVariables": Columns(("values",), lambda spec: (sorted(spec["values"]),)),
    "RolloutStrategy": Columns(("stages",), lambda spec: ([stage["name"] for stage in spec["stages"]],)),
    "PackageAssignment": Columns(
        ("packages", "priority", "for"),
        lambda spec: (list(map(_version, spec["packages"])), spec.get("priority", 0), _selector(spec)),
    ),
    "PackageSigningKey": Columns((), lambda _: ()),
    "RoleBinding": Columns(
        ("role", "subjects", "scope"),
        lambda spec: (spec["role"], list(map(_subject, spec["subjects"])), _labels(spec.get("scope", {}))),
    ),
}


def print_documents(kind: str, items: list[dict[str, Any]], in_force: dict[str, Any]) -> None:
    """Print documents.

    Args:
        in_force: the state of each assignment, by name.
    """
    columns, rows = COLUMNS[kind], []
    names = ["name", *columns.names]
    if has_versions := kind == "ConfigTemplate":
        names.insert(1, "version")
    if KINDS[kind].is_assignment:
        names += ["in force", "taken back"]
    for document in items:
        metadata = document["metadata"]
        version = (metadata["version"],) if has_versions else ()
        state = _state(in_force, document) if KINDS[kind].is_assignment else ()
        rows.append((metadata["name"], *version, *columns.values(document.get("spec", {})), *state))
    table(names, rows)


def _version(reference: dict[str, str]) -> str:
    return f"{reference['name']}@{reference['version']}"


def _state(in_force: dict[str, Any], document: dict[str, Any]) -> tuple[str, str]:
    """The revision of an assignment that is in force, and the one that was taken back."""
    state = in_force.get(document["metadata"]["name"])
    if state is None:
        return "", ""
    return _revision(state["in_force"]) or "nothing", _revision(state["taken_back"])


def _revision(revision: dict[str, str] | None) -> str:
    return f"{revision['template']} ({revision['revision']})" if revision is not None else ""


def _subject(subject: dict[str, str]) -> str:
    return subject.get("user") or f"group {subject['group']}"


def _labels(selector: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in selector.get("labels", {}).items())


def _selector(spec: dict[str, Any]) -> str:
    selector = spec.get("target_selector", {})
    terms = [f"{k}={v}" for k, v in selector.get("labels", {}).items()]
    terms += [f"attribute {k}={v}" for k, v in selector.get("attributes", {}).items()]
    if selector.get("agent_ids"):
        terms.append(f"{len(selector['agent_ids'])} agent ids")
    return ", ".join(terms) or "every agent"
