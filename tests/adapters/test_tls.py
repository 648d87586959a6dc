"""What is said of connections that fail."""

import pytest

from coloha.adapters import tls


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('::1', 2379)"), "Connection refused"),
        (OSError("no route that we know"), "no route that we know"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("odd"), "odd"),
    ],
)
def test_words(error: Exception, said: str) -> None:
    assert tls.words(error) == said
