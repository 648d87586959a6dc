"""Fixtures of the QEMU layer's tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.loops import FACTORIES, Loop


@pytest.fixture(params=sorted(FACTORIES))
def run(request: pytest.FixtureRequest) -> Loop:
    """Every test with it runs on both event loops."""
    return Loop(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    made = Path(tempfile.mkdtemp(prefix="cq-"))
    yield made
    shutil.rmtree(made)
