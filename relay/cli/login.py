"""`opampctl login`, `logout`, `whoami` and `can-i`: whom the server takes you for, and what you may do."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from relay.cli.client import Api
from relay.cli.options import DEFAULT_SERVER, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, show
from relay.cli.resources import kind_of
from relay.cli.saved import TokenFileError, read_token, save, saved_file

_VERBS = ("read", "reveal", "write", "approve", "operate", "revoke", "admin")


def login(
    token_file: Annotated[str, typer.Option("--token-file", help="file with the token, or - for standard input")] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Remember a token for this server."""
    if not token_file and sys.stdin.isatty():
        import getpass

        token = getpass.getpass("token: ").strip()
    else:
        try:
            token = read_token(token_file or "-")
        except TokenFileError as error:
            raise usage(str(error)) from None
    os.environ["OPAMPCTL_TOKEN"] = token
    api = Api(server)
    who = api.get("auth", "whoami")
    save(api.origin, token)
    print(f"logged in to {api.origin} as {who['user']} ({who['role']}); saved in {saved_file()}", file=sys.stderr)


def logout(server: Server = DEFAULT_SERVER) -> None:
    """Forget the token for this server. It stays valid: `token delete` takes it away."""
    api = Api(server)
    save(api.origin, "")
    print(f"forgot the token for {api.origin}", file=sys.stderr)


def whoami(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """Show whom the server takes you for."""
    form = form_of(output)
    who = Api(server).get("auth", "whoami")
    if form != "table":
        show(who, form)
        return
    scope = ", ".join(f"{key}={value}" for key, value in sorted(who["scope"].items()))
    print(f"{who['user']}: {who['role']}{f' for {scope}' if scope else ''}")
    if who["expires"]:
        print(f"by {who['credential']}, until {who['expires']}")


def can_i(
    verb: Annotated[str, typer.Argument(help=", ".join(_VERBS))],
    resource: Annotated[str, typer.Argument(help="KIND/NAME of a document")] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Say whether you may do something: `yes`, or `no` and why. The exit status is 0 or 1."""
    if verb not in _VERBS:
        raise usage(f"{verb} is not one of {', '.join(_VERBS)}")
    kind, slash, name = resource.partition("/")
    known = kind_of(kind) if resource else None
    if resource and (not slash or not name or known is None):
        raise usage(f"{resource}: expected KIND/NAME of a document")
    answer = Api(server).get("auth", "can-i", verb=verb, kind=known.name if known else None, name=name or None)
    print("yes" if answer["allowed"] else f"no: {answer['reason']}")
    if not answer["allowed"]:
        raise SystemExit(EXIT_REFUSED)
