"""Plain QEMU, without COLO: what the guest does when nobody interferes."""

import json
import socket
from typing import Any

from lab.assets import load_assets
from lab.namespace import wait_until
from lab.topology import Host

MAC = "52:54:00:00:00:01"


class Vm:
    """The lab guest in a host, on a tap that is a port of its br0."""

    def __init__(self, host: Host, words: str = "", *, mac: str = MAC, network: bool = True):
        self.host, self.serial = host, host.directory / "serial"
        self._qmp = host.runtime / "qmp"
        assets = load_assets()
        nic = ["-nic", "none"]
        if network:
            host.ip("tuntap add vm0 mode tap\nlink set vm0 master br0 up\n")
            tap = "tap,id=n0,ifname=vm0,script=no,downscript=no,vhost=off"
            nic = ["-netdev", tap, "-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile="]
        self.process = host.popen(
            [
                *(assets.qemu, "-accel", "tcg", "-m", "128", "-nodefaults", "-no-user-config"),
                *("-display", "none", "-no-reboot", "-serial", f"file:{self.serial}"),
                *("-qmp", f"unix:{self._qmp},server=on,wait=off"),
                *("-kernel", assets.kernel, "-initrd", assets.initrd),
                *("-append", f"console=ttyS0 quiet panic=-1 {words}", *nic),
            ]
        )

    def said(self) -> str:
        """What is on its console."""
        return self.serial.read_text() if self.serial.exists() else ""

    def wait_ready(self) -> None:
        """Return once its service runs."""
        wait_until(lambda: "lab guest: ready" in self.said(), "the guest's start", 60)

    def qmp(self, command: str, **arguments: object) -> Any:
        """The answer to one command, over a connection of its own."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._qmp))
            with connection.makefile("rw") as lines:
                lines.readline()
                answer: dict[str, Any] = {}
                for name, values in (("qmp_capabilities", {}), (command, arguments)):
                    lines.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                    lines.flush()
                    answer = json.loads(lines.readline())
                    while "event" in answer:
                        answer = json.loads(lines.readline())
        return answer["return"]

    def dirty_rate_mb_s(self) -> int:
        """How much memory the guest changes per second, as QEMU measures it (MiB/s)."""
        self.qmp("calc-dirty-rate", **{"calc-time": 1})
        wait_until(lambda: self.qmp("query-dirty-rate")["status"] == "measured", "the dirty rate")
        rate: int = self.qmp("query-dirty-rate")["dirty-rate"]
        return rate
