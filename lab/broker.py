"""A Mosquitto, started, hurt and listened to from here."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.assets import Assets
from lab.namespace import LabError, wait_until

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")

Popen = Callable[..., "subprocess.Popen[Any]"]


def _popen_here(argv: list[str | Path], **options: Any) -> "subprocess.Popen[Any]":
    return subprocess.Popen([*_DIES_WITH_US, *argv], **options)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM: of the authority, and the broker's own."""

    ca: Path
    certificate: Path
    key: Path
    of_clients: bool = False
    """Whether clients must show one of the authority's."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a listener heard."""

    topic: str
    payload: str
    retained: bool

    def json(self) -> Any:
        """What the payload says."""
        return json.loads(self.payload)


class Broker:
    """One broker in `folder`; what listeners subscribed to outlasts its end.

    A context manager that starts it, and ends it and its listeners.
    """

    def __init__(
        self,
        assets: Assets,
        folder: Path,
        port: int,
        *,
        ip: str = "127.0.0.1",
        users: Mapping[str, str] | None = None,
        tls: Certificates | None = None,
        access: str | None = None,
        popen: Popen = _popen_here,
    ) -> None:
        """`users` are let in by their passwords, the first is who listens; without them everybody
        is. `access` is a list
        of Mosquitto's; without one everybody may do everything.
        """
        self.ip, self.port = ip, port
        self._assets = assets
        self._folder = folder
        self._popen = popen
        self._tls = tls
        self._process: subprocess.Popen[Any] | None = None
        self._listeners: list[subprocess.Popen[Any]] = []
        self._login: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        # user: or it would give up the right to its own files.
        lines = [f"listener {port} {ip}", "user root", "log_type all", "persistence true"]
        # Once a second: what listeners subscribed to outlasts a SIGKILL.
        lines += [f"persistence_location {folder}/", "autosave_interval 1"]
        if users is None:
            lines.append("allow_anonymous true")
        else:
            self.set_users(users)
            lines += ["allow_anonymous false", f"password_file {folder / 'users'}"]
        if access is not None:
            (folder / "access").write_text(access)
            (folder / "access").chmod(0o600)
            lines.append(f"acl_file {folder / 'access'}")
        if tls is not None:
            lines += [f"cafile {tls.ca}", f"certfile {tls.certificate}", f"keyfile {tls.key}"]
            lines.append(f"require_certificate {str(tls.of_clients).lower()}")
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        """As the host file has it."""
        return f"mqtt{'s' if self._tls else ''}://{self.ip}:{self.port}"

    @property
    def log(self) -> str:
        """What it said so far."""
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""

    def set_users(self, users: Mapping[str, str]) -> None:
        """Let in these users, from the next start on."""
        file = self._folder / "users"
        file.write_text("".join(f"{user}:{password}\n" for user, password in users.items()))
        file.chmod(0o600)
        subprocess.run([self._assets.mosquitto_passwd, "-U", file], check=True, timeout=30)
        self._login = next(["-u", user, "-P", password] for user, password in users.items())

    def start(self) -> None:
        """Start it, and wait until it serves."""
        lives = self.log.count(" running")
        argv = [self._assets.mosquitto, "-c", self._folder / "mosquitto.conf"]
        with (self._folder / "log").open("a") as log:
            self._process = self._popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(lambda: self.log.count(" running") > lives, "a broker", 30)
        except LabError as error:
            raise LabError(f"{error}:\n{self.log}") from None

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self._process is not None:
            self.send(number)
            self._process.wait(30)
            self._process = None

    def forget(self) -> None:
        """Lose what was retained, and who listened; while it does not run."""
        (self._folder / "mosquitto.db").unlink(missing_ok=True)

    def listen(self, topic: str = "#", name: str = "listener") -> "Listener":
        """Return who hears all about a topic from now on, while it lasts."""
        words = ["-h", self.ip, "-p", str(self.port), "-t", topic, "-q", "1", *self._login]
        words += ["-i", name, "-c", "-k", "5", "-F", "%j"]
        if self._tls is not None:
            words += ["--cafile", str(self._tls.ca)]
        heard = self._folder / f"{name}.jsonl"
        subscribed = self.log.count(f"Sending SUBACK to {name}")
        with heard.open("w") as file:
            self._listeners.append(
                self._popen(
                    [self._assets.mosquitto_sub, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.DEVNULL,
                )
            )
        wait_until(
            lambda: self.log.count(f"Sending SUBACK to {name}") > subscribed, "a listener", 30
        )
        return Listener(heard)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for listener in self._listeners:
            listener.kill()
            listener.wait()
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.kill(self._process.pid, signal.SIGCONT)
        self.stop(signal.SIGKILL)


class Listener:
    """What a client of the broker heard, in order."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def messages(self) -> list[Message]:
        """All so far."""
        lines = self._file.read_text().split("\n")[:-1]
        plain = [json.loads(line) for line in lines if line]
        return [Message(m["topic"], m.get("payload", ""), bool(m["retain"])) for m in plain]

    def of(self, topic: str) -> list[Message]:
        """Those of topics that end so."""
        return [message for message in self.messages if message.topic.endswith(topic)]

    def events(self) -> list[dict[str, Any]]:
        """The events, each once, as one who drops repeats has them."""
        found = [message.json() for message in self.of("/events")]
        return list({event["id"]: event for event in found}.values())
