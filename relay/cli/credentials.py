"""`opampctl key`, `token`, `node token`, `revoke` and `unrevoke`: credentials of agents, people and nodes.

A command that makes a secret prints it alone on standard output, so that it can be piped into a file; all else goes to
standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, label_terms, usage
from relay.cli.output import EXIT_REFUSED, form_of, show, table

key_app = typer.Typer(no_args_is_help=True, help="Manage agents' API keys.")
token_app = typer.Typer(no_args_is_help=True, help="Manage people's tokens.")
node_app = typer.Typer(no_args_is_help=True, help="Manage nodes' identities.")
join_app = typer.Typer(no_args_is_help=True, help="Manage join tokens.")
node_app.add_typer(join_app, name="token")
Expires = Annotated[str, typer.Option("--expires", help="lifetime, such as 90d")]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", help="k=v; give it again for more")]

REVOCABLE = ("subject", "agent", "jti", "certificate", "key", "token", "node")
_WAIT_S = 5.0
_POLL_S = 0.1


@key_app.command("create")
def create_key(
    agent: Annotated[str, typer.Option(help="agent id that the key proves")] = "",
    fleet: Annotated[str, typer.Option(help="name of the agents that share the key")] = "",
    label: Labels = None,
    region: Annotated[list[str] | None, typer.Option(help="accept it only here; give it again for more")] = None,
    expires: Expires = "",
    output: Output = "table",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make an API key for one agent, or for a fleet that shares it."""
    form = form_of(output)
    if bool(agent) == bool(fleet):
        raise usage("expected either --agent ID or --fleet NAME")
    body = {
        "agent": agent,
        "fleet": fleet,
        "labels": _labels(label),
        "regions": region or [],
        "expires_s": _seconds("--expires", expires) if expires else None,
    }
    _print_secret(api_of(server, who).post("keys", body=body), "key", form)


@key_app.command("list")
def list_keys(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List API keys, without their secrets."""
    form = form_of(output)
    columns = ("id", "kind", "subject", "labels", "regions", "expires", "replaced_by")
    _print_rows(Api(server).get("keys"), columns, form)


@key_app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="id of the key")],
    overlap: Annotated[str, typer.Option(help="how long the old key is accepted too, such as 24h or 0s")] = "24h",
    output: Output = "table",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Replace a key by a new one of the same subject."""
    form = form_of(output)
    body = {"overlap_s": _seconds("--overlap", overlap)}
    _print_secret(api_of(server, who).post("keys", key_id, "rotate", body=body), "key", form)


@key_app.command("delete")
def delete_key(
    key_id: Annotated[str, typer.Argument(help="id of the key")], who: As = "", server: Server = DEFAULT_SERVER
) -> None:
    """Delete a key. Its sessions are closed."""
    api_of(server, who).delete("keys", key_id)
    print(f"{key_id} deleted")


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Option(help="what it is for")],
    role: Annotated[str, typer.Option(help="viewer, author, approver, operator or admin")],
    scope: Annotated[list[str] | None, typer.Option(help="k=v: only for agents with this label; repeatable")] = None,
    expires: Expires = "90d",
    owner: Annotated[str, typer.Option(help="who acts with it, if not you (admins only)")] = "",
    on_nodes: Annotated[bool, typer.Option("--on-nodes", help="nodes accept it too, for reading")] = False,
    output: Output = "table",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make a token that may do at most what you may."""
    form = form_of(output)
    roles = ("viewer", "author", "approver", "operator", "admin")
    if role not in roles:
        raise usage(f"--role {role}: expected one of {', '.join(roles)}")
    body = {
        "name": name,
        "role": role,
        "scope": _labels(scope),
        "expires_s": _seconds("--expires", expires),
        "owner": owner,
        "on_nodes": on_nodes,
    }
    _print_secret(api_of(server, who).post("tokens", body=body), "token", form)


@token_app.command("list")
def list_tokens(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List tokens, without their secrets."""
    form = form_of(output)
    columns = ("id", "name", "owner", "role", "scope", "on_nodes", "expires")
    _print_rows(Api(server).get("tokens"), columns, form)


@token_app.command("delete")
def delete_token(
    token_id: Annotated[str, typer.Argument(help="id of the token")], who: As = "", server: Server = DEFAULT_SERVER
) -> None:
    """Delete a token. It is refused from then on."""
    api_of(server, who).delete("tokens", token_id)
    print(f"{token_id} deleted")


@join_app.command("create")
def create_join_token(
    region: Annotated[str, typer.Option(help="region that nodes join")],
    name: Annotated[str, typer.Option(help="name that the node must have; default: its own choice")] = "",
    uses: Annotated[int, typer.Option(min=1, help="how many nodes may join")] = 1,
    ttl: Annotated[str, typer.Option(help="how long nodes may join, such as 1h")] = "1h",
    replace: Annotated[
        bool, typer.Option("--replace", help="a node may take the name of one that joined before")
    ] = False,
    output: Output = "table",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make a token by which nodes join a region: opamp-relay node --join TOKEN."""
    form = form_of(output)
    body = {"region": region, "name": name, "uses": uses, "ttl_s": _seconds("--ttl", ttl), "replace": replace}
    _print_secret(api_of(server, who).post("join-tokens", body=body), "token", form)


@join_app.command("list")
def list_join_tokens(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List join tokens, without their secrets."""
    form = form_of(output)
    columns = ("id", "region", "name", "uses", "used_by", "expires")
    _print_rows(Api(server).get("join-tokens"), columns, form)


@join_app.command("delete")
def delete_join_token(
    token_id: Annotated[str, typer.Argument(help="id of the join token")], who: As = "", server: Server = DEFAULT_SERVER
) -> None:
    """Delete a join token. Nodes that joined by it stay."""
    api_of(server, who).delete("join-tokens", token_id)
    print(f"{token_id} deleted")


def revoke(
    kind: Annotated[str, typer.Argument(help=", ".join(REVOCABLE))],
    value: Annotated[
        str, typer.Argument(help="id of a key or token, serial of a certificate in hex, REGION/NAME, else the name")
    ],
    reason: Annotated[str, typer.Option(help="why; it is recorded")],
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Refuse credentials from now on, also on open connections, in every region."""
    if kind not in REVOCABLE:
        raise usage(f"{kind} cannot be revoked; expected one of {', '.join(REVOCABLE)}")
    api = api_of(server, who)
    if kind == "token":
        api.delete("tokens", value)
        print(f"{value}: refused from now on")
        return
    if kind == "node":
        region, slash, name = value.partition("/")
        if not slash:
            raise usage(f"{value}: expected a node as REGION/NAME")
        api.post("nodes", region, name, "revoke", body={"reason": reason})
        print(f"{value}: refused from now on; it must join again")
        return
    began = time.monotonic()
    body = {"kind": kind, "value": value, "reason": reason}
    revocation = api.post("revocations", body=body)
    print(f"{revocation['id']}: {kind} {value}", file=sys.stderr)
    if revocation.get("known") is False:
        print(f"warning: no {kind} {value} is known here: is it spelt right?", file=sys.stderr)
    if not _wait_until_in_force(api, revocation["id"], began):
        raise SystemExit(EXIT_REFUSED)


def _wait_until_in_force(api: Api, revocation_id: str, began: float) -> bool:
    """Print each region as the revocation comes into force there. Returns whether it is in force in all of them."""
    done: set[str] = set()
    while True:
        regions = api.get("revocations", revocation_id)["regions"]
        elapsed_s = time.monotonic() - began
        for region in regions:
            if region["in_force"] and region["region"] not in done:
                done.add(region["region"])
                print(f"{region['region']}: in force after {elapsed_s:.1f} s")
        waiting = [region for region in regions if region["region"] not in done]
        if not waiting or elapsed_s >= _WAIT_S:
            break
        time.sleep(_POLL_S)
    for region in waiting:
        since = region["not_heard_since"]
        state = f"not heard since {since}; refuses when it is back" if since else "not confirmed yet"
        print(f"{region['region']}: {state}")
    return not waiting


def unrevoke(
    revocation_id: Annotated[str, typer.Argument(help="id of the revocation, from `get revocations`")],
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take a revocation back."""
    api_of(server, who).delete("revocations", revocation_id)
    print(f"{revocation_id} taken back")


def list_revocations(api: Api, form: str) -> None:
    """Print what is revoked."""
    _print_rows(api.get("revocations"), ("id", "kind", "value", "at", "by", "reason"), form)


def _print_secret(made: dict[str, Any], name: str, form: str) -> None:
    if form != "table":
        show(made, form)
        return
    print(f"{made['id']}, until {made['expires']}; it is not shown again:", file=sys.stderr)
    print(made[name])


def _print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: str) -> None:
    if form != "table":
        show(rows, form)
        return
    table(columns, [[_cell(row[column]) for column in columns] for row in rows])


def _cell(value: Any) -> Any:
    """A set of labels as k=v; all else as it is."""
    return [f"{key}={label}" for key, label in sorted(value.items())] if isinstance(value, dict) else value


def _labels(terms: list[str] | None) -> dict[str, str]:
    return dict(term.split("=", 1) for term in label_terms(terms or []))


def _seconds(option: str, text: str) -> float:
    from relay.documents import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise usage(f"{option} {error}") from None
