"""Who may run the lab, and what the others are told."""

import os
import subprocess
import sys

import pytest

from lab import privileges
from lab.namespace import CHECKOUT


def test_root_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    privileges.become_privileged()


def test_without_tap_devices_a_user_is_told_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(privileges, "TUN", "/nowhere/tun")
    with pytest.raises(SystemExit, match="needs root, or user namespaces and an accessible"):
        privileges.become_privileged()


def test_without_user_namespaces_a_user_is_told_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(privileges, "_UNSHARE", ("false",))
    with pytest.raises(SystemExit, match="needs root, or user namespaces and an accessible"):
        privileges.become_privileged()


@pytest.mark.qemu
def test_an_ordinary_user_gets_a_topology_of_their_own() -> None:
    script = (
        "import os, sys\n"
        "from lab.privileges import become_privileged\n"
        "first = os.geteuid(), os.getpid()\n"
        "print(*first, flush=True)\n"
        "become_privileged()\n"
        "from lab.topology import Topology\n"
        "from tests.lab.support import reaches\n"
        "with Topology() as made:\n"
        "    alpha, beta = made.hosts.values()\n"
        "    alpha.ip('tuntap add vm0 mode tap\\nlink set vm0 master br0 up\\n')\n"
        "    alpha.cut()\n"
        "    alpha.power_off()\n"
        "    alpha.power_on()\n"
        "    alpha.mend()\n"
        "    print(reaches(beta, alpha, alpha.replication_ip))\n"
    )
    # A user like any other, seen from a namespace in which this one has no privilege left.
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    command = [*user, sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, reached = done.stdout.splitlines()
    assert (first.split()[0], second.split()[0], reached) == ("1000", "0", "True")
    assert first.split()[1] == second.split()[1]  # the same process, with other rights
