"""`opampctl trust`: what nodes trust, and how it is replaced. The root key is read here and nowhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.client import Api, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import EXIT_REFUSED, form_of, show, table

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

trust_app = typer.Typer(no_args_is_help=True, help="Show and replace what nodes trust.")
SIGNED, UNSIGNED = ("manifest", "ca", "root"), ("downloads", "master")
_WAIT_S = 5.0
_POLL_S = 0.1
_MAX_PAYLOADS = 2


@trust_app.command("show")
def show_trust(
    output: Output = "table",
    pem: Annotated[
        bool, typer.Option("--pem", help="only the public root key, for control_plane.root_file of a node")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show what nodes trust: roots, keys that sign policy, and CAs."""
    form = form_of(output)
    trust = Api(server).get("trust")
    if pem:
        print(_public_pem(trust["roots"][0]["key"]), end="")
        return
    if form != "table":
        show(trust, form)
        return
    print(f"key set {trust['version']} of {trust['trust_domain']}")
    for root in trust["roots"]:
        print(f"root {root['id']}")
    for key in trust["manifest"]:
        print(f"policy is signed by {key['id']}")
    if not trust["manifest"]:
        print("policy is not signed: opampctl trust rotate manifest --root-key FILE")
    table(("ca", "serial", "not_after"), [[ca["subject"], ca["serial"], ca["not_after"]] for ca in trust["ca"]])
    for node in trust["nodes_without"]:
        print(f"{node} does not have this key set yet")
    for node in trust["nodes_on_former_ca"]:
        print(f"{node} still has a certificate of a former CA, which stays trusted until it renews, 30 days at most")


def _public_pem(key: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@trust_app.command("rotate")
def rotate_trust(
    what: Annotated[str, typer.Argument(help=", ".join((*SIGNED, *UNSIGNED)))],
    root_key: Annotated[
        str, typer.Option("--root-key", help="file of the root key (PEM); for manifest, ca and root")
    ] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Replace a key. No agent and no link is lost. `root` prints the new root key alone: write it to a file."""
    if what not in (*SIGNED, *UNSIGNED):
        raise usage(f"{what} cannot be rotated; expected one of {', '.join((*SIGNED, *UNSIGNED))}")
    if (what in SIGNED) != bool(root_key):
        raise usage(
            f"{what} is signed by the root: give --root-key FILE" if what in SIGNED else f"{what} needs no --root-key"
        )
    api = api_of(server, who)
    if what in UNSIGNED:
        api.post("trust", what, body={})
        print(f"{what}: replaced", file=sys.stderr)
        if what == "master":
            print("copy keys/master.key again, and make a new backup: older ones need the former key", file=sys.stderr)
        return
    _rotate_signed(api, what, read_root(root_key))


def read_root(name: str) -> Ed25519PrivateKey:
    """Read a root key. A file that is none ends the command."""
    from relay.policy.signatures import private_key

    try:
        return private_key(Path(name).read_bytes())
    except OSError as error:
        raise usage(f"--root-key: {name}: {error.strerror}") from None
    except ValueError as error:
        raise usage(f"--root-key: {name}: {error}") from None


def _rotate_signed(api: Api, what: str, root: Ed25519PrivateKey) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from relay.auth.signing import key_id, public_bytes

    trust, own = api.get("trust"), key_id(public_bytes(root))
    if [key["id"] for key in trust["roots"]] != [own]:
        raise usage(f"--root-key: {own} is not the root of this control plane, or not its only one")
    roots, body = [root], {}
    if what == "root":
        roots.append(Ed25519PrivateKey.generate())
        body["root"] = public_bytes(roots[-1]).hex()
        # Before it is in force: an interrupted command must not lose it.
        pem = roots[-1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        print(pem.decode(), end="", flush=True)
    to_sign = api.post("trust", what, body=body)["to_sign"]
    _check_payloads(to_sign, trust, key_id(public_bytes(roots[-1])))
    version = api.post("trust", what, body={"signed": _signatures(to_sign, roots)})["version"]
    print(f"{what}: replaced; key set {version} is in force", file=sys.stderr)
    if what == "root":
        print("keep the new root key above, and destroy the old one", file=sys.stderr)
    if not _wait_for_nodes(api, version):
        raise SystemExit(EXIT_REFUSED)


def _check_payloads(payloads: Sequence[str], trust: dict[str, Any], root: str) -> None:
    """Look at what the control plane wants signed: it must not add a root of its own."""
    from relay.auth.key_sets import read

    if len(payloads) > _MAX_PAYLOADS:
        raise usage("not signed: the control plane wants more key sets signed than a rotation needs")
    for number, payload in enumerate(payloads, 1):
        try:
            key_set = read(payload.encode())
        except ValueError as error:
            raise usage(f"not signed: the control plane sent no key set: {error}") from None
        expected = (trust["version"] + number, trust["trust_domain"], {root})
        if (key_set.version, key_set.trust_domain, set(key_set.roots)) != expected:
            raise usage(f"not signed: the control plane sent a key set with other roots, or another version: {payload}")


def _signatures(payloads: Sequence[str], roots: Sequence[Ed25519PrivateKey]) -> list[dict[str, str]]:
    from relay.auth.signing import Purpose, sign

    return [sign(Purpose.KEY_SET, payload.encode(), root).plain() for payload in payloads for root in roots]


def _wait_for_nodes(api: Api, version: int) -> bool:
    """Wait until all connected nodes have a key set. Returns whether they do."""
    began = time.monotonic()
    while True:
        trust: dict[str, Any] = api.get("trust")
        without = trust["nodes_without"] if trust["version"] == version else []
        if trust["version"] == version and not trust["nodes_connected"]:
            print("no node is connected: they take it when they are back", file=sys.stderr)
            return True
        if not without:
            print(f"all connected nodes have it after {time.monotonic() - began:.1f} s", file=sys.stderr)
            return True
        if time.monotonic() - began >= _WAIT_S:
            for node in without:
                print(f"{node}: not confirmed yet", file=sys.stderr)
            return False
        time.sleep(_POLL_S)
