"""`opampctl package …` and `opampctl bundle …`: manage, export and import packages."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from relay.cli.client import Api, RefusedByServer, api_of, revealed
from relay.cli.options import DEFAULT_SERVER, As, Output, Server, usage
from relay.cli.output import form_of, show, table
from relay.policy.kinds import BY_PLURAL

if TYPE_CHECKING:
    from relay.cli.archive import Reader

app = typer.Typer(no_args_is_help=True, help="Manage packages: files that agents install.")
bundle_app = typer.Typer(
    no_args_is_help=True, help="Move documents and packages together, for sites without a network."
)

Key = Annotated[str, typer.Argument(help="NAME@VERSION")]
Archive = Annotated[Path, typer.Argument(help="the archive file")]
Advance = Callable[[int], None]
_PIECE_BYTES = 4 << 20
_STORE_TIMEOUT_S = 3600.0
"""The server hashes a large file, and copies it to an object store, before it responds."""
_CONFLICT = 409
_MIB = 1 << 20


@app.command()
def push(
    file: Annotated[
        Path, typer.Argument(help="the file that agents install", exists=True, dir_okay=False, readable=True)
    ],
    name: Annotated[str, typer.Option("--name", help="name of the package")],
    version: Annotated[str, typer.Option("--version", help="version of the package")],
    kind: Annotated[str, typer.Option("--type", help="top-level or addon")] = "top-level",
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="only for agents with k=v; all of several must match")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", help="sign with this Ed25519 private key (PEM)", exists=True)
    ] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", help="file with an existing signature", exists=True)
    ] = None,
    key: Annotated[
        str, typer.Option("--key", help="name of the PackageSigningKey; default: the file's name without suffix")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", help="lifetime of the signature, such as 90d; default: unlimited")
    ] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Upload a file of a package version. An interrupted upload resumes; a stored file is not sent again."""
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
    answer = api.post("packages", body=body, within_s=_STORE_TIMEOUT_S)
    print(f"Package/{name}@{version} {answer['action']}: {sha256[:12]}, {size} bytes")


def _attributes(terms: list[str]) -> dict[str, str]:
    attributes = {}
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals or not name:
            raise usage(f"--attribute {term}: expected k=v")
        attributes[name] = value
    return attributes


def _signature(
    body: dict[str, Any], sign: Path | None, signature: Path | None, key: str, expires: str
) -> dict[str, Any]:
    if sign is not None and signature is not None:
        raise usage("--sign and --signature exclude each other")
    source = sign or signature
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
    """Send the part of a file that the server does not have yet."""
    state = api.get("uploads", sha256)
    if state["complete"]:
        return
    offset = state["offset"]
    with _progress(title, size, offset) as advance:
        while offset < size:
            source.seek(offset)
            piece = source.read(_PIECE_BYTES)
            try:
                new_offset = api.patch("uploads", sha256, content=piece, offset=offset)["offset"]
            except RefusedByServer as error:
                if error.status != _CONFLICT:
                    raise
                # Another client uploads the same file, or the last response was lost: go on from the server's offset.
                state = api.get("uploads", sha256)
                if state["complete"]:
                    return
                new_offset = state["offset"]
            advance(new_offset - offset)
            offset = new_offset


@contextlib.contextmanager
def _progress(title: str, total: int, done: int) -> Iterator[Advance]:
    """Show a progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda count: progress.update(task, advance=count)


@app.command("list")
def list_packages(output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """List all versions of all packages."""
    form = form_of(output)
    packages = Api(server).get("packages")
    if form != "table":
        show(packages, form)
        return
    rows = [
        (p["name"], p["version"], p["type"], len(p["files"]), _format_size(p["bytes"]), p["used_by"], p["yanked"])
        for p in packages
    ]
    table(("name", "version", "type", "files", "size", "used by", "yanked"), rows)


@app.command("show")
def show_package(key: Key, output: Output = "table", server: Server = DEFAULT_SERVER) -> None:
    """Show one version and its files."""
    form = form_of(output)
    package = Api(server).get("packages", *_parts(key))
    if form != "table":
        show(package, form)
        return
    origin = f"by {package['created_by']} at {package['created']}"
    print(f"{package['name']} {package['version']} ({package['type']}), {origin}")
    if package["yanked"]:
        print(f"yanked: {package['yanked']}")
    if package["used_by"]:
        print(f"used by PackageAssignment {', '.join(package['used_by'])}")
    rows = [
        (
            " ".join(f"{k}={v}" for k, v in sorted(f["attributes"].items())) or "every agent",
            f["sha256"],
            _format_size(f["size"]),
            f["key"] if f["signature"] else "",
        )
        for f in package["files"]
    ]
    table(("for", "sha256", "size", "signed with"), rows)


def _format_size(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{size} B"


def _parts(key: str) -> tuple[str, str]:
    name, at, version = key.partition("@")
    if not at or not name or not version:
        raise usage(f"{key}: expected NAME@VERSION")
    return name, version


@app.command()
def yank(
    key: Key,
    reason: Annotated[
        str, typer.Option("--reason", help="the reason; shown with the package and recorded in the audit")
    ] = "",
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Withdraw a version everywhere, at once: rollouts to it end, and downloads of it stop."""
    api_of(server, who).post("packages", *_parts(key), "yank", body={"reason": reason})
    print(f"Package/{key} yanked")


@app.command()
def delete(key: Key, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Delete a version that no assignment uses."""
    api_of(server, who).delete("packages", *_parts(key))
    print(f"Package/{key} deleted")


def prefetch(
    key: Key,
    region: Annotated[list[str] | None, typer.Option("--region", help="region to fetch it in; default: all")] = None,
    who: As = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Tell regions to fetch a version before agents need it."""
    answer = api_of(server, who).post("packages", *_parts(key), "prefetch", body={"regions": region or []})
    print(f"Package/{key}: {', '.join(answer['regions'])} will fetch it")
    if answer["unknown"]:
        print(f"warning: no node of region {', '.join(answer['unknown'])} has connected yet", file=sys.stderr)


def package_status(api: Api, labels: list[str] | None, form: str) -> None:
    """Print the package status of agents."""
    status = api.get("package-status", label=labels)
    if form != "table":
        show(status, form)
        return
    columns = ("package", "version", "region", "installed", "installing", "downloading", "failed")
    table(columns, [[p[c] for c in columns] for p in status["packages"]])
    if status["agents"]:
        print()
        agent_columns = ("agent", "region", "package", "version", "offered", "state", "percent", "error_message")
        table(agent_columns, [[a[c] for c in agent_columns] for a in status["agents"]])
        if status["agents_total"] > len(status["agents"]):
            print(f"and {status['agents_total'] - len(status['agents']):,} more")


# ---- archives


@app.command("export")
def export_packages(
    archive: Archive,
    keys: Annotated[list[str], typer.Argument(help="NAME@VERSION to export; default: all")] = [],  # noqa: B006
    server: Server = DEFAULT_SERVER,
) -> None:
    """Write package versions and their files to one archive."""
    api = Api(server)
    packages = [api.get("packages", *_parts(key)) for key in keys] if keys else api.get("packages")
    if yanked := [f"{p['name']}@{p['version']}" for p in packages if keys and p["yanked"]]:
        raise RefusedByServer(0, [f"{', '.join(yanked)} was yanked and cannot be exported"])
    _export(api, archive, packages, [])


@app.command("import")
def import_packages(archive: Archive, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Push all versions in an archive, after verifying the whole archive."""
    _import(api_of(server, who), archive)


@bundle_app.command("export")
def export_bundle(archive: Archive, server: Server = DEFAULT_SERVER) -> None:
    """Write all documents, and all packages that are not yanked, to one archive."""
    api = Api(server)
    documents = [
        document for plural in BY_PLURAL for document in api.get("documents", plural, **revealed(api.is_authenticated))
    ]
    _export(api, archive, api.get("packages"), documents)


@bundle_app.command("import")
def import_bundle(archive: Archive, who: As = "", server: Server = DEFAULT_SERVER) -> None:
    """Push all packages in an archive, then apply its documents together."""
    _import(api_of(server, who), archive)


def _references(document: dict[str, Any]) -> set[str]:
    """NAME@VERSION of each package that a document refers to."""
    packages = document["spec"]["packages"] if document["kind"] == "PackageAssignment" else []
    return {f"{p['name']}@{p['version']}" for p in packages}


def _export(api: Api, path: Path, packages: list[dict[str, Any]], documents: list[dict[str, Any]]) -> None:
    from relay.cli.archive import BadArchive, Writer

    available = [p for p in packages if not p["yanked"]]
    keys = {f"{p['name']}@{p['version']}" for p in available}
    referenced: set[str] = set().union(*map(_references, documents))
    if missing := sorted(referenced - keys):
        # The importing server would refuse such a document, and all others with it.
        omitted = [d for d in documents if not _references(d).isdisjoint(missing)]
        documents = [d for d in documents if d not in omitted]
        for document in omitted:
            name = document["metadata"]["name"]
            print(f"left out: PackageAssignment/{name}: names {', '.join(missing)}, which was yanked", file=sys.stderr)
    files = {f["sha256"]: f["size"] for p in available for f in p["files"]}
    partial = path.with_name(path.name + ".part")
    try:
        entries = [{k: p[k] for k in ("name", "version", "type", "files")} for p in available]
        with (
            Writer(partial, entries, documents) as writer,
            _progress(path.name, sum(files.values()), 0) as advance,
        ):
            for sha256, size in files.items():
                with api.download("blobs", sha256) as content:
                    writer.add_file(sha256, size, content)
                advance(size)
            writer.finish()
        partial.replace(path)
    except (OSError, BadArchive) as error:
        raise RefusedByServer(0, [f"{path}: {error}"]) from None
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}: {len(available)} versions, {len(files)} files, {len(documents)} documents")


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
    if keys:  # before the packages they sign
        _apply(api, path, keys)
    for package in archive.packages:
        for file in package["files"]:
            with archive.open(file["sha256"]) as content:
                upload(api, file["sha256"], file["size"], content, f"{package['name']} {package['version']}")
            body = {"name": package["name"], "version": package["version"], "type": package["type"], **file}
            answer = api.post("packages", body=body, within_s=_STORE_TIMEOUT_S)
            print(f"Package/{package['name']}@{package['version']} {answer['action']}: {file['sha256'][:12]}")
    if archive.documents:
        _apply(api, path, archive.documents)


def _apply(api: Api, path: Path, documents: list[dict[str, Any]]) -> None:
    from relay.cli.output import as_yaml

    sources = [{"source": f"{path}: {d['kind']}/{d['metadata']['name']}", "text": as_yaml(d)} for d in documents]
    for item in api.post("apply", body={"sources": sources})["documents"]:
        print(f"{item['kind']}/{item['name']} {item['action']}")
