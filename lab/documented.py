"""COLO brought up the way QEMU's manual documents it (docs/system/qemu-colo.rst), for comparison.

The secondary listens at a `tcp:` URI, the primary migrates to it, and QEMU itself takes a
checkpoint every x-checkpoint-delay. Nothing holds the guest's output here.
"""

import asyncio
import subprocess

from coloha.core.commit import Message
from coloha.qemu.qmp import Monitor
from coloha.qemu.steps import Command
from lab.assets import Assets
from lab.cluster import MAC
from lab.namespace import LabError
from lab.topology import GUEST_IP, Host, Topology

PORT = 9998
TAP = "tap0"
PATIENCE_S = 30.0


class _Qemu:
    """One side: the process, its monitor, and its events."""

    def __init__(self, host: Host, assets: Assets, *, incoming: bool) -> None:
        host.ip(f"tuntap add dev {TAP} mode tap\nlink set {TAP} master br0\nlink set {TAP} up\n")
        self.host = host
        self.events: asyncio.Queue[Message] = asyncio.Queue()
        self._sockets = (host.directory / "m.sock", host.directory / "o.sock")
        sink = (
            *("-chardev", "null,id=null0"),
            *("-object", "filter-redirector,id=sink0,netdev=net0,queue=rx,outdev=null0"),
            *("-incoming", "defer"),
        )
        self.process = host.popen(
            [
                *(assets.qemu, "-accel", "tcg", "-m", "128M", "-nodefaults", "-display", "none"),
                *("-kernel", assets.kernel, "-initrd", assets.initrd),
                *("-append", f"console=ttyS0 quiet panic=-1 ip4={GUEST_IP}/24"),
                *("-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no,vhost=off"),
                *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
                *self._monitors(),
                *(sink if incoming else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.monitor = Monitor(host.name, self.events.put_nowait)

    def _monitors(self) -> list[str]:
        return [
            word for path in self._sockets for word in ("-qmp", f"unix:{path},server=on,wait=off")
        ]

    async def connect(self) -> None:
        """Connect the monitor."""
        main, oob = self._sockets
        await self.monitor.connect(main, oob, PATIENCE_S, lambda: self.process.poll() is None)

    async def do(self, name: str, **arguments: object) -> None:
        """Execute a command; underscores stand for hyphens."""
        command = Command(name, {key.replace("_", "-"): v for key, v in arguments.items()})
        (reply,) = await self.monitor.call((command,), PATIENCE_S)
        if reply.error is not None:
            raise LabError(f"{name}: {reply.error}")

    async def until(self, name: str, status: str | None = None) -> float:
        """Wait for an event; return when it came."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self.events.get()
                found = event.data.get("status") if isinstance(event.data, dict) else None
                if event.name == name and status in (None, found):
                    return event.at


async def documented_pauses(
    topology: Topology, assets: Assets, period_ms: int, count: int, boot_s: float
) -> list[float]:
    """Return the guest's pause, STOP to RESUME, of `count` checkpoints, milliseconds."""
    alpha, beta = topology.hosts.values()
    primary = _Qemu(alpha, assets, incoming=False)
    await primary.connect()
    await asyncio.sleep(boot_s)
    secondary = _Qemu(beta, assets, incoming=True)
    await secondary.connect()
    try:
        return await _pauses(primary, secondary, period_ms, count)
    finally:
        for side in (primary, secondary):
            await side.monitor.close()
            side.process.kill()


async def _pauses(primary: _Qemu, secondary: _Qemu, period_ms: int, count: int) -> list[float]:
    capabilities = [
        {"capability": name, "state": True} for name in ("x-colo", "return-path", "events")
    ]
    for side in (secondary, primary):
        await side.do("migrate-set-capabilities", capabilities=capabilities)
    uri = f"tcp:{secondary.host.replication_ip}:{PORT}"
    await secondary.do("migrate-incoming", uri=uri)
    await primary.do("migrate-set-parameters", x_checkpoint_delay=period_ms)
    await primary.do("migrate", uri=uri)
    await primary.until("MIGRATION", "colo")
    await primary.until("RESUME")
    pauses = []
    for _ in range(count):
        stopped = await primary.until("STOP")
        pauses.append((await primary.until("RESUME") - stopped) * 1000)
    return pauses
