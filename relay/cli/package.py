"""`opampctl package …` and `opampctl bundle …`: files for agents, in and out."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.client import Api, RefusedByServer, api_of
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import form_of, show, table
from relay.policy.kinds import BY_PLURAL

if TYPE_CHECKING:
    from relay.cli.archive import Reader

app = typer.Typer(no_args_is_help=True, help="Packages: files that agents install.")
bundle_app = typer.Typer(no_args_is_help=True, help="Documents and packages together, for sites without a network.")

Key = Annotated[str, typer.Argument(help="NAME@VERSION")]
Archive = Annotated[Path, typer.Argument(help="a file")]
Advance = Callable[[int], None]
_PIECE_BYTES = 4 << 20
_STORING_S = 3600.0
"""A large file is hashed, and carried to an object store, before the answer comes."""
_CONFLICT = 409
_UNIT = 1 << 20


@app.command()
def push(
    file: Annotated[Path, typer.Argument(help="what agents install", exists=True, dir_okay=False, readable=True)],
    name: Annotated[str, typer.Option("--name", help="of the package")],
    version: Annotated[str, typer.Option("--version", help="of the package")],
    kind: Annotated[str, typer.Option("--type", help="top-level or addon")] = "top-level",
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="k=v of the agents that the file is for; several must match")
    ] = None,
    sign: Annotated[Path | None, typer.Option("--sign", help="private key, Ed25519, PEM", exists=True)] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", help="file with a signature that was made elsewhere", exists=True)
    ] = None,
    key: Annotated[str, typer.Option("--key", help="name of the PackageSigningKey; default: the key file's own")] = "",
    expires: Annotated[str, typer.Option("--expires", help="the signature ends after this time, as 90d")] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Upload a file as (a part of) a version of a package. What was uploaded already is not sent again."""
    api = api_of(server, who)
    with file.open("rb") as source:
        sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        size = source.tell()
        body: dict[str, Any] = {
            "name": name,
            "version": version,
            "type": kind,
            "sha256": sha256,
            "size": size,
            "attributes": _attributes(attribute or []),
        }
        body |= _signature(body, sign, signature, key, expires)
        upload(api, sha256, size, source, f"{name} {version}")
    answer = api.post("packages", body=body, within_s=_STORING_S)
    print(f"Package/{name}@{version} {answer['action']}: {sha256[:12]}, {size} bytes")


def _attributes(terms: list[str]) -> dict[str, str]:
    found = {}
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals or not name:
            raise usage(f"--attribute {term}: expected k=v")
        found[name] = value
    return found


def _signature(body: dict[str, Any], sign: Path | None, made: Path | None, key: str, expires: str) -> dict[str, Any]:
    if sign is not None and made is not None:
        raise usage("--sign makes a signature, --signature takes one that is there: one of the two")
    source = sign or made
    if source is None:
        return {}
    from relay.documents import parse_duration
    from relay.policy.signatures import private_key, statement

    try:
        expires_ms = int((time.time() + parse_duration(expires)) * 1000) if expires else 0
    except ValueError as error:
        raise usage(f"--expires: {error}") from None
    if sign is None:
        content = source.read_bytes()
        value = content.hex() if len(content) == 64 else content.decode("ascii", "replace").strip()
    else:
        try:
            signer = private_key(sign.read_bytes())
        except ValueError as error:
            raise usage(f"--sign {sign}: {error}") from None
        value = signer.sign(statement(body["name"], body["version"], body["sha256"], body["size"], expires_ms)).hex()
    return {"signature": value, "key": key or source.stem, "expires_ms": expires_ms}


def upload(api: Api, sha256: str, size: int, source: IO[bytes], title: str) -> None:
    """Send what the server lacks of a file."""
    state = api.get("uploads", sha256)
    if state["complete"]:
        return
    offset = state["offset"]
    with _progress(title, size, offset) as advance:
        while offset < size:
            source.seek(offset)
            piece = source.read(_PIECE_BYTES)
            try:
                reached = api.patch("uploads", sha256, content=piece, offset=offset)["offset"]
            except RefusedByServer as error:
                if error.status != _CONFLICT:
                    raise
                # Somebody else uploads it too, or the last answer was lost: go on where the server is.
                state = api.get("uploads", sha256)
                if state["complete"]:
                    return
                reached = state["offset"]
            advance(reached - offset)
            offset = reached


@contextlib.contextmanager
def _progress(title: str, total: int, done: int) -> Iterator[Advance]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda number: progress.update(task, advance=number)


@app.command("list")
def list_packages(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List all versions."""
    form = form_of(output)
    found = Api(server).get("packages")
    if form != "table":
        show(found, form)
        return
    rows = [
        (p["name"], p["version"], p["type"], len(p["files"]), _megabytes(p["bytes"]), p["used_by"], p["yanked"])
        for p in found
    ]
    table(("name", "version", "type", "files", "size", "used by", "yanked"), rows)


@app.command("show")
def show_package(key: Key, output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """Show one version and its files."""
    form = form_of(output)
    found = Api(server).get("packages", *_parts(key))
    if form != "table":
        show(found, form)
        return
    by = f"by {found['created_by']} at {found['created']}"
    print(f"{found['name']} {found['version']} ({found['type']}), {by}")
    if found["yanked"]:
        print(f"yanked: {found['yanked']}")
    if found["used_by"]:
        print(f"used by PackageAssignment {', '.join(found['used_by'])}")
    rows = [
        (
            " ".join(f"{k}={v}" for k, v in sorted(f["attributes"].items())) or "every agent",
            f["sha256"],
            _megabytes(f["size"]),
            f["key"] if f["signature"] else "",
        )
        for f in found["files"]
    ]
    table(("for", "sha256", "size", "signed with"), rows)


def _megabytes(number: int) -> str:
    return f"{number / _UNIT:.1f} MiB" if number >= _UNIT else f"{number} B"


def _parts(key: str) -> tuple[str, str]:
    name, at, version = key.partition("@")
    if not at or not name or not version:
        raise usage(f"{key}: expected NAME@VERSION")
    return name, version


@app.command()
def yank(
    key: Key,
    reason: Annotated[str, typer.Option("--reason", help="why; agents' nodes say it")] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Refuse a version everywhere, at once: rollouts to it end, and nobody downloads it any more."""
    api_of(server, who).post("packages", *_parts(key), "yank", body={"reason": reason})
    print(f"Package/{key} yanked")


@app.command()
def delete(key: Key, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Delete a version that no assignment uses."""
    api_of(server, who).delete("packages", *_parts(key))
    print(f"Package/{key} deleted")


def prefetch(
    key: Key,
    region: Annotated[list[str] | None, typer.Option("--region", help="where; default: everywhere")] = None,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Let regions fetch a version before any agent needs it."""
    told = api_of(server, who).post("packages", *_parts(key), "prefetch", body={"regions": region or []})
    print(f"Package/{key}: {', '.join(told['regions'])} will fetch it")
    if told["unknown"]:
        print(f"warning: no node of region {', '.join(told['unknown'])} has connected yet", file=sys.stderr)


def package_status(api: Api, labels: list[str] | None, form: str) -> None:
    """Print what agents say of packages."""
    found = api.get("package-status", label=labels)
    if form != "table":
        show(found, form)
        return
    columns = ("package", "version", "region", "installed", "installing", "downloading", "failed")
    table(columns, [[p[c] for c in columns] for p in found["packages"]])
    if found["agents"]:
        print()
        telling = ("agent", "region", "package", "version", "offered", "state", "percent", "error_message")
        table(telling, [[a[c] for c in telling] for a in found["agents"]])
        if found["agents_total"] > len(found["agents"]):
            print(f"and {found['agents_total'] - len(found['agents']):,} more")


# ---- archives


@app.command("export")
def export_packages(
    archive: Archive,
    keys: Annotated[list[str], typer.Argument(help="NAME@VERSION of those to take; none: all")] = [],  # noqa: B006
    server: Server = DEFAULT_SERVER,
) -> None:
    """Write versions and their files into one archive."""
    api = Api(server)
    found = [api.get("packages", *_parts(key)) for key in keys] if keys else api.get("packages")
    if yanked := [f"{p['name']}@{p['version']}" for p in found if keys and p["yanked"]]:
        raise RefusedByServer(0, [f"{', '.join(yanked)} was yanked, and cannot be exported"])
    _export(api, archive, found, [])


@app.command("import")
def import_packages(archive: Archive, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Push all versions of an archive; all of it is verified first."""
    _import(api_of(server, who), archive)


@bundle_app.command("export")
def export_bundle(archive: Archive, server: Server = DEFAULT_SERVER) -> None:
    """Write all documents and all packages that are not yanked into one archive."""
    api = Api(server)
    documents = [document for plural in BY_PLURAL for document in api.get("documents", plural)]
    _export(api, archive, api.get("packages"), documents)


@bundle_app.command("import")
def import_bundle(archive: Archive, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Push all packages of an archive, then apply all its documents as one."""
    _import(api_of(server, who), archive)


def _names_any(document: dict[str, Any], packages: list[str]) -> bool:
    named = document["spec"]["packages"] if document["kind"] == "PackageAssignment" else []
    return any(f"{p['name']}@{p['version']}" in packages for p in named)


def _export(api: Api, path: Path, packages: list[dict[str, Any]], documents: list[dict[str, Any]]) -> None:
    from relay.cli.archive import BadArchive, Writer

    kept = [p for p in packages if not p["yanked"]]
    there = {f"{p['name']}@{p['version']}" for p in kept}
    wanted = {
        f"{p['name']}@{p['version']}"
        for d in documents
        if d["kind"] == "PackageAssignment"
        for p in d["spec"]["packages"]
    }
    if missing := sorted(wanted - there):
        # What it names cannot be had there: it would be refused with all the others.
        left = [d for d in documents if _names_any(d, missing)]
        documents = [d for d in documents if d not in left]
        for document in left:
            name = document["metadata"]["name"]
            print(f"left out: PackageAssignment/{name}: names {', '.join(missing)}, which was yanked", file=sys.stderr)
    files = {f["sha256"]: f["size"] for p in kept for f in p["files"]}
    unfinished = path.with_name(path.name + ".part")
    try:
        listed = [{k: p[k] for k in ("name", "version", "type", "files")} for p in kept]
        with (
            Writer(unfinished, listed, documents) as writer,
            _progress(path.name, sum(files.values()), 0) as advance,
        ):
            for sha256, size in files.items():
                with api.download("blobs", sha256) as content:
                    writer.add_file(sha256, size, content)
                advance(size)
            writer.finish()
        unfinished.replace(path)
    except (OSError, BadArchive) as error:
        raise RefusedByServer(0, [f"{path}: {error}"]) from None
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{path}: {len(kept)} versions, {len(files)} files, {len(documents)} documents")


def _import(api: Api, path: Path) -> None:
    from relay.cli.archive import BadArchive, Reader

    try:
        with Reader(path) as archive:
            archive.verify()
            _push_all(api, path, archive)
    except BadArchive as error:
        raise RefusedByServer(0, [str(error)]) from None


def _push_all(api: Api, path: Path, archive: Reader) -> None:
    keys = [d for d in archive.documents if d["kind"] == "PackageSigningKey"]
    if keys:  # before the packages that they signed
        _apply(api, path, keys)
    for package in archive.packages:
        for file in package["files"]:
            with archive.open(file["sha256"]) as content:
                upload(api, file["sha256"], file["size"], content, f"{package['name']} {package['version']}")
            body = {"name": package["name"], "version": package["version"], "type": package["type"], **file}
            answer = api.post("packages", body=body, within_s=_STORING_S)
            print(f"Package/{package['name']}@{package['version']} {answer['action']}: {file['sha256'][:12]}")
    if archive.documents:
        _apply(api, path, archive.documents)


def _apply(api: Api, path: Path, documents: list[dict[str, Any]]) -> None:
    from relay.cli.output import as_yaml

    sources = [{"source": f"{path}: {d['kind']}/{d['metadata']['name']}", "text": as_yaml(d)} for d in documents]
    for item in api.post("apply", body={"sources": sources})["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}")
