"""`opampctl` against a control plane that asks for tokens."""

from __future__ import annotations

from pathlib import Path

from relay.control.app import ControlPlane
from relay.control.credentials.admin_token import FILE
from tests.cli.run import Done, run
from tests.conftest import Programs
from tests.control.api.people import TOKENS


class Guarded:
    """Runs commands with a token, or without."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folder = folder
        self.server = f"http://127.0.0.1:{plane.ports['api']}"
        self.admin = (folder / "control-plane" / FILE).read_text().strip()

    async def ctl(self, *args: str, token: str | None = None, stdin: str = "", **environment: str) -> Done:
        settings = {
            "OPAMPCTL_SERVER": self.server,
            "OPAMPCTL_CONFIG_DIR": str(self.folder / "opampctl"),
            "OPAMPCTL_TOKEN": self.admin if token is None else token,
            **environment,
        }
        return await run("opampctl", *args, stdin=stdin, cwd=None, **settings)


async def guarded(programs: Programs) -> Guarded:
    plane = await programs.control_plane(**TOKENS)
    return Guarded(plane, programs.folder)
