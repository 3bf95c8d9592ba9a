"""Run the installed commands as a user does."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    status: int | None
    out: str
    err: str


async def run(command: str, *args: str, stdin: str = "", cwd: Path | None = None, **environment: str) -> Done:
    process = await asyncio.create_subprocess_exec(
        str(BIN / command), *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, cwd=cwd, env={**os.environ, "COLUMNS": "100", **environment},
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin.encode())
    return Done(process.returncode, out.decode(), err.decode())
