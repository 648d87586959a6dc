"""docs/security.md: the modes of a daemon's files, the firewall's rules, the limits."""

import re
import stat
import subprocess
from pathlib import Path

import pytest

from coloha.adapters import channel
from coloha.config import load
from tests.docs.pages import DOCS, blocks, code, rows, section
from tests.runtime.daemon_support import Daemon

PAGE = DOCS / "security.md"
ONE_LOOP = pytest.mark.parametrize("daemons", ["uvloop"], indirect=True)


@ONE_LOOP
def test_the_files_of_a_daemon_have_these_modes(alpha: Daemon) -> None:
    alpha.start()
    alpha.wait(lambda: alpha.events("launch-failed"), "the launch that fails")
    alpha.wait((alpha.folder / "state" / "flight" / "vm").exists, "the flight record")
    places = {"/run/coloha": alpha.folder / "run", "/var/lib/coloha": alpha.folder / "state"}
    seen = 0
    for path, mode, _ in rows(section(PAGE, "Files")):
        name = next(iter(re.findall(r"`([^`]+)`", path)))
        for said, place in places.items():
            if name.startswith(said):
                real = Path(str(place) + name.removeprefix(said).replace("PAIR", "vm"))
                assert f"{stat.S_IMODE(real.stat().st_mode):04o}" == mode, name
                seen += 1
    assert seen == 6
    record = alpha.folder.parent / "witness" / "vm.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert alpha.stop() == 0


@ONE_LOOP
def test_a_key_that_others_may_read_is_refused(alpha: Daemon) -> None:
    key = alpha.folder / "key"
    key.chmod(0o640)
    assert "open to others" in alpha.cli("check", status=2)
    key.chmod(0o600)
    assert load(alpha.host_file).host.node == "alpha"


def test_the_firewalls_rules_are_nftables() -> None:
    (rules,) = [block for block in blocks(PAGE) if block.language == "nft"]
    for text, good in ((rules.text, True), (rules.text.replace("accept", "let in"), False)):
        argv = ["nft", "--check", "--file", "-"]
        checked = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        assert (checked.returncode == 0) is good, checked.stderr


def test_the_limits_are_the_codes() -> None:
    text = PAGE.read_text()
    limits = f"at most {channel.MAX_HANDSHAKES} handshakes at once, {channel.HANDSHAKE_S:g} s each"
    assert limits in text


@ONE_LOOP
def test_what_listens_is_a_setting(alpha: Daemon) -> None:
    fields = load(alpha.host_file).host.model_dump()
    for row in rows(section(PAGE, "What listens")):
        name = code(row[1].split(",")[0].split(" ")[0]) if row[1].startswith("`") else ""
        if name and name != "control.sock":
            top, _, rest = name.partition(".")
            assert top in fields
            assert not rest or rest in fields[top]
