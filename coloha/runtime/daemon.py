"""The daemon: everything a node runs, from the configuration to the last farewell."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coloha import __version__, config
from coloha.adapters.channel import ChannelServer, Offer
from coloha.adapters.control import ControlServer, Handler
from coloha.adapters.fence import Fencer
from coloha.adapters.heartbeat import Heartbeats, Peer
from coloha.adapters.network import see_own_addresses
from coloha.adapters.systemd import ServiceManager
from coloha.adapters.watchdog import Watchdog
from coloha.adapters.witness import Witness
from coloha.config import Config, PairConfig, changed_settings, key_name, live_settings, read_keys
from coloha.core.actions import Severity
from coloha.core.events import (
    FailoverRequested,
    PauseRequested,
    PeerState,
    ProtectRequested,
    UnprotectRequested,
)
from coloha.core.wire import Link
from coloha.errors import ConfigError, OrderError, StartError
from coloha.runtime.attest import attest
from coloha.runtime.metrics import Metrics, Totals
from coloha.runtime.occurrences import Occurrence, Occurrences
from coloha.runtime.pair import PairRuntime, Services
from coloha.runtime.pulse import STUCK_S, Pulse
from coloha.runtime.recorder import Recorder
from coloha.runtime.status import as_dict
from coloha.runtime.store import Store
from coloha.runtime.tellers import Tellers
from coloha.runtime.watchman import Watchman
from coloha.runtime.web import View, Web
from coloha.runtime.witnesses import open_witness

log = logging.getLogger(__name__)

FINISH_S = 1.0
"""How long the daemon's end waits for an epoch under way."""
FAREWELLS = 3

THREAD_SWITCH_S = 0.001
"""How long a thread may keep the interpreter from the event loop: metrics must not delay epochs."""


class Daemon:
    """A node. `run` returns when the daemon is told to stop."""

    def __init__(self, loaded: Config, host_file: Path) -> None:
        self._config = loaded
        self._host_file = host_file
        self._started_at = time.monotonic()
        self._pairs: dict[str, PairRuntime] = {}
        self._witnesses: dict[object, Witness | None] = {}
        self._peers: dict[str, Peer] = {}
        self._manager = ServiceManager()
        self._stopping = asyncio.Event()
        self._serving = False
        self._lock: int | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="config")
        self._loader.submit(int).result()

    async def run(self) -> None:
        """Run every pair until SIGTERM or SIGINT. QEMUs are left running.

        :raises StartError: if an address, a folder or another daemon is in the way.
        """
        host = self._config.host
        self._take(host.runtime_directory)
        self._keys = read_keys(host.key_file)
        key, *others = self._keys
        self._occurrences = Occurrences(host.node, host.state_directory / "events.jsonl")
        self._metrics = Metrics()
        self._pulse = Pulse(self._metrics.lag)
        self._web = Web(self._metrics.app, self._view())
        self._heartbeats = self._make_heartbeats()
        self._recorder = Recorder(host.node, host.state_directory / "flight", self._occurrences.add)
        self._watchman = self._make_watchman()
        self._fencers = {
            peer: Fencer(host.node, peer, section) for peer, section in host.fencing.items()
        }
        self._tellers = Tellers(host, self._states, self._tell)
        services = Services(
            host, key, Store(host.state_directory), self._heartbeats, self._occurrences,
            self._metrics, self._recorder, self._fencers, self._watchman,
        )  # fmt: skip
        for peer in self._fencers:
            self._metrics.expect_fencing(peer)
        for pair in self._config.pairs:
            self._metrics.expect(pair.name)
            self._pairs[pair.name] = PairRuntime(pair, self._witness(pair), services)
        self._channels = ChannelServer(host.node, key, self._offered, tuple(others))
        self._control = ControlServer(self._verbs())
        try:
            await self._open()
        except BaseException:
            await self._shut(services)
            raise
        self._tellers.start(self._occurrences)
        gc.freeze()
        sys.setswitchinterval(THREAD_SWITCH_S)
        self._occurrences.add("-", "daemon-started", Severity.INFO, f"coloha {__version__}", 0)
        await self._watchman.start()
        pumps = [asyncio.create_task(pair.run(), name=pair.name) for pair in self._pairs.values()]
        pumps.append(asyncio.create_task(attest(self._manager, self._pairs.values)))
        pumps.append(asyncio.create_task(self._pulse.beat()))
        self._serving = True
        self._manager.ready(self._told())
        try:
            await self._stopping.wait()
            self._manager.stopping("finishes the epochs under way")
            await self._announce()
            await self._hand_over()
        finally:
            await self._close(pumps, services)

    def _take(self, directory: Path) -> None:
        """Make the runtime folder ours alone."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._config.host.state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another coloha daemon uses {directory}: stop it first") from None
        except OSError as error:
            raise StartError(f"{error.filename or directory}: {error.strerror}") from error

    def _make_heartbeats(self) -> Heartbeats:
        me, (key, *others) = self._config.host.node, self._keys
        by_peer: dict[str, list[PairConfig]] = {}
        for pair in self._config.pairs:
            by_peer.setdefault(self._config.peer_of(pair), []).append(pair)
        for peer, pairs in by_peer.items():
            address = pairs[0].nodes[peer].heartbeat
            self._peers[peer] = Peer(
                link=Link(me, peer, key, secrets.randbits(63) + 1, others=tuple(others)),
                address=(address.host, address.port),
                interval_s=min(pair.heartbeat.interval for pair in pairs),
                states=_states_of(self._pairs, [pair.name for pair in pairs]),
                deliver=self._deliver,
                unattended=self._unattended,
            )
        return Heartbeats(self._peers)

    def _make_watchman(self) -> Watchman:
        section = self._config.host.watchdog
        watchdog = Watchdog(section.device, int(section.timeout)) if section.mode != "off" else None
        return Watchman(watchdog, section.mode == "required", self._pairs.values, self._tell)

    def _tell(self, kind: str, severity: Severity, text: str) -> None:
        self._metrics.occurred("-", kind)
        self._occurrences.add("-", kind, severity, text, 0)

    def _deliver(self, pair: str, state: PeerState) -> None:
        self._pairs[pair].heard(state)

    def _unattended(self, pair: str) -> None:
        self._pairs[pair].unattended()

    def _offered(self, offer: Offer) -> None:
        pair = self._pairs.get(offer.request.pair)
        if pair is None or pair.peer != offer.sender:
            log.warning("%s invites for pair %r: unknown", offer.sender, offer.request.pair)
            offer.connection.close()
        else:
            pair.offered(offer)

    def _witness(self, pair: PairConfig) -> Witness | None:
        """Return the witness of a pair, if any; pairs with the same one share it."""
        if pair.witness not in self._witnesses:
            self._witnesses[pair.witness] = open_witness(pair.witness)
        return self._witnesses[pair.witness]

    async def _open(self) -> None:
        """Bind everything; nothing was started before."""
        host = self._config.host
        loop = asyncio.get_running_loop()
        stream, take = socket.SOCK_STREAM, self._manager.take
        what: object = None
        try:
            what = host.listen.channel
            place = (what.host, what.port)
            self._channels.start(place, take("channel", stream, place))
            what = host.listen.heartbeat
            place = (what.host, what.port)
            await self._heartbeats.start(place, take("heartbeat", socket.SOCK_DGRAM, place))
            what = host.control_socket
            await self._control.start(what, take("control", stream, what))
            if host.metrics is not None:
                what = host.metrics
                place = (what.host, what.port)
                self._metrics.pairs = lambda: [pair.gauges() for pair in self._pairs.values()]
                self._metrics.totals = self._totals
                self._web.serve(*place, take("metrics", stream, place))
        except OSError as error:
            raise StartError(f"cannot listen on {what}: {error.strerror or error}") from error
        self._manager.settle()
        for pair in self._config.pairs:
            see_own_addresses(pair, host.node)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    async def _announce(self) -> None:
        """Finish the epochs under way, and have the other nodes wait for the next life."""
        for pair in self._pairs.values():
            pair.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                while not all(pair.idle for pair in self._pairs.values()):  # noqa: ASYNC110
                    await asyncio.sleep(FINISH_S / 100)
        for _ in range(FAREWELLS):  # any of them may get lost
            for peer in self._peers:
                self._heartbeats.beat(peer)
            await asyncio.sleep(FINISH_S / 100)

    async def _hand_over(self) -> None:
        """Have the service manager hold what the next life of this daemon listens on.

        Heartbeats and connections wait meanwhile. A daemon that is killed hands nothing over: its
        host's kernel must answer that nobody listens.
        """
        for name, kept in (
            ("heartbeat", self._heartbeats.bound),
            ("channel", self._channels.listener),
            ("control", self._control.listener),
            ("metrics", self._web.listener),
        ):
            if kept is not None:
                self._manager.keep(name, kept)
        await asyncio.to_thread(self._manager.wait)

    async def _close(self, pumps: list[asyncio.Task[None]], services: Services) -> None:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._watchman.close()
        self._occurrences.add("-", "daemon-stopped", Severity.INFO, "QEMUs are left running", 0)
        await self._tellers.close()
        await self._shut(services)

    async def _shut(self, services: Services) -> None:
        """Close all that is open."""
        self._heartbeats.stop()
        self._channels.stop()
        self._control.stop()
        self._web.stop()
        for fencer in self._fencers.values():
            await fencer.close()
        for witness in filter(None, self._witnesses.values()):
            await witness.close()
        services.store.close()
        self._loader.shutdown(wait=False)
        self._recorder.close()
        self._occurrences.close()
        if self._lock is not None:
            os.close(self._lock)

    def _reload(self) -> None:
        """Read the configuration again and take over what may change while running."""

        async def load_again() -> None:
            with contextlib.suppress(ConfigError):  # it has been told
                await self._load_again()

        self._reloading = asyncio.create_task(load_again())

    async def _load_again(self) -> list[str]:
        """Return what was taken over, and what needs a restart.

        :raises ConfigError: if the configuration is refused.
        """
        self._manager.reloading()
        try:
            return await self._take_over()
        finally:
            self._manager.ready(self._told())

    async def _take_over(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            # A hostile file can take seconds to refuse: not in the event loop.
            new = await loop.run_in_executor(self._loader, config.load, self._host_file)
        except ConfigError as error:
            text = f"nothing was changed: {error}"
            self._occurrences.add("-", "reload-refused", Severity.ERROR, text, 0)
            raise
        lines = list(_apply(new, self._config, self._pairs))
        if read_keys(new.host.key_file) != self._keys:
            lines.append("the keys changed: that needs a restart of the daemon")
        for line in lines:
            self._occurrences.add("-", "reloaded", Severity.INFO, line, 0)
        return lines

    def _told(self) -> str:
        """Return what `systemctl status` shows."""
        return f"looks after {', '.join(self._pairs) or 'no pair'}"

    # Verbs of the control socket

    def _verbs(self) -> dict[str, Handler]:
        return {
            "status": self._status,
            "events": self._events,
            "reload": self._reload_now,
            "failover": self._failover,
            **dict.fromkeys(
                ("start", "stop", "pause", "resume", "protect", "unprotect"), self._order
            ),
        }

    def _totals(self) -> Totals:
        return Totals(
            heartbeats_rejected=dict(self._heartbeats.rejected),
            heartbeats_unsent=self._heartbeats.send_errors,
            channels_rejected=self._channels.rejected,
            events_lost=self._occurrences.dropped,
            steps_unrecorded=self._recorder.lost,
            mqtt=self._tellers.mqtt,
            hooks=self._tellers.hooks,
        )

    def _states(self) -> list[dict[str, Any]]:
        """Return every pair's status; other threads ask, too."""
        now = time.monotonic()
        return [as_dict(pair, now) for pair in self._pairs.values()]

    def _view(self) -> View:
        """Return what there is to see from outside."""
        return View(
            self._shown, self._occurrences.kept, self._metrics.pauses, self._unwell, self._unready
        )

    def _unwell(self) -> str | None:
        stuck_s = self._pulse.stuck_s
        return f"the event loop has been stuck for {stuck_s:.1f} s" if stuck_s > STUCK_S else None

    def _unready(self) -> str | None:
        if not self._serving or self._stopping.is_set():
            return f"the daemon is {'stopping' if self._serving else 'starting'}"
        now = time.monotonic()
        problems = [
            f"{pair.name}: {why}"
            for pair in self._pairs.values()
            if (why := pair.unready(now, STUCK_S)) is not None
        ]
        return "\n".join(problems) or None

    async def _status(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        del request
        yield {"ok": self._shown()}

    def _shown(self) -> dict[str, Any]:
        return {
            "node": self._config.host.node,
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "heartbeats_rejected": dict(self._heartbeats.rejected),
            "keys": {
                "used": key_name(self._keys[0]),
                "accepted": [key_name(key) for key in self._keys[1:]],
                "of_peers": {
                    name: key_name(peer.link.heard_with)
                    for name, peer in self._peers.items()
                    if peer.link.heard_with is not None
                },
            },
            "pairs": self._states(),
        }

    async def _events(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        since, follow = int(request.get("since", 0)), bool(request.get("follow"))
        queue = self._occurrences.listen()
        try:
            for occurrence in self._occurrences.since(since):
                yield {"ok": _plain(occurrence)}
            while follow:
                yield {"ok": _plain(await queue.get())}
            yield {"end": True}
        finally:
            self._occurrences.leave(queue)

    async def _reload_now(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        del request
        try:
            yield {"ok": await self._load_again()}
        except ConfigError as error:
            yield {"error": f"nothing was changed: {error}"}

    async def _order(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        try:
            pair = self._named(request)
            match request["verb"]:
                case "start":
                    pair.start()
                case "protect":
                    pair.order(ProtectRequested())
                case "unprotect":
                    pair.order(UnprotectRequested())
                case "stop":
                    pair.stop(hard=bool(request.get("hard")))
                case verb:
                    pair.order(PauseRequested(verb == "pause"))
        except OrderError as error:
            yield {"error": str(error)}
        else:
            yield {"ok": True}

    async def _failover(self, request: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        planned = request.get("planned")
        try:
            pair = self._named(request)
            order = FailoverRequested(
                forced=bool(request.get("forced")),
                generation=planned if isinstance(planned, int) else 0,
                vouched=bool(request.get("vouched")),
                gently=bool(request.get("gently")),
            )
            plan = pair.failover(order, planned=planned is not None)
        except OrderError as error:
            yield {"error": str(error)}
        else:
            generation = pair.snapshot.generation if pair.snapshot is not None else 0
            yield {"ok": {"plan": plan, "generation": generation}}

    def _named(self, request: Mapping[str, Any]) -> PairRuntime:
        """Return the pair that a request names.

        :raises OrderError: if there is none.
        """
        pair = self._pairs.get(str(request.get("pair")))
        if pair is None:
            raise OrderError(f"no pair {request.get('pair')!r} on this node")
        return pair


def _states_of(
    pairs: Mapping[str, PairRuntime], names: Sequence[str]
) -> Callable[[], dict[str, PeerState]]:
    """Return what gives the state of these pairs for a heartbeat."""

    def states() -> dict[str, PeerState]:
        found = {name: pairs[name].wire for name in names if name in pairs}
        return {name: state for name, state in found.items() if state is not None}

    return states


def _plain(occurrence: Occurrence) -> dict[str, Any]:
    return asdict(occurrence)


def _apply(new: Config, old: Config, pairs: Mapping[str, PairRuntime]) -> Iterator[str]:
    """Take over live settings; yield what was done, and what needs a restart."""
    if new.host != old.host:
        yield "the host file changed: that needs a restart of the daemon"
    known = {pair.name: pair for pair in old.pairs}
    for pair in new.pairs:
        if pair.name not in known:
            yield f"pair {pair.name} is new: that needs a restart of the daemon"
            continue
        running = pairs[pair.name].config
        changed = changed_settings(running, pair)
        live = [path for path in changed if path in live_settings()]
        if pair.checkpoint.period * 4 > running.checkpoint.stall_timeout:
            live = []  # it goes only with the new stall_timeout, which needs a restart
        later = [path for path in changed if path not in live]
        if live:
            pairs[pair.name].reconfigure(pair)
            yield f"pair {pair.name}: {', '.join(live)} changed"
        if later:
            yield f"pair {pair.name}: {', '.join(later)} changed: that needs a restart"
    for name in known.keys() - {pair.name for pair in new.pairs}:
        yield f"the file of pair {name} is gone: it runs on until the daemon is restarted"
