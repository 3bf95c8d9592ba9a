"""`opampctl login`, `logout`, `whoami` and `can-i`: whom the server takes you for, and what you may do."""

from __future__ import annotations

import os
import sys
from http import HTTPStatus
from typing import Annotated

import typer

from relay.cli.browser import by_browser, by_device
from relay.cli.client import Api, RefusedByServer
from relay.cli.options import DEFAULT_SERVER, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, show
from relay.cli.resources import kind_of
from relay.cli.saved import TokenFileError, read_token, save, saved_file, token_for

_NO_ROLE = "no RoleBinding names you: ask an admin"
_SESSION = "opamps_"
"""How sessions begin; see `relay.auth.secrets`, which would slow the start."""
_VERBS = ("read", "reveal", "write", "approve", "operate", "revoke", "admin")


def login(
    token_file: Annotated[str, typer.Option("--token-file", help="file with a token, or - for standard input")] = "",
    device: Annotated[
        bool, typer.Option("--device", help="log in on another device, where this one has no browser")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Log in at the server's OpenID provider; where it has none, remember a token for this server."""
    if token_file and device:
        raise usage("--device: not with --token-file")
    token = read_file(token_file) if token_file else ""
    if not token:
        anonymous = Api(server, authenticates=False)
        config = anonymous.get("auth", "config")
        if config["type"] == "oidc" and not anonymous.is_private:
            raise usage(f"{server}: nobody logs in over plain HTTP to another machine; use https")
        if config["type"] == "oidc":
            token = by_device(anonymous) if device else by_browser(anonymous)
        elif device:
            raise usage("--device: this server has no OpenID provider; use a token")
        else:
            token = _asked()
    was_set = bool(os.environ.get("OPAMPCTL_TOKEN"))
    os.environ["OPAMPCTL_TOKEN"] = token
    api = Api(server)
    who = api.get("auth", "whoami")
    save(api.origin, token)
    print(
        f"logged in to {api.origin} as {who['user']} ({who['role'] or _NO_ROLE}); saved in {saved_file()}",
        file=sys.stderr,
    )
    if was_set:
        print("OPAMPCTL_TOKEN is set: other commands use that token instead", file=sys.stderr)


def read_file(name: str) -> str:
    """The token in a file; a usage error if there is none."""
    try:
        return read_token(name)
    except TokenFileError as error:
        raise usage(str(error)) from None


def _asked() -> str:
    if not sys.stdin.isatty():
        return read_file("-")
    import getpass

    return getpass.getpass("token: ").strip()


def logout(server: Server = DEFAULT_SERVER) -> None:
    """End your session, and forget it. A token is only forgotten: `token delete` takes it away."""
    api = Api(server)
    if token_for(api.origin).startswith(_SESSION):
        try:
            api.post("auth", "logout", body={})
        except RefusedByServer as error:
            if error.status != HTTPStatus.UNAUTHORIZED:  # it is over already
                raise
    save(api.origin, "")
    print(f"logged out of {api.origin}", file=sys.stderr)


def whoami(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """Show whom the server takes you for."""
    form = form_of(output)
    who = Api(server).get("auth", "whoami")
    if form != "table":
        show(who, form)
        return
    if not who["grants"]:
        print(f"{who['user']}: {_NO_ROLE}")
    for grant in who["grants"]:
        scope = ", ".join(f"{key}={value}" for key, value in sorted(grant["scope"].items()))
        print(f"{who['user']}: {grant['role']}{f' for {scope}' if scope else ''}")
    if who["groups"]:
        print(f"groups: {', '.join(who['groups'])}")
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
