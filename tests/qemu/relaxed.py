"""How Hypothesis searches here: long enough, and never by the clock."""

from hypothesis import HealthCheck, settings


def relaxed(examples: int) -> settings:
    """So many examples, on a machine of any speed."""
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
