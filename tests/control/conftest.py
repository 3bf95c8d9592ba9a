"""A control plane for each test that asks for one."""

from __future__ import annotations

import pytest

from relay.control.app import ControlPlane
from tests.conftest import Programs


@pytest.fixture
async def plane(programs: Programs) -> ControlPlane:
    return await programs.control_plane()
