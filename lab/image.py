"""Builds what the Dockerfile says without a container engine, and tries it: `python -m lab.image`.

Each stage is a debootstrapped root of its own in which its steps are carried out. What comes of the
last one is then run as the image's user, with no capability but CAP_NET_ADMIN at most: the daemon
must start a VM on a tap that it made, and the health check must say yes, and no when the daemon is
gone. Needs root, debootstrap, KVM and the network; takes some minutes.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.namespace import CHECKOUT, PATIENCE_S, LabError, Namespace, wait_until

DOCKERFILE = CHECKOUT / "Dockerfile"
BASE = re.compile(r"debian:(\w+)-slim")

KVM = "tmp/kvm"
"""The image's user may use this one, as by a container's --group-add."""

FILES = {
    "etc/coloha/coloha.yaml": """\
node: alpha
listen: {channel: 127.0.0.1:7770, heartbeat: 127.0.0.1:7771}
key_file: key
""",
    "etc/coloha/key": "0123456789abcdef" * 4,
    "etc/coloha/pairs.d/vm.yaml": """\
pair: vm
nodes:
  alpha: {channel: 127.0.0.1:7770, heartbeat: 127.0.0.1:7771}
  beta: {channel: 127.0.0.2:7770, heartbeat: 127.0.0.2:7771}
vm:
  memory: 16MiB
  nics: [{mac: "52:54:00:12:34:56", bridge: br0}]
witness: {type: file, directory: /var/lib/coloha/witness}
""",
}


@dataclass(frozen=True)
class Step:
    """One instruction, its continued lines joined."""

    line: int
    word: str
    rest: str


@dataclass
class Stage:
    """What was made of a stage so far."""

    root: Path
    name: str = ""
    folder: str = "/"
    user: str = "0"
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
    )
    entry: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def read(text: str) -> Iterator[Step]:
    """Yield the instructions of a Dockerfile."""
    begun, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun or number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.endswith("\\"):
            word, _, rest = " ".join(parts).partition(" ")
            yield Step(begun, word, rest)
            begun, parts = 0, []
    if parts:
        raise LabError(f"line {begun}: the last line is continued")


def copied(step: Step) -> tuple[str, list[str], str]:
    """Return from which stage (none: the tree), what, and where to a COPY copies."""
    words = step.rest.split()
    stage = ""
    if words[0].startswith("--from="):
        stage = words.pop(0).removeprefix("--from=")
    return stage, words[:-1], words[-1]


def ignored(text: str, path: str) -> bool:
    """Return whether a .dockerignore of this form (all, but...) keeps `path` out."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return "*" in lines and f"!{Path(path).parts[0]}" not in lines


class Builder:
    """Carries the instructions out."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._stages: list[Stage] = []

    def build(self, steps: list[Step]) -> Stage:
        """Return the last stage.

        :raises LabError: for an instruction that is not known, or a step that fails.
        """
        for step in steps:
            print(f"{step.line:3}  {step.word} {step.rest[:90]}", flush=True)
            call = getattr(self, f"_{step.word.lower()}", None)
            if call is None:
                raise LabError(f"line {step.line}: {step.word} is not known here: add it")
            call(step)
        return self._stages[-1]

    def _from(self, step: Step) -> None:
        image, *named = step.rest.split()
        base = BASE.fullmatch(image)
        if base is None:
            raise LabError(f"line {step.line}: {image} is not one of Debian's slim images")
        root = self._work / f"stage{len(self._stages)}"
        _see(["cp", "--archive", str(self._debian(base[1])), str(root)])
        self._stages.append(Stage(root, named[-1] if named else ""))

    def _debian(self, release: str) -> Path:
        """Return a root of this release as a slim image has it."""
        root = self._work / release
        if not root.exists():
            script = f". {CHECKOUT}/lab/debian.sh; debian_mirror"
            mirror = subprocess.check_output(["sh", "-euc", script], text=True).strip()
            _see(["debootstrap", "--variant=minbase", release, str(root), mirror])
        return root

    def _run(self, step: Step) -> None:
        self._do(self._stages[-1], step.rest)

    def _do(self, stage: Stage, command: str) -> None:
        shutil.copy("/etc/resolv.conf", stage.root / "etc/resolv.conf")
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        more = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.endswith("_proxy")}
        if certificates.exists():  # the network may have an authority of its own
            inside = stage.root / "tmp/ca-certificates.crt"
            shutil.copy(certificates, inside)
            more["PIP_CERT"] = f"/{inside.relative_to(stage.root)}"
        words = f"cd {shlex.quote(stage.folder)} && {command}"
        _see(_inside(stage, ["/bin/sh", "-c", words], more))

    def _copy(self, step: Step) -> None:
        stage = self._stages[-1]
        name, sources, target = copied(step)
        origin = CHECKOUT
        if name:
            origin = next(other.root for other in self._stages if other.name == name)
        place = stage.root / (Path(stage.folder) / target).as_posix().lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                left_out = shutil.ignore_patterns("__pycache__") if not name else None
                shutil.copytree(path, place, symlinks=True, ignore=left_out, dirs_exist_ok=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)

    def _workdir(self, step: Step) -> None:
        self._stages[-1].folder = step.rest
        (self._stages[-1].root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _env(self, step: Step) -> None:
        name, _, value = step.rest.partition("=")
        self._stages[-1].environment[name] = value

    def _user(self, step: Step) -> None:
        self._stages[-1].user = step.rest

    def _entrypoint(self, step: Step) -> None:
        self._stages[-1].entry = json.loads(step.rest)

    def _cmd(self, step: Step) -> None:
        self._stages[-1].entry += json.loads(step.rest)

    def _healthcheck(self, step: Step) -> None:
        self._stages[-1].health = json.loads(step.rest.partition("CMD ")[2])

    def _label(self, step: Step) -> None:
        """Nothing comes of it here."""

    _volume = _label


def _see(argv: list[str]) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout.decode(errors="replace")[-3000:])
        raise LabError(f"exit status {done.returncode}: {shlex.join(argv)[-300:]}")


def _inside(stage: Stage, argv: list[str], more: dict[str, str] | None = None) -> list[str]:
    """Return a command that runs `argv` in the stage, with the host's network."""
    root = shlex.quote(str(stage.root))
    environment = [f"{k}={v}" for k, v in (stage.environment | (more or {})).items()]
    mounts = f"mount -t proc proc {root}/proc; mount -t sysfs sysfs {root}/sys"
    mounts += f"; mount --rbind /dev {root}/dev"
    if (stage.root / KVM).exists():
        mounts += f"; mount --bind {root}/{KVM} {root}/dev/kvm"
    words = shlex.join(["env", "-i", *environment, *argv])
    return ["unshare", "--mount", "sh", "-euc", f"{mounts}; exec chroot {root} {words}"]


def _as_user(stage: Stage, argv: list[str]) -> list[str]:
    """Return a command that runs `argv` as a container would: as its user, of few capabilities."""
    drop = ["setpriv", f"--reuid={stage.user}", f"--regid={stage.user}", "--clear-groups"]
    few = ["--bounding-set=-all,+net_admin", "--inh-caps=-all"]
    return _inside(stage, [*drop, *few, *argv])


def attempt(stage: Stage) -> None:
    """Run the image's command in a namespace of its own, and see that it works.

    :raises LabError: if it does not.
    """
    for name, text in FILES.items():
        path = stage.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    witness, key = stage.root / "var/lib/coloha/witness", stage.root / "etc/coloha/key"
    witness.mkdir()
    key.chmod(0o600)
    kvm = stage.root / KVM
    os.mknod(kvm, stat.S_IFCHR | 0o600, Path("/dev/kvm").stat().st_rdev)
    for path in (witness, key, kvm):
        os.chown(path, int(stage.user), int(stage.user))
    host = Namespace("image", stage.root)
    host.start()
    try:
        host.wait_ready()
        host.ip("link set lo up\nlink add br0 type bridge\nlink set br0 up")
        with (stage.root / "tmp/log").open("w") as log:
            daemon = host.popen(_as_user(stage, stage.entry), stdout=log, stderr=log)
        wait_until(lambda: " started: " in _told(host, stage), f"the VM, see {log.name}")
        print(_told(host, stage), end="")
        if host.run(_as_user(stage, stage.health)).returncode:
            raise LabError("the health check says no")
        daemon.terminate()
        daemon.wait(PATIENCE_S)
        if host.run(_as_user(stage, stage.health)).returncode == 0:
            raise LabError("the health check says yes although the daemon is gone")
    finally:
        host.kill()
    print("the daemon ran a VM as the image's user; the health check said yes, then no")


def _told(host: Namespace, stage: Stage) -> str:
    return host.run(_as_user(stage, [stage.entry[0], "events"])).stdout


def main() -> int:
    """Build in a temporary folder, try, say how long it took."""
    if os.geteuid() != 0:
        print("lab.image: debootstrap needs root", file=sys.stderr)
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="image-") as work:
        try:
            attempt(Builder(Path(work)).build(list(read(DOCKERFILE.read_text()))))
        except LabError as error:
            print(f"lab.image: {error}", file=sys.stderr)
            return 1
    print(f"all steps of the Dockerfile work ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
