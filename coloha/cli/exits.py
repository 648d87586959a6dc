"""Exit codes, documented in the help of each verb and in README.md."""

OK = 0
FAILED = 1
"""The answer is no: a check found a problem, a pair is not protected, the daemon did not answer."""
BAD_CONFIG = 2
"""The configuration or the command line was refused; nothing was started."""
