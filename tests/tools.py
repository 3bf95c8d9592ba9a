"""Programs of others that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*tools: str) -> None:
    """Skip the test if a tool is missing; fail it in CI."""
    for tool in tools:
        if shutil.which(tool) is None:
            assert not os.environ.get("CI"), f"{tool} must be there in CI"
            pytest.skip(f"{tool} is not installed")
