"""Pairs that tests share, and what they say of themselves when a test fails on them."""

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.support import Scene, scene


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """One pair for the tests of a file that ask for the same: each leaves it protected.

    The parameter is what `scene` takes.
    """
    with scene(**request.param) as made:
        yield made
        made.finish()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    shared = item.funcargs.get("stage") if report.when == "call" and report.failed else None
    made = shared[0] if isinstance(shared, tuple) else shared
    if isinstance(made, Scene):
        report.sections.append(("the pair", made.cluster.report()))
    return report
