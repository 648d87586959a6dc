"""Two Debians on the hosts of a topology, with coloha installed as the README has it."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coloha.adapters.control import ControlClient
from coloha.errors import ControlError
from lab.assets import Assets, cache_folder, load_assets
from lab.client import RunningClient, start_client
from lab.machine import Machine
from lab.namespace import CHECKOUT, wait_until
from lab.strike import BOOT_S
from lab.topology import GUEST_IP, Topology
from tests.units.readme import blocks

INSTALL_S = 180.0
PROTECTED_S = 60.0
OFFLINE = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt/wheels"
"""The hosts are on no network but their own: pip finds there what setup has fetched."""
MEMORY = "128MiB"


@dataclass
class Site:
    """Two machines, and a client of the VM."""

    topology: Topology
    machines: dict[str, Machine]
    client: RunningClient | None = None

    def on_both(self, script: str, timeout_s: float = 60.0) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.call(script, timeout_s), self.machines.values()))

    def status(self, name: str) -> dict[str, Any]:
        """What the daemon says of the pair; nothing if none answers."""
        with contextlib.suppress(ControlError), self._control(name) as client:
            (pair,) = client.ask("status")["ok"]["pairs"]
            return dict(pair)
        return {}

    def daemon_status(self, name: str) -> dict[str, Any]:
        with self._control(name) as client:
            return dict(client.ask("status")["ok"])

    def keys(self, name: str) -> dict[str, Any]:
        return dict(self.daemon_status(name)["keys"])

    def events(self, name: str) -> list[dict[str, Any]]:
        with self._control(name) as client:
            answer, events = client.ask("events"), []
            while "ok" in answer:
                events.append(answer["ok"])
                answer = client.next()
            return events

    def _control(self, name: str) -> contextlib.closing[ControlClient]:
        path = self.machines[name].path("/run/coloha/control.sock")
        return contextlib.closing(ControlClient(path))

    def kinds(self, name: str) -> list[str]:
        return [event["kind"] for event in self.events(name)]

    def primary(self) -> str | None:
        """Who is primary, protected."""
        for name, machine in self.machines.items():
            status = self.status(name) if machine.on else {}
            if status.get("protected") and status.get("role") == "primary":
                return name
        return None

    def wait_failed_over(self, name: str) -> None:
        """Wait until this machine is the primary, protected."""
        wait_until(lambda: self.primary() == name, f"{name} as primary", PROTECTED_S)

    def wait_protected(self) -> tuple[str, str]:
        """Wait; return primary and secondary."""
        wait_until(lambda: self.primary() is not None, "protection", PROTECTED_S)
        primary = self.primary()
        assert primary is not None
        return primary, next(name for name in self.machines if name != primary)

    def wait_epochs(self, name: str) -> None:
        before = self.status(name).get("epochs", 0)
        wait_until(lambda: self.status(name).get("epochs", 0) > before, "epochs", PROTECTED_S)

    def main_pid(self, name: str, unit: str) -> int:
        shown = self.machines[name].call(f"systemctl show --property=MainPID --value {unit}")
        return int(shown)

    def talk(self) -> None:
        """Start the client; it is answered once the guest has booted."""
        path = self.topology.directory / "client.jsonl"
        words = ("--think-ms", "2", "--connect-s", str(BOOT_S))
        self.client = start_client(self.topology.client, f"{GUEST_IP}:7", path, *words)
        self.client.wait_for_answers(10, BOOT_S)

    def answers_go_on(self, count: int = 10) -> None:
        assert self.client is not None
        have = self.client.reports()[-1].answers
        self.client.wait_for_answers(have + count, PROTECTED_S)

    def no_answer_is_wrong(self) -> None:
        """See that all was well with every answer so far, on one connection."""
        assert self.client is not None
        report = self.client.reports()[-1]
        assert report.flawless, replace(report, gap_list=[])

    def report(self) -> str:
        """What the machines have to say after a failure."""
        words = "coloha status; coloha events; journalctl --no-pager -n 30 -u 'coloha*'"
        parts = []
        for name, machine in self.machines.items():
            with contextlib.suppress(Exception):
                done = machine.run(f"set +e; {words}")
                parts.append(f"--- {name}\n{done.stdout}{done.stderr}")
        return "\n".join(parts)


def for_this_lab(pair: str, assets: Assets) -> str:
    """Return a pair file with what this lab has instead: no KVM, less memory, a guest that is told
    its address.
    """
    for line, instead in (("  memory: 4GiB\n", f"  memory: {MEMORY}\n"), ("  cpus: 2\n", "")):
        assert line in pair
        pair = pair.replace(line, instead)
    words = f"console=ttyS0 quiet panic=-1 no_timer_check ip4={GUEST_IP}/24"
    slowly = "checkpoint:\n  period: 200ms\n"  # each checkpoint costs much without KVM
    more = (
        "  qemu: /mnt/qemu/qemu-system-x86_64",
        "  accelerator: tcg",
        f"  append: {words}",
        f"  extra_arguments: [-plugin, /mnt/plugin/{assets.plugin.name}]",
    )
    return slowly + pair.replace("vm:\n", "\n".join(["vm:", *more, ""]))


def source_of(folder: Path) -> Path:
    """Return a copy of what is in the repository, as somebody has it who has cloned it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


@contextlib.contextmanager
def machines() -> Iterator[Site]:
    """Boot two Debians that know nothing of coloha."""
    with Topology() as topology:
        assets, cache = load_assets(), cache_folder()
        tree = source_of(topology.directory / "tree")
        site = Site(topology, {})
        try:
            for name, host in topology.hosts.items():
                site.machines[name] = Machine(
                    host,
                    cache / "root",
                    [
                        f"{tree}:/root/coloha",
                        f"{cache / 'wheels'}:/mnt/wheels",
                        f"{assets.qemu.parent}:/mnt/qemu",
                        f"{assets.plugin.parent}:/mnt/plugin",
                        f"{assets.kernel.parent}:/mnt/guest",
                        f"{host.witness}:/mnt/witness",
                    ],
                )
                site.machines[name].start()
            yield site
        except BaseException:
            print(site.report())
            raise
        finally:
            if site.client is not None:
                site.client.stop()
            for machine in site.machines.values():
                machine.power_off()


def write(machine: Machine, path: str, text: str) -> None:
    """Write a file of a machine."""
    machine.call(f"cat > {path} <<'END'\n{text}\nEND\n")


def install(site: Site) -> None:
    """Follow the README's sections on installation and the first pair."""
    assets = load_assets()
    packages, script = blocks("Install")[0].splitlines()
    site.on_both(f"{packages} </dev/null", INSTALL_S)
    site.on_both(f"cd coloha && {OFFLINE} {script}", INSTALL_S)
    network, key, host, files, pair, begin = blocks("Two hosts, one VM")
    # The bridge that the lab's hosts have makes way; the folder of the witness is there already.
    network = network.replace("eno2", "uplink")
    *network_lines, mount = network.splitlines()
    assert mount.startswith("mount ")
    site.on_both("ip link del br0")
    site.on_both("\n".join(network_lines))
    site.on_both("chown coloha:coloha /mnt/witness")  # the user that the export squashes to
    make_key, copy_key = key.splitlines()
    assert copy_key.split()[:1] == ["scp"]
    alpha, beta = site.machines["alpha"], site.machines["beta"]
    alpha.call(make_key)
    beta.call("umask 077; cat > /etc/coloha/key <<'END'\n" + alpha.call("cat /etc/coloha/key"))
    write(alpha, "/etc/coloha/coloha.yaml", host)
    beta_host = host.replace("alpha", "beta").replace("10.9.0.1", "10.9.0.2")
    write(beta, "/etc/coloha/coloha.yaml", beta_host)
    for machine in site.machines.values():
        make_folder, *other_lines = files.splitlines()
        machine.call(make_folder)
        for name, source in (("vmlinuz", assets.kernel), ("initrd", assets.initrd)):
            machine.call(f"cp /mnt/guest/{source.name} /srv/web/{name}")
        machine.call("\n".join(other_lines))
        write(machine, "/etc/coloha/pairs.d/web.yaml", for_this_lab(pair, assets))
    check, enable, look = begin.splitlines()
    assert look == "coloha status"
    for machine in site.machines.values():
        printed = machine.call(check)
        assert "PROBLEM" not in printed
        assert "no coloha-qemu" not in printed
    alpha.call(enable)
    site.talk()  # checkpoints slow the boot of a guest without KVM
    beta.call(enable)
    site.wait_protected()
