import pytest

from relay.errors import PortError, StoreError
from tests.conftest import Programs


async def test_port_in_use_is_an_error(programs: Programs) -> None:
    first = await programs.control_plane()
    programs.folder = programs.folder / "other"
    with pytest.raises(PortError, match=r"set server\.api\.endpoint, or --api HOST:PORT"):
        await programs.control_plane(api=first.ports["api"])
    with pytest.raises(PortError, match=r"set server\.link\.endpoint, or --link HOST:PORT"):
        await programs.control_plane(link=first.ports["link"])


async def test_file_that_is_not_a_database_is_an_error(programs: Programs) -> None:
    folder = programs.folder / "control-plane"
    folder.mkdir()
    (folder / "control-plane.sqlite3").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError):
        await programs.opened()
    assert (folder / "control-plane.sqlite3").read_bytes() == b"garbage" * 1000, "it is the truth: never set aside"
