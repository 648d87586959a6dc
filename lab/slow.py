"""`coloha` with a daemon that is late: each message of QEMU is taken in DELAY milliseconds late.

    python -m lab.slow DELAY run --config FILE

The daemon does nothing else meanwhile, as one that is starved of CPU time.
"""

import sys
import time

from qemu.qmp.message import Message as RawMessage

from coloha.cli.main import main
from coloha.qemu.qmp import Monitor


def slow_down(delay_s: float) -> None:
    """Make every monitor of this process late."""
    receive = Monitor._receive

    def late(monitor: Monitor, raw: RawMessage) -> None:
        time.sleep(delay_s)
        receive(monitor, raw)

    setattr(Monitor, receive.__name__, late)


if __name__ == "__main__":
    slow_down(float(sys.argv[1]) / 1000)
    raise SystemExit(main(sys.argv[2:]))
