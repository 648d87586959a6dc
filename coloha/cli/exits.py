"""Exit codes, documented in the help of each verb and in README.md."""

OK = 0
FAILED = 1
"""The answer is no: a check found a problem, a pair is not protected, the daemon did not answer, a
replay decides otherwise."""
BAD_CONFIG = 2
"""The configuration, the command line or a flight record was refused; nothing was started."""
