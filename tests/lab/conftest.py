"""Fixtures of the lab's own tests."""

from collections.abc import Iterator

import pytest

from lab.topology import Host, Topology


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology() as made:
        yield made


@pytest.fixture
def alpha(topology: Topology) -> Host:
    return topology.hosts["alpha"]


@pytest.fixture
def beta(topology: Topology) -> Host:
    return topology.hosts["beta"]
