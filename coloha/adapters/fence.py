"""Has the host of another node switched off by a fence agent, and says what is known of it.

An agent (ClusterLabs, FenceAgentAPI) is a program that is told what to do in lines of `name=value`
on its standard input and answers with its exit code. Secrets are in no argument and no log.

Its answer to `off` is 0 only once it has seen that the host is off; Pacemaker leaves it at that.
Here `status` is asked as well: an agent that believes its device, or a device that promises what it
will do, is found out before the other copy speaks. And when `off` is answered with 1, which by the
API also stands for "could not see", `status` tells a host that is on from one that nobody knows
about.

Three things are never mixed up. *Confirmed*: `off` was answered with success, and `status` with
off. *Failed*: the agent did not run at all, or all it was asked to do failed and the host is on.
*Unknown*: everything else; a program that was killed while it switched may have done so.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coloha.ask import ask
from coloha.config import FenceAgent, read_password
from coloha.core.events import Fenced
from coloha.errors import FenceError

log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Between two attempts: a device may need a moment to see what it did."""
LONGEST_WORDS = 200
"""Characters of an agent's last words that are repeated."""

_OK, _OFF = 0, 2


class Action(StrEnum):
    """What agents are asked."""

    OFF = "off"
    STATUS = "status"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class Report:
    """How fencing ended; `reason` says it in words."""

    outcome: Fenced
    reason: str


@dataclass(frozen=True, slots=True)
class _Reply:
    """An agent's exit code, and its last words; no code if it was killed or did not end in time."""

    code: int | None
    words: str

    def __str__(self) -> str:
        if self.code is None:
            return self.words
        return f"exit code {self.code}" + (f" ({self.words})" if self.words else "")


class Fencer:
    """Switches off the host of one node, whoever asks; never that of its own."""

    def __init__(self, me: str, peer: str, section: FenceAgent) -> None:
        """:param me: this node.
        :param peer: the node whose host is switched off.
        """
        if me == peer:
            raise ValueError(f"{me} would switch itself off")
        self._peer = peer
        self._section = section
        self._running: asyncio.Task[Report] | None = None

    async def fence(self) -> Report:
        """Have the host switched off; who asks meanwhile gets the same report.

        It goes on when the one who asks is cancelled: only `close` stops it.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._fence())
            self._running.add_done_callback(self._ended)
        return await asyncio.shield(self._running)

    def _ended(self, task: asyncio.Task[Report]) -> None:
        self._running = None
        if not task.cancelled() and task.exception() is None:
            log.warning("fencing of %s: %s, %s", self._peer, *_words_of(task.result()))

    async def close(self) -> None:
        """Kill the agent that runs."""
        task = self._running
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def monitor(self) -> str:
        """Return what the agent answered when asked if it could do its work. Changes nothing.

        :raises FenceError: if it could not.
        """
        try:
            reply = await self._call(Action.MONITOR, self._section.timeout)
        except FenceError as error:
            raise FenceError(f"{self._section.agent}: {error}") from None
        if reply.code not in (_OK, _OFF):
            raise FenceError(
                f"{self._section.agent} cannot reach its device: {reply}: see its parameters under"
                f" fencing.{self._peer} of the host file"
            )
        return reply.words

    async def _fence(self) -> Report:
        deadline = time.monotonic() + self._section.deadline_s
        doubt = False
        report = Report(Fenced.FAILED, "not tried")
        for attempt in range(1 + self._section.retries):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            left = min(self._section.timeout, deadline - time.monotonic())
            if left <= 0:
                break
            report = await self._attempt(left)
            if report.outcome is Fenced.CONFIRMED:
                return report
            doubt |= report.outcome is Fenced.UNKNOWN
        # An `off` that got lost may still be on its way: that the host is on now proves nothing.
        return Report(Fenced.UNKNOWN, report.reason) if doubt else report

    async def _attempt(self, seconds: float) -> Report:
        """Ask for `off`, then see how the host is."""
        deadline = time.monotonic() + seconds
        try:
            off = await self._call(Action.OFF, seconds)
        except FenceError as error:
            return Report(Fenced.FAILED, str(error))
        if self._section.verify == "agent":
            if off.code == _OK:
                return Report(Fenced.CONFIRMED, "the agent switched it off")
            return Report(Fenced.UNKNOWN, f"off: {off}")
        try:
            status = await self._call(Action.STATUS, max(0.0, deadline - time.monotonic()))
        except FenceError as error:
            return Report(Fenced.UNKNOWN, f"off: {off}; status: {error}")
        if off.code == _OK and status.code == _OFF:
            return Report(Fenced.CONFIRMED, "the agent switched it off, and sees that it is off")
        if status.code == _OK:
            reason = f"off: {off}; status: it is on"
            # Who claims to have switched off what is on may be right in a moment.
            refused = off.code is not None and off.code != _OK
            return Report(Fenced.FAILED if refused else Fenced.UNKNOWN, reason)
        seen = "it is off" if status.code == _OFF else str(status)
        return Report(Fenced.UNKNOWN, f"off: {off}; status: {seen}")

    async def _call(self, action: Action, seconds: float) -> _Reply:
        """Run the agent once.

        :raises FenceError: if it cannot be run: nothing was asked of the device.
        """
        section = self._section
        password = None
        if section.password_file is not None:
            try:
                password = read_password(section.password_file)
            except ValueError as error:
                raise FenceError(str(error)) from None
        text = _lines(action, self._peer, section.parameters, password)
        try:
            answer = await ask((section.agent,), text, seconds)
        except TimeoutError:
            return _Reply(None, f"no answer within {section.timeout:g} s")
        except OSError as error:
            raise FenceError(f"{section.agent} cannot be run ({error.strerror})") from None
        words = _last_words(answer.complaint, password) or _last_words(answer.output, password)
        if answer.code < 0:
            return _Reply(None, f"killed by signal {-answer.code}")
        return _Reply(answer.code, words)


def _words_of(report: Report) -> tuple[str, str]:
    return str(report.outcome), report.reason


def _lines(action: Action, peer: str, parameters: Mapping[str, str], password: str | None) -> str:
    told = {"nodename": peer, **parameters, "action": action}
    if password is not None:
        told["password"] = told["passwd"] = password  # older agents know the short name only
    return "".join(f"{name}={value}\n" for name, value in told.items())


def _last_words(output: bytes, password: str | None) -> str:
    """Return the last line of what an agent wrote, without the password."""
    text = output.decode(errors="replace")
    if password is not None:
        text = text.replace(password, "***")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST_WORDS] if lines else ""
