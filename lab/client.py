"""A client that keeps one TCP connection to the lab guest and checks every answer.

    python -m lab.client --server 10.77.0.10:7 [--seconds 10] [--report FILE]

Writes one JSON object per line, about ten per second, and a last one, with `final` true, at the
end: after --seconds, on SIGTERM or SIGINT, or when the connection breaks. Exit status: 0 if every
request got its one right answer, 1 if not.
"""

import argparse
import contextlib
import dataclasses
import json
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from lab.answers import AnswerChecker, Gaps
from lab.namespace import CHECKOUT, Namespace, wait_until
from lab.tail import Tail

REPORT_NS = 100_000_000
DRAIN_NS = 2_000_000_000
"""How long the client waits for the last answers at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One line of the client's output; the counts are those of `AnswerChecker`."""

    t: float
    """Seconds of the wall clock (Unix time)."""
    final: bool
    connections: int
    broken: str | None
    """Why the connection broke, or none came about; null while all is well."""
    requests: int
    answers: int
    """Right answers."""
    wrong: dict[str, int]
    """By kind: lost, repeated, reversed, skipped, corrupt."""
    unanswered: int
    gaps: int
    """How many gaps were longer than --gap-ms."""
    last_gap_ms: float
    longest_gap_ms: float
    current_silence_ms: float
    latency_ms: dict[str, float]
    """Quantiles of the time from request to answer: p50, p95, p99."""
    gap_list: list[dict[str, float]]
    """In the final report: start (Unix time, s), start_monotonic (s) and length_ms of each gap."""

    @property
    def flawless(self) -> bool:
        """Whether every request got its one right answer over one unbroken connection."""
        faults = sum(self.wrong.values()) + self.unanswered
        return self.broken is None and self.connections == 1 and faults == 0

    @classmethod
    def parse(cls, line: str) -> Self:
        """The report that a line of the client's output holds."""
        return cls(**json.loads(line))


def read_reports(path: Path) -> list[Report]:
    """All reports in a file that a client has written or is writing; an unfinished line is left."""
    return [Report.parse(line) for line in Tail(path).lines()]


class RunningClient:
    """A client at work in a namespace, reporting to `path`."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process, self.path = process, path
        self._tail = Tail(path)

    def news(self) -> list[Report]:
        """What it has reported since the last call."""
        return [Report.parse(line) for line in self._tail.lines()]

    def reports(self) -> list[Report]:
        """What it has reported so far, oldest first."""
        return read_reports(self.path)

    def wait_for_answers(self, count: int = 1, timeout_s: float = 30) -> Report:
        """The first report with `count` right answers; LabError if there is none in time."""
        wait_until(
            lambda: any(report.answers >= count for report in self.reports()),
            f"{count} right answers to the client",
            timeout_s,
        )
        return next(report for report in self.reports() if report.answers >= count)

    def stop(self, timeout_s: float = 10) -> Report:
        """End it and return its final report."""
        self.process.terminate()
        self.process.wait(timeout_s)
        return self.reports()[-1]


def start_client(namespace: Namespace, server: str, path: Path, *options: str) -> RunningClient:
    """Start a client of `server` (ADDRESS:PORT) inside; `options` as on its command line."""
    command = [sys.executable, "-m", "lab.client", "--server", server, "--report", str(path)]
    return RunningClient(namespace.popen([*command, *options], cwd=CHECKOUT), path)


class Client:
    """The connection, its pace, and the reports."""

    def __init__(self, options: argparse.Namespace, out: TextIO) -> None:
        host, port = options.server.rsplit(":", 1)
        self._address = (host, int(port))
        self._options, self._out = options, out
        self._checker = AnswerChecker(options.name, shared=options.shared)
        self._gaps = Gaps(int(options.gap_ms * 1e6))
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._connections = 0
        self._broken: str | None = None
        self._next_request_ns = self._next_report_ns = 0
        self._end_ns = 2**63 - 1
        # What turns the monotonic clock into the wall clock, for start times of gaps.
        self._wall_ns = time.time_ns() - time.monotonic_ns()

    def stop(self, *_: object) -> None:
        """Send no more requests; end when the last answers are in, 2 s later at the most."""
        self._end_ns = min(self._end_ns, time.monotonic_ns())

    def run(self) -> bool:
        """Work to the end. Returns whether everything went well."""
        if self._options.seconds is not None:
            self._end_ns = time.monotonic_ns() + int(self._options.seconds * 1e9)
        if self._connect():
            while not self._finished():
                self._turn()
        self._hang_up()
        return self._report(final=True).flawless

    def _finished(self) -> bool:
        now_ns = time.monotonic_ns()
        drained = self._checker.waiting == 0 or now_ns >= self._end_ns + DRAIN_NS
        return self._socket is None or (now_ns >= self._end_ns and drained)

    def _connect(self) -> bool:
        """Try until the server accepts; bounded by --connect-s and by the end of the run."""
        give_up_ns = time.monotonic_ns() + int(self._options.connect_s * 1e9)
        while True:
            try:
                self._socket = socket.create_connection(self._address, timeout=0.5)
            except OSError as error:
                if time.monotonic_ns() >= min(give_up_ns, self._end_ns):
                    self._broken = f"no connection came about: {error}"
                    return False
                self._report_if_due()
                time.sleep(0.05)
            else:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket.setblocking(False)
                self._connections += 1
                return True

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._gaps.stop(time.monotonic_ns())
        self._checker.connection_lost()
        self._unsent = b""

    def _turn(self) -> None:
        """Wait for the next thing that can happen, and do it."""
        assert self._socket is not None
        now_ns = time.monotonic_ns()
        self._make_requests(now_ns)
        wake_ns = min(self._next_report_ns, self._end_ns if now_ns < self._end_ns else 2**63 - 1)
        if self._checker.waiting < self._options.window and now_ns < self._end_ns:
            wake_ns = min(wake_ns, self._next_request_ns)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        ready = poll.poll(max((wake_ns - now_ns) / 1e6, 0))
        try:
            if ready:
                self._exchange(self._socket)
        except OSError as error:
            self._lose(str(error))
        self._report_if_due()

    def _make_requests(self, now_ns: int) -> None:
        while (
            now_ns < self._end_ns
            and now_ns >= self._next_request_ns
            and self._checker.waiting < self._options.window
        ):
            self._unsent += self._checker.request(now_ns)
            self._gaps.request(now_ns)

    def _exchange(self, connection: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._unsent:
                self._unsent = self._unsent[connection.send(self._unsent) :]
        with contextlib.suppress(BlockingIOError):
            data = connection.recv(65536)
            if not data:
                self._lose("closed by the server")
                return
            now_ns = time.monotonic_ns()
            if self._checker.receive(data, now_ns):
                self._gaps.answer(now_ns, waiting=self._checker.waiting > 0)
                self._next_request_ns = now_ns + int(self._options.think_ms * 1e6)

    def _lose(self, why: str) -> None:
        self._hang_up()
        self._broken = why
        if self._options.reconnect and self._connect():
            self._broken = None

    def _report_if_due(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_report_ns:
            self._next_report_ns = now_ns + REPORT_NS
            self._report(final=False)

    def _report(self, *, final: bool) -> Report:
        checker, gaps, now_ns = self._checker, self._gaps, time.monotonic_ns()
        report = Report(
            t=time.time(),
            final=final,
            connections=self._connections,
            broken=self._broken,
            requests=checker.requests,
            answers=checker.right,
            wrong=checker.wrong,
            unanswered=checker.unanswered,
            gaps=gaps.count,
            last_gap_ms=gaps.last.length_ns / 1e6 if gaps.last else 0.0,
            longest_gap_ms=gaps.longest_ns / 1e6,
            current_silence_ms=gaps.silence_ns(now_ns) / 1e6,
            latency_ms={
                f"p{percent}": checker.latencies.quantile_ns(percent / 100) / 1e6
                for percent in (50, 95, 99)
            },
            gap_list=self._gap_list() if final else [],
        )
        self._out.write(json.dumps(dataclasses.asdict(report)) + "\n")
        self._out.flush()
        return report

    def _gap_list(self) -> list[dict[str, float]]:
        return [
            {
                "start": (gap.start_ns + self._wall_ns) / 1e9,
                "start_monotonic": gap.start_ns / 1e9,
                "length_ms": gap.length_ns / 1e6,
            }
            for gap in self._gaps.kept
        ]


def parse_options(arguments: list[str] | None = None) -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="lab.client", description="Checks the lab guest's counter."
    )
    parser.add_argument("--server", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--report", metavar="FILE", help="where reports go (standard output)")
    parser.add_argument("--seconds", type=float, help="how long (until SIGTERM)")
    parser.add_argument("--connect-s", type=float, default=30, help="bound for connecting (30)")
    parser.add_argument("--window", type=int, default=1, help="requests at a time (1)")
    parser.add_argument("--think-ms", type=float, default=0, help="pause after an answer (0)")
    parser.add_argument("--gap-ms", type=float, default=100, help="what counts as a gap (100)")
    parser.add_argument("--name", default="c", help="first part of the tokens: a-z, 0-9 (c)")
    parser.add_argument("--shared", action="store_true", help="other clients count too")
    parser.add_argument("--reconnect", action="store_true", help="go on if the connection breaks")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line: see the module."""
    options = parse_options()
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(Path(options.report).open("w")) if options.report else sys.stdout
        client = Client(options, out)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, client.stop)
        sys.exit(0 if client.run() else 1)


if __name__ == "__main__":
    main()
