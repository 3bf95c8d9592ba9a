"""Lists of everything, as tables."""

from __future__ import annotations

from typing import Any

from relay.cli.output import counts_of, table


def tables(resource: str, found: list[dict[str, Any]], in_force: dict[str, Any] | None = None) -> None:
    """Print what `opampctl get` found.

    Args:
        in_force: name of an assignment → what is in force of it.
    """
    rows: list[tuple[Any, ...]]
    columns: tuple[str, ...]
    if resource == "drift":
        columns = ("agent", "region", "assignment", "slot", "state", "differences")
        for entry in found:
            entry["differences"] = [d["path"] for d in entry["differences"]]
        table(columns, [[entry[c] for c in columns] for entry in found])
    elif resource == "nodes":
        columns = ("name", "region", "connected", "agents", "manifest", "policy_age_s", "problems")
        for node in found:
            node["policy_age_s"] = None if node["policy_age_s"] is None else round(node["policy_age_s"], 1)
            refused = [f"{r['name']}: {r['reason']}"[:100] for r in node["rejected"]]
            lacking = [f"package {p['sha256'][:12]}: {p['reason']}" for p in node["package_problems"]]
            node["problems"] = [*node["problems"], *refused, *lacking]
        table(columns, [[node[c] for c in columns] for node in found])
    elif resource == "regions":
        columns = ("name", "nodes", "nodes_connected", "agents", "connected", "healthy", "unhealthy", "unknown")
        table((*columns, "config"), [[*(r[c] for c in columns), counts_of(r["config_status"])] for r in found])
    elif resource.startswith(("assignment", "configassignment")):
        rows = [
            (
                d["metadata"]["name"],
                f"{d['spec']['template']['name']}@{d['spec']['template']['version']}",
                d["spec"].get("priority", 0),
                d["spec"].get("slot", ""),
                _selector(d["spec"].get("target_selector", {})),
                *_state(in_force or {}, d),
            )
            for d in found
        ]
        table(("name", "template", "priority", "slot", "for", "in force", "taken back"), rows)
    elif resource.startswith("packageassignment"):
        rows = [
            (
                d["metadata"]["name"],
                [f"{p['name']}@{p['version']}" for p in d["spec"]["packages"]],
                d["spec"].get("priority", 0),
                _selector(d["spec"].get("target_selector", {})),
                *_state(in_force or {}, d),
            )
            for d in found
        ]
        table(("name", "packages", "priority", "for", "in force", "taken back"), rows)
    elif "signingkey" in resource:
        table(("name",), [(d["metadata"]["name"],) for d in found])
    elif resource.startswith(("template", "configtemplate")):
        table(("name", "version"), [(d["metadata"]["name"], d["metadata"]["version"]) for d in found])
    elif resource.startswith(("strateg", "rolloutstrateg")):
        table(("name", "stages"), [(d["metadata"]["name"], [s["name"] for s in d["spec"]["stages"]]) for d in found])
    else:
        table(("name", "values"), [(d["metadata"]["name"], sorted(d["spec"]["values"])) for d in found])


def _state(in_force: dict[str, Any], document: dict[str, Any]) -> tuple[str, str]:
    """What is in force of an assignment, and what was taken back of what it asks for."""
    state = in_force.get(document["metadata"]["name"])
    if state is None:
        return "", ""
    return _revision(state["in_force"]) or "nothing", _revision(state["taken_back"])


def _revision(revision: dict[str, str] | None) -> str:
    return f"{revision['template']} ({revision['revision']})" if revision is not None else ""


def _selector(selector: dict[str, Any]) -> str:
    terms = [f"{k}={v}" for k, v in selector.get("labels", {}).items()]
    terms += [f"attribute {k}={v}" for k, v in selector.get("attributes", {}).items()]
    if selector.get("agent_ids"):
        terms.append(f"{len(selector['agent_ids'])} agent ids")
    return ", ".join(terms) or "every agent"
