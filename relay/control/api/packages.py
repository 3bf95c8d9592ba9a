"""Routes of packages: resumable uploads, versions, and their status at agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from relay.control.api.caller import Actor, scopes_of
from relay.control.api.models import (
    Done,
    PackageStatus,
    PackageView,
    Prefetched,
    RequestBody,
    Uploaded,
    answers,
    answers_bytes,
)
from relay.control.api.pages import Limit, behind
from relay.control.fleet import query
from relay.control.fleet.fleet import Fleet
from relay.control.fleet.package_status import package_status
from relay.control.packages.registry import Packages
from relay.errors import Conflict, NotFound
from relay.policy.model import Name, Version
from relay.policy.packages import Attributes, PackageFile, PackageType, PublishedPackage, Sha256

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


class PushRequest(RequestBody):
    """One file of a version. Its upload must be complete."""

    name: Name
    version: Version
    type: PackageType = "top-level"
    sha256: Sha256
    size: int = Field(ge=0)
    attributes: Attributes = Field(default_factory=dict)
    signature: str = Field(default="", pattern=r"^([0-9a-f]{2})*$", max_length=4096)
    key: str = Field(default="", max_length=128)
    expires_ms: int = Field(default=0, ge=0, le=1 << 53)


class ReasonRequest(RequestBody):
    """Why a version is yanked."""

    reason: str = Field(default="", max_length=2000)


class PrefetchRequest(RequestBody):
    """The regions to prefetch to."""

    regions: list[Name] = Field(default_factory=list, max_length=1000, description="empty for all regions with nodes")


def add_package_routes(api: FastAPI, packages: Packages, fleet: Fleet) -> None:
    """Add the routes to the application."""

    @api.get("/api/v1/uploads/{sha256}", **answers(Uploaded, "packages"))
    async def get_upload(sha256: Digest) -> dict[str, Any]:
        """How much of a file has arrived."""
        offset, complete = await packages.blobs.received(sha256)
        return {"offset": offset, "complete": complete}

    @api.patch("/api/v1/uploads/{sha256}", **answers(Uploaded, "packages"))
    async def upload_piece(sha256: Digest, request: Request, offset: Annotated[int, Query(ge=0)]) -> dict[str, Any]:
        """Upload the next piece of a file. The 409 response names the expected offset."""
        content = await request.body()
        return {"offset": await packages.blobs.receive(sha256, offset, content), "complete": False}

    @api.get("/api/v1/blobs/{sha256}", **answers_bytes("packages"))
    async def get_blob(sha256: Digest) -> StreamingResponse:
        """Download a file."""
        size = await packages.blobs.size(sha256)
        if size is None:
            raise NotFound(f"there is no file {sha256}")
        return StreamingResponse(
            _pieces(packages, sha256), media_type="application/octet-stream", headers={"Content-Length": str(size)}
        )

    @api.get("/api/v1/packages", **answers(list[PackageView], "packages"))
    async def list_packages(
        limit: Limit = None, after: Annotated[str, Query(description="the last NAME@VERSION of the page before")] = ""
    ) -> list[dict[str, Any]]:
        """All versions of all packages."""
        return behind(packages.listing(), after, lambda row: f"{row['name']}@{row['version']}")[:limit]

    @api.post("/api/v1/packages", **answers(PackageView, "packages"))
    async def push_package(request: PushRequest, actor: Actor) -> dict[str, Any]:
        """Add a file to a version. The first file creates the version."""
        file = PackageFile(**request.model_dump(exclude={"name", "version", "type"}))
        package = PublishedPackage(name=request.name, version=request.version, type=request.type, files=[file])
        action = await packages.register(package, actor=actor)
        return {"action": action, **packages.view(package.key)}

    @api.get("/api/v1/packages/{name}/{version}", **answers(PackageView, "packages"))
    async def get_package(name: str, version: str) -> dict[str, Any]:
        """One version."""
        return packages.view(f"{name}@{version}")

    @api.post("/api/v1/packages/{name}/{version}/yank", **answers(PackageView, "packages"))
    async def yank_package(name: str, version: str, request: ReasonRequest, actor: Actor) -> dict[str, Any]:
        """Withdraw a version everywhere."""
        await packages.yank(f"{name}@{version}", request.reason, actor=actor)
        return packages.view(f"{name}@{version}")

    @api.post("/api/v1/packages/{name}/{version}/prefetch", **answers(Prefetched, "packages"))
    async def prefetch_package(name: str, version: str, request: PrefetchRequest, actor: Actor) -> dict[str, Any]:
        """Let regions fetch a version before an agent needs it."""
        regions = request.regions or sorted(fleet.census.live_regions())
        if not regions:
            raise Conflict("no region has connected yet; name the regions that should fetch it")
        prefetched = await packages.prefetch(f"{name}@{version}", regions, actor=actor)
        unknown = set(prefetched) - fleet.census.live_regions()
        return {"name": name, "version": version, "regions": prefetched, "unknown": sorted(unknown)}

    @api.delete("/api/v1/packages/{name}/{version}", **answers(Done, "packages"))
    async def delete_package(name: str, version: str, actor: Actor) -> dict[str, str]:
        """Delete a version that no assignment uses."""
        await packages.delete(f"{name}@{version}", actor=actor)
        return {"kind": "Package", "name": f"{name}@{version}", "action": "deleted"}

    @api.get("/api/v1/package-status", **answers(PackageStatus, "packages"))
    async def get_package_status(
        actor: Actor,
        label: Annotated[list[str] | None, Query(description="k=v; several must all match")] = None,
    ) -> dict[str, Any]:
        """What agents report about packages, by package and region, and the names of some that are not done yet."""
        return await asyncio.to_thread(package_status, fleet.census, query.parse_labels(label or []), scopes_of(actor))


async def _pieces(packages: Packages, sha256: str) -> AsyncIterator[bytes]:
    async for piece in packages.blobs.read(sha256):
        yield piece
