"""Transcripts: what one machine is told, and what it answers, as text a person can read.

    settings me=alpha peer=beta first period=0.05
    0.000 started
    ----
    read-record

A block is one or more inputs, `----`, and what the machine did: its phase if that changed, its
actions, and with `status` also what it would show. COLOHA_REWRITE=1 writes what it really did into
the files; a person then reads the difference.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from coloha.core.actions import (
    Action,
    Admit,
    Beat,
    DropChannel,
    Fence,
    Invite,
    Kill,
    Launch,
    Persist,
    ReadRecord,
    RunScript,
    SwapRecord,
    Tell,
)
from coloha.core.context import Fencing, OnSilence, Settings
from coloha.core.events import (
    Adopted,
    ChannelFailed,
    ChannelReady,
    ColoExited,
    ColoMode,
    Committed,
    CopyBad,
    DiskFailed,
    Durable,
    Event,
    FailoverRequested,
    Failure,
    Fenced,
    FenceDone,
    GuestShutdown,
    Heard,
    Invited,
    Kept,
    Launched,
    LaunchFailed,
    Leaving,
    PauseRequested,
    PeerState,
    PeriodChanged,
    ProtectRequested,
    QemuExited,
    RecordRead,
    Role,
    Run,
    ScriptDone,
    ScriptFailed,
    Started,
    StartRequested,
    StopRequested,
    SwapDone,
    Timer,
    Unattended,
    UnprotectRequested,
    WitnessFailed,
)
from coloha.core.machine import PairMachine
from coloha.core.phases import Phase
from coloha.core.record import OPERATOR, Record

INCARNATION = 1
LINEAGE = "1"
QUIET_S = 0.1


class Player:
    """One machine, and what is needed to name things shortly."""

    def __init__(self) -> None:
        self.machine: PairMachine | None = None
        self.settings: dict[str, object] = {}
        self.script = 0
        self.fence = 0
        self.run: Run | None = None
        self.session: int | None = None
        self.swap: SwapRecord | None = None
        self.pulse = 0
        self.loud = False
        self.now = 0.0

    def play(self, line: str) -> Iterator[str]:
        """Yield what the machine answers to one line."""
        first, *words = line.split()
        if first == "settings":
            self.settings = {"first": False} | dict(_setting(word) for word in words)
            return
        if first == "status":
            yield from self.status()
            return
        now = float(first)
        if self.machine is None:
            self.machine = PairMachine(self.make_settings(), now)
        if words[0] == "quiet":  # nothing happens until then, and this node knows
            while self.now + QUIET_S < now:
                self.now += QUIET_S
                yield from self.step(self.now, ["timer"])
            words = ["timer"]
        self.now = now
        yield from self.step(now, words)

    def step(self, now: float, words: list[str]) -> Iterator[str]:
        assert self.machine is not None
        before = self.machine.snapshot().phase
        actions = self.machine.step(self.event(words[0], words[1:]), now)
        after = self.machine.snapshot().phase
        if after is not before:
            yield f"phase {before} -> {after}"
        for action in actions:
            shown = self.show(action)
            if shown:
                yield shown

    def make_settings(self) -> Settings:
        settings = dict(self.settings)
        settings["witnessed"] = "unwitnessed" not in settings
        settings.pop("unwitnessed", None)
        settings["on_silence"] = OnSilence(str(settings.get("on_silence", "hold")))
        settings["fencing"] = Fencing(str(settings.get("fencing", "none")))
        return Settings(pair="vm", incarnation=INCARNATION, **settings)  # type: ignore[arg-type]

    def status(self) -> Iterator[str]:
        assert self.machine is not None
        snapshot = self.machine.snapshot()
        yield f"{snapshot.role}, {'protected' if snapshot.protected else 'not protected'}"
        if snapshot.why_not:
            yield f"why not: {snapshot.why_not}"
        if snapshot.waiting:
            yield f"waits for: {snapshot.waiting}"
        if snapshot.wire.offers:
            yield "offers the VM"

    # Inputs

    def event(self, name: str, words: list[str]) -> Event:
        options = dict(_setting(word) for word in words)
        simple: dict[str, Event] = {
            "timer": Timer(),
            "colo-exited": ColoExited(),
            "guest-shutdown": GuestShutdown(),
            "guest-panicked": GuestShutdown(panicked=True),
            "unattended": Unattended(),
            "start": StartRequested(),
            "leaving": Leaving(),
            "pause": PauseRequested(paused=True),
            "resume": PauseRequested(paused=False),
            "failover": FailoverRequested(
                "forced" in options, int(str(options.get("of", 4))), "vouched" in options
            ),
            "switchover": FailoverRequested(
                forced=False, generation=int(str(options.get("of", 4))), gently=True
            ),
            "protect": ProtectRequested(),
            "unprotect": UnprotectRequested(),
            "power-down": StopRequested(hard=False),
            "power-off": StopRequested(hard=True),
        }
        if name in simple:
            return simple[name]
        match name:
            case "started":
                return self.started(options)
            case "heard":
                return Heard(self.peer(options))
            case "record":
                return RecordRead(_record(words))
            case "swapped":
                assert self.swap is not None
                return SwapDone(self.swap.new)
            case "witness-failed":
                return WitnessFailed("no answer", unknown="unknown" in options)
            case "done":
                return ScriptDone(self.script, _result(options))
            case "failed":
                return ScriptFailed(self.script, Failure(words[0]), " ".join(words[1:]) or words[0])
            case "copy-bad":
                return CopyBad("device state")
            case "disk-failed":
                return DiskFailed("an image missed a write", behind="behind" in options)
            case "invited":
                return self.invited(options)
            case "channel-ready" | "channel-failed":
                assert self.session is not None
                if name == "channel-ready":
                    return ChannelReady(self.session)
                return ChannelFailed(self.session, " ".join(words))
            case "fenced":
                return FenceDone(self.fence, Fenced(words[0]), " ".join(words[1:]) or words[0])
            case "period":
                return PeriodChanged(float(words[0]))
        return self.process(name, " ".join(words))

    def process(self, name: str, text: str) -> Event:
        assert self.run is not None
        match name:
            case "launched":
                return Launched(self.run)
            case "launch-failed":
                return LaunchFailed(self.run, text)
            case "exited":
                return QemuExited(self.run, text)
        raise ValueError(name)

    def started(self, options: dict[str, object]) -> Event:
        found = None
        if "found" in options:
            role = Role(str(options.pop("found")))
            session = int(str(options.pop("of"))) if role is Role.SECONDARY else None
            found = self.run = Run(f"{role.value[0]}-old", role, session)
            self.session = session
        if "copy" in options:
            options["record"] = _copy(str(options.pop("copy")))
        if options:
            options.setdefault("lineage", LINEAGE)
        return Started(Durable(**options), found)  # type: ignore[arg-type]

    def peer(self, options: dict[str, object]) -> PeerState:
        """The pulse goes on by itself, and our own is echoed, unless `still` or `deaf` is said."""
        assert self.machine is not None
        if "still" not in options:
            self.pulse += 1
        session = options.get("session")
        gave_up = options.get("gave_up")
        record = _copy(str(options["copy"])) if "copy" in options else None
        if record is not None:
            options["generation"] = record.generation
            if record.primary == self.settings["peer"]:
                options["owner"] = True
        return PeerState(
            record=record,
            living="living" in options,
            claims="claims" in options,
            phase=Phase(str(options.get("phase", "standby"))),
            generation=int(str(options.get("generation", 0))),
            owner="owner" in options,
            session=self.session if session == "ours" else _number(session),
            gave_up=self.session if gave_up == "ours" else _number(gave_up),
            following="following" in options,
            colo_exited="colo_exited" in options,
            committed=0,
            pulse=self.pulse,
            echo=0 if "deaf" in options else self.machine.snapshot().wire.pulse,
            restarting="restarting" in options,
            pauses=int(str(options.get("pauses", 0))),
            partings=int(str(options.get("partings", 0))),
            offers="offers" in options,
        )

    def invited(self, options: dict[str, object]) -> Event:
        self.session = int(str(options["session"]))
        generation = int(str(options["generation"]))
        problem = options.get("problem")
        return Invited(self.session, generation, str(problem) if problem else None)

    # Answers

    def show(self, action: Action) -> str:
        match action:
            case Beat():
                return "beat"
            case ReadRecord():
                return "read-record"
            case SwapRecord(expected, new, by):
                self.swap = action
                ordered = f", asked by {by}" if by == OPERATOR else ""
                return f"swap-record {expected or 'nothing'} by {new}{ordered}"
            case Persist(durable):
                return f"persist {_durable(durable, self.session)}"
            case Launch(run):
                self.run = run
                return f"launch {run.role}"
            case Kill():
                return "kill"
            case Fence(number):
                self.fence = number
                return "fence"
            case RunScript(number, script, timeout_s):
                self.script = number
                return f"run {script} ({timeout_s:g} s)"
            case Invite(session, generation):
                self.session = session
                return f"invite for generation {generation}"
            case Admit():
                return "admit"
            case DropChannel(_, reason):
                return f"drop-channel: {reason}"
            case Tell(kind, severity, text):
                return f"tell {severity} {kind}: {text}"


def _setting(word: str) -> tuple[str, object]:
    name, _, value = word.partition("=")
    if not value:
        return name, True
    for convert in (int, float):
        try:
            return name, convert(value)
        except ValueError:
            continue
    return name, value


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))


def _record(words: list[str]) -> Record | None:
    match words:
        case ["none"]:
            return None
        case ["solo", generation, primary]:
            return Record(LINEAGE, int(generation), primary)
        case ["protected", generation, primary, secondary, session]:
            return Record(LINEAGE, int(generation), primary, secondary, int(session))
    raise ValueError(words)


def _copy(text: str) -> Record | None:
    """`solo,4,alpha` or `protected,4,alpha,beta,7`: a node's copy of the record."""
    return _record(text.split(","))


def _result(options: dict[str, object]) -> object:
    if "committed" in options:
        return Committed(0.006)
    if "kept" in options:
        return Kept(str(options["kept"]))
    if "colo" in options:
        return Adopted(ColoMode(str(options["colo"])))
    return None


def _durable(durable: Durable, session: int | None) -> str:
    def name(number: int | None) -> str:
        return "ours" if number == session else str(number)

    parts = [f"generation {durable.generation}"]
    if durable.asked is not None:
        parts.append(f"asked for {name(durable.asked)}")
    if durable.gave_up is not None:
        parts.append(f"gave up {name(durable.gave_up)}")
    if durable.off:
        parts.append("off")
    if durable.record is not None:
        parts.append(f"record {durable.record}")
    if durable.pauses:
        parts.append(f"{durable.pauses} pauses and resumes")
    if durable.partings:
        parts.append(f"{durable.partings} unprotects and protects")
    return ", ".join(parts)


def replay(path: Path) -> tuple[str, str]:
    """Return a transcript as it stands, and as it should stand."""
    text = path.read_text()
    player = Player()
    written = []
    for block in text.rstrip("\n").split("\n\n"):
        lines = block.splitlines()
        inputs = lines[: lines.index("----")] if "----" in lines else lines
        written += inputs
        answers = [
            answer
            for line in inputs
            if line.strip() and not line.startswith("#")
            for answer in player.play(line)
        ]
        if "----" in lines:
            written += ["----", *answers]
        else:
            assert not answers, f"{path.name}: nobody looks at the answer to {inputs}: {answers}"
        written.append("")
    made = "\n".join(written)
    if os.environ.get("COLOHA_REWRITE") and made != text:
        path.write_text(made)
        text = made
    return text, made
