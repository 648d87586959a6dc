"""Where the fresh histories of this run begin (tests/sim)."""

import os
import secrets

import pytest

SEED = int(os.environ.get("COLOHA_SEED") or secrets.randbelow(1 << 40))


def pytest_report_header(config: pytest.Config) -> str:
    return f"simulated histories: seeds from {SEED} (COLOHA_SEED={SEED} repeats them)"


@pytest.fixture(scope="session")
def first_seed() -> int:
    return SEED
