"""Hosts made of Linux namespaces, the networks between them, and what can go wrong with both.

    client 10.77.0.2 ---- [clients] ---- uplink of each host, in its br0 beside the taps of its VMs
                          [direct]  ---- repl0 of each host: 10.9.0.1, 10.9.0.2, ...

Both bridges live in a namespace of their own, `world`, the way switches stand outside the hosts.
All of it belongs to the process that made it and ends with it, even by SIGKILL; nothing appears in
the machine's own network, so any number of topologies can run side by side.
"""

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.namespace import LabError, Namespace

CLIENT_IP = "10.77.0.2"
GUEST_IP = "10.77.0.10"
"""Where the lab guest answers, unless told otherwise."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
_DEAF = "coloha_lab_deaf"
_BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"


def _chosen(replication: bool, clients: bool, witness: bool) -> set[str]:
    choice = {"replication": replication, "clients": clients, "witness": witness}
    return {name for name, chosen in choice.items() if chosen}


class Host(Namespace):
    """One host: a bridge `br0` towards the clients, `repl0` towards its peers, a witness folder.

    Its folders survive a loss of power: `state` (what a disk keeps), `runtime` (sockets),
    `witness` (the shared folder, as this host sees it).
    """

    def __init__(self, name: str, index: int, directory: Path, world: Namespace, shared: Path):
        super().__init__(name, directory)
        self.replication_ip = f"10.9.0.{index}"
        self.state, self.runtime = directory / "state", directory / "run"
        self.witness = directory / "witness"
        for folder in (self.state, self.runtime, self.witness):
            folder.mkdir(parents=True, exist_ok=True)
        self._index, self._world, self._shared = index, world, shared
        # The far ends of its cables. To pull one out is to close its port at the switch: the host
        # sees the carrier go and everything else stays as it was.
        self.ports = {"replication": f"re-{name}", "clients": f"up-{name}"}
        self._cut: set[str] = set()
        self._deaf = False

    def connect(self) -> None:
        """Plug the host's cables in, as they were before it lost power; `start` comes before."""
        mac = f"02:c0:10:a0:{{}}:{self._index:02x}"
        self._world.ip(
            f"link add {self.ports['clients']} type veth"
            f" peer name uplink address {mac.format('01')} netns {self.pid}\n"
            f"link add {self.ports['replication']} type veth"
            f" peer name repl0 address {mac.format('02')} netns {self.pid}\n"
            f"link set {self.ports['clients']} master clients\n"
            f"link set {self.ports['replication']} master direct\n"
        )
        self.ip(
            "link set lo up\n"
            # With an address of its own the bridge does not take on that of a tap that joins.
            f"link add br0 address {mac.format('03')} {_BRIDGE}\n"
            "link set uplink master br0 up\n"
            "link set br0 up\n"
            f"addr add {self.replication_ip}/24 dev repl0\n"
            "link set repl0 up\n"
        )
        self._deaf = False
        self._join({"replication", "clients", "witness"} - self._cut)

    def _part(self, chosen: set[str]) -> None:
        self._set_ports(chosen, "down")
        if "witness" in chosen:
            self.unbind(self.witness)

    def _join(self, chosen: set[str]) -> None:
        if "witness" in chosen:
            self.bind(self._shared, self.witness)
        self._set_ports(chosen, "up")

    def _set_ports(self, chosen: set[str], state: str) -> None:
        ports = [port for name, port in self.ports.items() if name in chosen]
        if ports:
            self._world.ip("".join(f"link set {port} {state}\n" for port in ports))

    def cut(self, *, replication: bool = True, clients: bool = True, witness: bool = True) -> None:
        """Cut the host off: cables pulled, the witness folder unmounted (an empty folder, as such
        a mount point is; a file in it that is open stays so). Outlasts a loss of power.
        """
        new = _chosen(replication, clients, witness) - self._cut
        self._cut |= new
        if self.alive:
            self._part(new)

    def mend(self, *, replication: bool = True, clients: bool = True, witness: bool = True) -> None:
        """Undo `cut`, and all of `cut_one_way` unless only the witness is chosen."""
        old = _chosen(replication, clients, witness) & self._cut
        self._cut -= old
        if self.alive:
            if self._deaf and (replication or clients):
                self._hear_all()
            self._join(old)

    def cut_one_way(
        self, *, replication: bool = True, clients: bool = False, only: str | None = None
    ) -> None:
        """Make the host deaf: what arrives is dropped, what it says is heard. Until `mend`.

        `only` is a match of nftables ("udp dport 7771"): nothing else is dropped.
        """
        deaf = {"repl0": replication, "uplink": clients}
        rule = "policy drop;" if only is None else f"policy accept; {only} drop;"
        chains = "".join(
            f"chain {name} {{ type filter hook ingress device {name} priority 0; {rule} }}\n"
            for name, chosen in deaf.items()
            if chosen
        )
        self._hear_all()
        self._deaf = True
        self._nft(f"table netdev {_DEAF} {{\n{chains}}}\n")

    def _hear_all(self) -> None:
        self._deaf = False
        self._nft(f"add table netdev {_DEAF}\ndelete table netdev {_DEAF}\n")

    def _nft(self, rules: str) -> None:
        done = self.run(["nft", "-f", "-"], stdin=rules)
        if done.returncode != 0:
            raise LabError(f"{self.name}: nft: {done.stderr.strip()}")

    def power_off(self) -> None:
        """Take the host's power away, and return when nothing of it is left.

        The cables go first: a kernel that kills a process closes its connections in good order,
        and a host without power says no goodbyes.
        """
        if self.alive:
            self._world.ip(
                f"link del {self.ports['clients']}\nlink del {self.ports['replication']}\n"
            )
        self.kill()

    def power_on(self) -> None:
        """Fresh namespaces under the same name, with the same addresses and folders."""
        self.start()
        self.wait_ready()
        self.connect()


class Topology:
    """Hosts, a client's namespace (10.77.0.2) and the world between them; a context manager.

    `directory` is where everything lies, and stays; without it that is a temporary folder, removed
    at the end unless `keep`. `witness` is the folder that the hosts share, by default one inside.
    """

    def __init__(
        self,
        hosts: Sequence[str] = ("alpha", "beta"),
        *,
        witness: Path | None = None,
        directory: Path | None = None,
        keep: bool = False,
    ) -> None:
        for name in hosts:
            if not _NAME.fullmatch(name):
                raise LabError(
                    f"host name {name!r}: use up to 12 of a-z, 0-9 and -, a letter first"
                )
        self.directory = (directory or Path(tempfile.mkdtemp(prefix="coloha-"))).absolute()
        self._keep = keep or directory is not None
        self.witness = (witness or self.directory / "witness").absolute()
        for folder in (self.directory, self.witness):
            folder.mkdir(parents=True, exist_ok=True)
        self.world = Namespace("world", self.directory)
        self.client = Namespace("client", self.directory)
        self.hosts = {
            name: Host(name, index, self.directory / "hosts" / name, self.world, self.witness)
            for index, name in enumerate(hosts, 1)
        }

    def __enter__(self) -> Self:
        try:
            everything = (self.world, self.client, *self.hosts.values())
            for namespace in everything:
                namespace.start()
            for namespace in everything:
                namespace.wait_ready()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self) -> None:
        self.world.ip(
            "link set lo up\n"
            f"link add clients {_BRIDGE}\n"
            f"link add direct {_BRIDGE}\n"
            "link set clients up\n"
            "link set direct up\n"
            "link add client type veth"
            f" peer name eth0 address 02:c0:10:a0:00:02 netns {self.client.pid}\n"
            "link set client master clients up\n"
        )
        self.client.ip(f"link set lo up\naddr add {CLIENT_IP}/24 dev eth0\nlink set eth0 up\n")
        for host in self.hosts.values():
            host.connect()

    def close(self) -> None:
        """End everything inside and remove the folder, unless it is to be kept."""
        with contextlib.ExitStack() as stack:
            if not self._keep:
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for namespace in (self.world, self.client, *self.hosts.values()):
                stack.callback(namespace.kill)

    def run_in_client(
        self, argv: Sequence[str | Path], timeout_s: float = 10.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the client's namespace to its end; see `Namespace.run`."""
        return self.client.run(argv, timeout_s)

    def popen_in_client(self, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in the client's namespace; see `Namespace.popen`."""
        return self.client.popen(argv, **options)
