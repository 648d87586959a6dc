"""The README, word for word, on two fresh hosts; and what is done to them afterwards."""

import json
import time
from collections.abc import Iterator

import pytest

from coloha.adapters.journal import message_id
from lab.namespace import wait_until
from tests.units.readme import blocks
from tests.units.support import INSTALL_S, OFFLINE, PROTECTED_S, Site, install, machines

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

QEMU = "coloha-qemu@web.service"
WATCHDOG = """
mkdir -p /run/systemd/system/coloha.service.d
printf '[Service]\\nWatchdogSec=2s\\n' > /run/systemd/system/coloha.service.d/test.conf
systemctl daemon-reload
systemctl restart coloha
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two machines on which the README has been followed."""
    with machines() as site:
        install(site)
        yield site


def test_from_nothing_to_a_survived_crash(site: Site) -> None:
    assert site.wait_protected() == ("alpha", "beta")
    look = blocks("Two hosts, one VM")[-1].splitlines()[-1]
    assert "web: protected" in site.machines["alpha"].call(look)
    site.answers_go_on()

    site.machines["alpha"].power_off()
    site.answers_go_on()
    assert site.status("beta")["role"] == "primary"

    site.machines["alpha"].power_on()
    assert site.wait_protected() == ("beta", "alpha")
    site.answers_go_on()
    site.no_answer_is_wrong()


def test_the_vm_outlives_what_is_done_to_its_service(site: Site) -> None:
    primary, secondary = site.wait_protected()
    before = qemus(site), generation(site)
    runs_with_few_rights(site)
    may_start_qemus_alone(site)
    for name in site.machines:
        daemon_is_killed(site, name)
        daemon_is_restarted(site, name)
        configuration_is_read_again(site, name)
    key_is_changed(site)
    new_version_is_installed(site)
    events_are_in_the_journal(site)
    assert site.wait_protected() == (primary, secondary)
    assert (qemus(site), generation(site)) == before
    site.answers_go_on()
    daemon_that_hangs_is_restarted(site)
    qemu_is_stopped(site)
    host_is_shut_down(site)
    site.no_answer_is_wrong()


def qemus(site: Site) -> dict[str, int]:
    return {name: site.main_pid(name, QEMU) for name in site.machines}


def generation(site: Site) -> int:
    return max(int(site.status(name)["generation"]) for name in site.machines)


def runs_with_few_rights(site: Site) -> None:
    for name, machine in site.machines.items():
        for unit in ("coloha.service", QEMU):
            pid = site.main_pid(name, unit)
            assert pid > 0
            status = machine.call(f"cat /proc/{pid}/status")
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
            assert int(machine.call("id -u coloha")) == int(fields["Uid"].split()[0]) > 0
        assert site.main_pid(name, QEMU) != site.main_pid(name, "coloha.service")
        # The key stays root's.
        assert machine.call("stat --format=%U%a /etc/coloha/key") == "root600\n"


def may_start_qemus_alone(site: Site) -> None:
    machine = site.machines["alpha"]
    run = "runuser -u coloha -- systemctl --no-ask-password"
    for words in (
        "start dbus-org.freedesktop.hostname1",
        f"stop {QEMU}",
        "stop coloha",
        "poweroff",
    ):
        assert machine.run(f"{run} {words}").returncode != 0, words
    refused = machine.run("systemctl start coloha-qemu@other")
    assert refused.returncode != 0
    assert "did not ask" in machine.call("journalctl --no-pager -u coloha-qemu@other")
    assert site.main_pid("alpha", QEMU) > 0


def daemon_is_killed(site: Site, name: str) -> None:
    old = site.main_pid(name, "coloha.service")
    site.machines[name].call(f"kill -KILL {old}")
    wait_until(lambda: site.main_pid(name, "coloha.service") not in (0, old), "a restart")
    site.wait_protected()
    site.wait_epochs(site.wait_protected()[0])


def daemon_is_restarted(site: Site, name: str) -> None:
    site.machines[name].call("systemctl restart coloha")
    site.wait_protected()
    site.wait_epochs(site.wait_protected()[0])


def configuration_is_read_again(site: Site, name: str) -> None:
    machine = site.machines[name]
    machine.call("sed -i s/200ms/250ms/ /etc/coloha/pairs.d/web.yaml")
    machine.call("systemctl reload coloha")
    reloaded = [event["text"] for event in site.events(name) if event["kind"] == "reloaded"]
    assert any("period" in text for text in reloaded)


def key_is_changed(site: Site) -> None:
    """As docs/security.md has it: three steps, in each of which the daemons differ for a while."""
    alpha, beta = site.machines["alpha"], site.machines["beta"]
    old = site.keys("alpha")["used"]
    for step in blocks("The key", "docs/security.md"):
        change, copy, restart = step.splitlines()
        assert copy.startswith("scp ")
        alpha.call(change)
        beta.call("cat > /etc/coloha/key <<'END'\n" + alpha.call("cat /etc/coloha/key"))
        for machine in (alpha, beta):
            machine.call(restart)
            site.wait_protected()
            site.wait_epochs(site.wait_protected()[0])
    new = site.keys("alpha")["used"]
    assert new != old

    def is_alone_in_use() -> bool:
        return all(
            site.keys(name) == {"used": new, "accepted": [], "of_peers": {peer: new}}
            for name, peer in (("alpha", "beta"), ("beta", "alpha"))
        )

    # The VM is protected before the daemon that restarted last has heard the other one.
    wait_until(is_alone_in_use, "the new key on both", PROTECTED_S)
    for name in site.machines:
        rejected = site.daemon_status(name)["heartbeats_rejected"]
        assert not rejected.get("key")
        assert not rejected.get("mac")


def new_version_is_installed(site: Site) -> None:
    old = {name: current(site, name) for name in site.machines}
    site.on_both(f"cd coloha && {OFFLINE} sh systemd/install.sh", INSTALL_S)
    for name, machine in site.machines.items():
        new = current(site, name)
        assert machine.call("readlink /opt/coloha/previous").strip() == old[name] != new
        machine.call("systemctl restart coloha")
        site.wait_protected()
        pid = site.main_pid(name, "coloha.service")
        assert new in machine.call(f"tr '\\0' ' ' < /proc/{pid}/cmdline")
        site.answers_go_on()


def current(site: Site, name: str) -> str:
    return site.machines[name].call("readlink /opt/coloha/current").strip()


def events_are_in_the_journal(site: Site) -> None:
    said = site.machines[site.wait_protected()[0]].call(
        f"journalctl --output=json COLOHA_PAIR=web MESSAGE_ID={message_id('protected')}"
    )
    entry = json.loads(said.splitlines()[0])
    assert entry["COLOHA_KIND"] == "protected"
    assert entry["MESSAGE"].startswith("web: protected: ")
    assert entry["PRIORITY"] == "6"
    assert entry["_SYSTEMD_UNIT"] == "coloha.service"


def daemon_that_hangs_is_restarted(site: Site) -> None:
    primary, secondary = site.wait_protected()
    machine = site.machines[secondary]
    machine.call(WATCHDOG)
    site.wait_protected()
    pid = site.main_pid(secondary, "coloha.service")
    machine.call(f"kill -STOP {pid}")
    wait_until(lambda: site.main_pid(secondary, "coloha.service") not in (0, pid), "a restart")
    assert "watchdog" in machine.call("journalctl --no-pager -u coloha").lower()
    assert site.wait_protected() == (primary, secondary)
    site.answers_go_on()


def qemu_is_stopped(site: Site) -> None:
    primary, secondary = site.wait_protected()
    site.machines[primary].call(f"systemctl stop {QEMU}")
    site.wait_failed_over(secondary)
    site.answers_go_on()


def host_is_shut_down(site: Site) -> None:
    """The other node need not wait for a daemon that may come back: QEMU's end was told."""
    primary, secondary = site.wait_protected()
    machine = site.machines[primary]
    asked = time.time()
    machine.run("systemctl poweroff --no-block")
    wait_until(lambda: "promoted" in site.kinds(secondary)[-10:], "a failover")
    told = [event for event in site.events(secondary) if event["kind"] == "claimed"][-1]
    print(f"claimed {told['at']} after the order at {asked}: {told['text']}")
    assert "silent" not in told["text"]
    site.answers_go_on()
    machine.power_off()
    machine.power_on()
    assert site.wait_protected() == (secondary, primary)
