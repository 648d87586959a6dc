"""A whole Debian on a host of the lab: systemd as process 1, in a container.

It lives in the host's namespaces, so the host's power switch is its own, and its cables are the
host's. What it writes is in a folder of the host, over a root that all share; it survives a loss of
power. Needs root.
"""

import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.namespace import LabError, wait_until
from lab.topology import Host

BOOT_S = 20.0
_DEVICES = ("/dev/net/tun",)

_ENTER = """
umount -l /sys  # the lab's has no control groups, which systemd needs
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  if [ -e $hierarchy/cgroup.procs ]; then
    mkdir -p $hierarchy/$0 && echo $$ > $hierarchy/$0/cgroup.procs
  fi
done
exec "$@"
"""


class Machine:
    """The Debian of one host."""

    def __init__(self, host: Host, root: Path, binds: Sequence[str] = ()) -> None:
        """`root` is the system that is started from, `binds` are systemd-nspawn's --bind."""
        self.host = host
        self._root = root
        self._binds = (*_DEVICES, *binds)
        self._leader = -1
        self._group = f"coloha-lab-{secrets.token_hex(4)}"
        self.files = host.directory / "machine"
        """Its root, while the host is on; from outside, what it has written is in `written`."""
        self.written = host.directory / "written"

    def start(self) -> None:
        """Boot it; return when systemd is done."""
        for folder in (self.files, self.written, self.host.directory / "work"):
            folder.mkdir(exist_ok=True)
        identity = self.written / "etc/machine-id"
        if not identity.exists():
            identity.parent.mkdir(exist_ok=True)
            identity.write_text(secrets.token_hex(16) + "\n")
        layers = (
            f"lowerdir={self._root},upperdir={self.written},workdir={self.host.directory / 'work'}"
        )
        self.host.call(["mount", "-t", "overlay", "overlay", "-o", layers, self.files])
        with (self.host.directory / "boot.log").open("ab") as log:
            process = self.host.popen(
                [
                    *("unshare", "--mount", "sh", "-e", "-c", _ENTER, self._group),
                    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit"),
                    *("--directory", self.files, "--machine", self.host.name, "--boot"),
                    *("--network-namespace-path=/proc/self/ns/net", "--console=pipe"),
                    "--capability=CAP_NET_ADMIN",
                    *(f"--bind={bind}" for bind in self._binds),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def is_up() -> bool:
            if process.poll() is not None:
                raise LabError(f"{self.host.name} does not boot: {self.boot_log()}")
            # Others come first: the container is made in steps.
            self._leader = int((children.read_text().split() or ["-1"])[-1])
            state = self.run("systemctl is-system-running").stdout.strip()
            return state in ("running", "degraded")

        wait_until(is_up, f"systemd of {self.host.name}", BOOT_S)

    @property
    def on(self) -> bool:
        """Whether it has been started."""
        return self._leader > 0

    def boot_log(self) -> str:
        """What the console said."""
        return (self.host.directory / "boot.log").read_text(errors="replace")[-2000:]

    def power_off(self) -> None:
        """Everything on the host is gone at once."""
        self.host.power_off()
        self._leader = -1
        for top in Path("/sys/fs/cgroup").rglob(self._group):
            for group in sorted((path for path in top.rglob("*/")), reverse=True):
                group.rmdir()
            top.rmdir()

    def power_on(self) -> None:
        """Boot it again."""
        self.host.power_on()
        self.start()

    def path(self, path: str) -> Path:
        """A path of the machine as it is seen from here."""
        return Path(f"/proc/{self._leader}/root{path}")

    def run(self, script: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a script of the shell, as root with a login's environment; the caller judges."""
        pid = self._leader
        argv = ["nsenter", "--target", str(pid), "--all", f"--wd=/proc/{pid}/root"]
        clean = ["env", "-i", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            [*argv, *clean, path, "sh", "-e", "-c", f"cd\n{script}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def call(self, script: str, timeout_s: float = 60.0) -> str:
        """Run a script that must succeed; return what it printed."""
        done = self.run(script, timeout_s)
        if done.returncode:
            said = done.stdout + done.stderr
            raise LabError(f"{self.host.name}: {script}: exit status {done.returncode}: {said}")
        return done.stdout
