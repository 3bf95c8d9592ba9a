"""A fleet for each test that asks for one."""

from __future__ import annotations

import pytest

from relay.control.fleet.fleet import Fleet
from tests.conftest import Programs


@pytest.fixture
async def fleet(programs: Programs) -> Fleet:
    return (await programs.control_plane()).fleet
