"""What the guest itself does is no failure."""

import contextlib
import os
import random
import socket
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lab.namespace import LabError
from lab.strike import BOOT_S
from lab.topology import GUEST_IP
from tests.e2e.support import PATIENT, Scene, scene, wait

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(900)]

TURNS = int(os.environ.get("COLOHA_GUEST_TURNS", "2"))
"""How often the guest boots again, and how often it switches itself off."""
SEED = 2611


def order(stage: Scene, word: str) -> None:
    """Tell the guest to switch itself off, or to boot, once it listens: it may be booting."""

    def connect() -> socket.socket:
        end = time.monotonic() + BOOT_S
        while True:
            try:
                connection = socket.create_connection((GUEST_IP, 7), 10)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                connection.sendall(f"{word}\n".encode())
                return connection

    stage.topology.client.inside(connect, ("net",)).close()


def test_the_guest_boots_again_and_again() -> None:
    """At random instants, half of them together with a kill: never a failover without a reason,
    never a VM that is lost.
    """
    rng = random.Random(SEED)
    with scene(replace(PATIENT, period="200ms")) as stage:  # checkpoints slow the boot down
        stage.client.stop()
        for victim in victims():
            primary, secondary = stage.wait_protected()
            pid, ends, told = stage.qemu_pid(primary), endings(stage), kinds(stage)
            obeyed(stage, "reboot", victim, rng)
            stage.cluster.wait("the guest to boot", partial(has_booted, stage, ends), BOOT_S)
            after, told = stage.wait_protected(), kinds(stage) - told
            if victim is None:
                # A generation may have passed: TCG may not stop when just reset (qemu.md, 2.9).
                assert stage.qemu_pid(primary) == pid
                assert not {"yielded", "qemu-exited", "claimed", "promoted"} & {*told}
            if victim != "primary":
                assert after == (primary, secondary)
        assert stage.lives() == 1


def test_the_guest_switches_itself_off_again_and_again() -> None:
    """Likewise. Of a guest that is killed meanwhile, the other copy switches itself off, too."""
    rng = random.Random(SEED)
    with scene() as stage:
        cluster = stage.cluster
        stage.client.stop()
        for number, victim in enumerate(victims(), 1):
            primary, secondary = stage.wait_protected()
            told = kinds(stage)
            obeyed(stage, "poweroff", victim, rng)
            cluster.wait("off", lambda: sorted(cluster.phases().values()) == ["off", "standby"])
            told = kinds(stage) - told
            assert "cold-start" not in told
            if victim is None:
                assert cluster.phases() == {primary: "off", secondary: "standby"}
                assert not {"yielded", "claimed", "promoted"} & {*told}
            off = cluster.in_phase("off")
            assert off is not None
            cluster.wait("the end of QEMU", lambda: not any(map(cluster.qemu, cluster.phases())))
            if number == 1:
                # It stays off over a restart of the daemon, until somebody says otherwise.
                cluster.kill_daemon(primary)
                cluster.start(primary)
                cluster.wait("off", lambda: cluster.in_phase("off"))
            assert "starting" in cluster.command(off, "start", "vm")
            stage.wait_protected()
            assert stage.lives() == number + 1


def victims() -> list[str | None]:
    """Whose QEMU is killed meanwhile, if any, each time."""
    return [(None, "primary", None, "secondary")[number % 4] for number in range(TURNS)]


def obeyed(stage: Scene, word: str, victim: str | None, rng: random.Random) -> None:
    """Give the guest an order at some instant, and kill a QEMU just then, if it still lives."""
    primary, secondary = stage.wait_protected()
    wait(rng.uniform(0.0, 0.5))
    order(stage, word)
    if victim is not None:
        wait(rng.uniform(0.0, 0.1))
        with contextlib.suppress(LabError, ProcessLookupError):
            stage.cluster.kill_qemu(primary if victim == "primary" else secondary)


def kinds(stage: Scene) -> Counter[str]:
    """How often each kind of event was told."""
    return Counter(kind for name in stage.topology.hosts for kind in stage.kinds(name))


def endings(stage: Scene) -> Counter[Path]:
    """How often the guest ended to boot again, as each run's console has it."""
    return Counter({path: text.count("Restarting system") for path, text in consoles(stage)})


def has_booted(stage: Scene, before: Counter[Path]) -> bool:
    """Whether the guest of the protected primary has booted since. Those of secondaries run ahead,
    and say what they are made to forget.
    """
    primary = stage.cluster.in_phase("protected")
    run = stage.cluster.status(primary)["qemu"]["run"] if primary is not None else None
    return any(
        text.count("Restarting system") > before[path]
        and text.rfind("lab guest: ready") > text.rfind("Restarting system")
        for path, text in consoles(stage)
        if path.parent.name == run
    )


def consoles(stage: Scene) -> list[tuple[Path, str]]:
    """What the guest said on its console, run by run."""
    paths = (
        path
        for host in stage.topology.hosts.values()
        for path in (host.runtime / "vm").glob("*/console.log")
    )
    return [(path, path.read_text(errors="replace")) for path in paths]
