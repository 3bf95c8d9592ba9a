"""Archives for sites without a network: documents and package files in one tar.

`manifest.json` comes first and lists the content. Package files are named by their SHA-256, which readers verify.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

FORMAT = "opamp-relay-archive/1"
_READ_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 64 << 20


class BadArchive(Exception):
    """The archive cannot be used; the message says why."""


class _Open:
    """A tar that `with` closes."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar.fileobj is not None:
            self._tar.fileobj.close()


class Writer(_Open):
    """Writes an archive: the manifest first, then each file, then `finish`."""

    def __init__(self, path: Path, packages: list[dict[str, Any]], documents: list[dict[str, Any]]) -> None:
        super().__init__(tarfile.open(path, "w"))  # noqa: SIM115  closed by `with`
        manifest = {"format": FORMAT, "packages": packages, "documents": documents}
        self._add("manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())

    def _add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))

    def add_file(self, sha256: str, size: int, content: IO[bytes]) -> None:
        """Stream a package file into the archive.

        Raises:
            BadArchive: its SHA-256 is a different one.
        """
        entry = tarfile.TarInfo(f"sha256/{sha256}")
        entry.size = size
        hashing = Hashing(content)
        self._tar.addfile(entry, hashing)
        if hashing.hexdigest() != sha256:
            raise BadArchive(f"the content received for file {sha256} has a different SHA-256")

    def finish(self) -> None:
        """Write the end of the archive."""
        self._tar.close()


class Hashing(io.RawIOBase):
    """Hashes a stream as it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Return True, as `io` requires of a readable stream."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes and hash them."""
        content = self._source.read(size)
        self._hash.update(content)
        return content

    def hexdigest(self) -> str:
        """The SHA-256 of everything read so far."""
        return self._hash.hexdigest()


class Reader(_Open):
    """Reads an archive. Call `verify` before you use its content.

    Raises:
        BadArchive: the file is not an archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(tarfile.open(path, "r:"))  # noqa: SIM115  closed by `with`
        except (tarfile.TarError, OSError) as error:
            raise BadArchive(f"{path}: not an archive of packages ({error})") from None
        try:
            manifest = self._manifest()
        except (tarfile.TarError, OSError, ValueError, BadArchive) as error:
            self.__exit__()
            raise BadArchive(f"{path}: {error}") from None
        self.packages: list[dict[str, Any]] = manifest["packages"]
        self.documents: list[dict[str, Any]] = manifest["documents"]
        self._files = {member.name.removeprefix("sha256/"): member for member in self._tar if member.isfile()}

    def _manifest(self) -> dict[str, Any]:
        first = self._tar.next()
        content = self._tar.extractfile(first) if first is not None and first.name == "manifest.json" else None
        if first is None or content is None or first.size > _MAX_MANIFEST_BYTES:
            raise BadArchive("not an archive of packages")
        manifest: Any = json.load(content)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise BadArchive(f"not in the format {FORMAT}")
        return manifest

    def file_sizes(self) -> dict[str, int]:
        """SHA-256 → size of each file in the manifest."""
        return {f["sha256"]: f["size"] for p in self.packages for f in p["files"]}

    def verify(self) -> None:
        """Check every file in the manifest against its SHA-256.

        Raises:
            BadArchive: a file is missing, incomplete or different.
        """
        for sha256, size in self.file_sizes().items():
            if sha256 not in self._files or self._files[sha256].size != size:
                raise BadArchive(f"file {sha256} is missing or incomplete")
            digest = hashlib.sha256()
            for piece in self.read(sha256):
                digest.update(piece)
            if digest.hexdigest() != sha256:
                raise BadArchive(f"file {sha256} is corrupt: its SHA-256 differs")

    def read(self, sha256: str) -> Iterator[bytes]:
        """Iterate over the bytes of a file."""
        content = self._tar.extractfile(self._files[sha256])
        assert content is not None
        while piece := content.read(_READ_BYTES):
            yield piece

    def open(self, sha256: str) -> IO[bytes]:
        """Open a file as a seekable stream."""
        content = self._tar.extractfile(self._files[sha256])
        assert content is not None
        return content
