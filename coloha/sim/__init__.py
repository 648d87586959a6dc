"""The simulator: the real core, for both nodes, against a modelled world in virtual time.

A *history* (`history.py`) is one life of a pair: it is brought up, faults (`faults.py`) happen to
it, they end, and it must be protected again. All of it follows from a seed. The real parts are the
core and the QMP scripts (`coloha.core`, `coloha.qemu.scripts`). Modelled are clocks (`clock.py`),
daemons around the core (`daemon.py`, `monitor.py`), QEMU and COLO (`qemu.py`, `colo.py`), the
network and the witness (`network.py`, `witness.py`). `checkers.py` says which promise was broken;
it knows nothing of the core. docs/safety.md says what is tried, and what was found.
"""
