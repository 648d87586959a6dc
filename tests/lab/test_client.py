"""The client's process, against servers that misbehave on purpose."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.client import Report, read_reports
from lab.namespace import CHECKOUT, wait_until

Answer = Callable[[int, bytes], bytes | None]


def honest(count: int, token: bytes) -> bytes:
    return b"%s %d\n" % (token, count)


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A counter whose n-th request is answered by `answer(n, token)`; None ends the connection."""
    count = 0

    def serve(connection: socket.socket) -> None:
        nonlocal count
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                count += 1
                said = answer(count, line.rstrip())
                if said is None:
                    return
                connection.sendall(said)

    def accept() -> None:
        with suppress(OSError):
            while True:
                serve(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def client(address: str, *options: str) -> tuple[int, list[Report]]:
    """Run a client to its end: its exit status and its reports."""
    argv = [sys.executable, "-m", "lab.client", "--server", address, *options]
    done = subprocess.run(
        argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return done.returncode, [Report.parse(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("options", [[], ["--window", "16"], ["--think-ms", "5"]])
def test_an_honest_server_is_found_honest(options: list[str]) -> None:
    with server(honest) as address:
        status, reports = client(address, "--seconds", "0.6", *options)
    last = reports[-1]
    assert (status, last.flawless, last.final) == (0, True, True)
    assert last.answers == last.requests > 10
    assert last.latency_ms["p99"] >= last.latency_ms["p50"] > 0
    assert len(reports) >= 3
    assert [report.answers for report in reports] == sorted(report.answers for report in reports)
    assert not any(report.final for report in reports[:-1])


def test_think_time_slows_the_client_down() -> None:
    with server(honest) as address:
        _, reports = client(address, "--seconds", "0.6", "--think-ms", "50")
    assert reports[-1].answers <= 13


SPOILT: dict[str, Answer] = {
    "repeated": lambda n, token: honest(n, token) * (2 if n == 9 else 1),
    "reversed": lambda n, token: honest(n if n < 9 else n - 1, token),
    "skipped": lambda n, token: honest(n if n < 9 else n + 1, token),
    "corrupt": lambda n, token: (b"?\n" if n == 9 else b"") + honest(n, token),
    "lost": lambda n, token: b"" if n == 9 else honest(n, token),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_one_wrong_answer_is_seen(kind: str) -> None:
    with server(SPOILT[kind]) as address:
        status, reports = client(address, "--seconds", "0.4", "--window", "4")
    assert {name: n for name, n in reports[-1].wrong.items() if n} == {kind: 1}
    assert (status, reports[-1].flawless) == (1, False)


def test_a_broken_connection_ends_the_client_and_says_why() -> None:
    with server(lambda n, token: honest(n, token) if n < 100 else None) as address:
        status, reports = client(address, "--seconds", "30")
    last = reports[-1]
    assert (status, last.broken, last.answers, last.unanswered) == (
        1,
        "closed by the server",
        99,
        1,
    )


def test_a_client_that_may_reconnect_goes_on() -> None:
    with server(lambda n, token: None if n == 100 else honest(n, token)) as address:
        status, reports = client(address, "--seconds", "0.6", "--reconnect")
    last = reports[-1]
    assert (status, last.connections, last.broken, last.unanswered) == (1, 2, None, 1)
    assert (sum(last.wrong.values()), last.answers) == (0, last.requests - 1)
    assert last.answers > 100


def test_a_silence_is_a_gap_with_its_start_and_length() -> None:
    begun: list[float] = []

    def slow(count: int, token: bytes) -> bytes:
        if count == 50:
            begun.append(time.time())
            time.sleep(1.0)
        return honest(count, token)

    with server(slow) as address:
        status, reports = client(address, "--seconds", "1.6", "--gap-ms", "800")
    last = reports[-1]
    assert (status, last.gaps, len(last.gap_list)) == (0, 1, 1)
    assert last.last_gap_ms == last.longest_gap_ms == last.gap_list[0]["length_ms"] >= 1000
    # The client asked before the server heard it, and hears it 1 s later.
    end = last.gap_list[0]["start"] + last.gap_list[0]["length_ms"] / 1000
    assert last.gap_list[0]["start"] <= begun[0] < end
    assert max(report.current_silence_ms for report in reports) >= 500


def test_no_server_is_reported_within_the_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    status, reports = client(address, "--connect-s", "0.3")
    assert (status, reports[-1].connections) == (1, 0)
    assert "refused" in (reports[-1].broken or "")


def test_sigterm_ends_it_with_a_final_report_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report"
    with server(honest) as address:
        argv = ["-m", "lab.client", "--server", address, "--report", str(path)]
        with subprocess.Popen([sys.executable, *argv], cwd=CHECKOUT) as process:
            wait_until(lambda: path.exists() and len(read_reports(path)) > 2, "reports", 20)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(10) == 0
    last = read_reports(path)[-1]
    assert last.final
    assert last.flawless
