"""Two machines against everything that can happen to them, in every order hypothesis can think of.

What must never happen raises in the world itself (`BrokenPromiseError`): two voices, output that
the survivor does not remember, a swap against the rules, a machine that spins.
"""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from coloha.core.phases import Phase
from tests.core.world import World

NODES = st.sampled_from(["alpha", "beta"])
QUICK = {
    "stall_timeout_s": 1.0,
    "cold_start_after_s": 3.0,
    "sync_timeout_s": 5.0,
    "retry_max_s": 2.0,
}


def heal(world: World) -> None:
    """End every fault; the VM must then be protected again, without anybody's help."""
    world.note("--- healed")
    world.cut, world.loss, world.ack_loss, world.witness_doubt = set(), 0.0, 0.0, 0.0
    world.witness_down = set()
    for name, node in world.nodes.items():
        node.frozen = False
        world.start_daemon(name)
        if node.qemu:
            node.qemu.frozen = False
    world.run_until(world.protected, 60)


class Faults(RuleBasedStateMachine):
    """Each rule is one thing that happens; time passes in between."""

    @initialize(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.1, 0.3]))
    def begin(self, seed: int, loss: float) -> None:
        self.world = World(seed, **QUICK)
        self.world.loss = loss

    @rule(seconds=st.sampled_from([0.003, 0.02, 0.1, 0.6, 2.0]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule()
    def until_protected(self) -> None:
        world = self.world
        for _ in range(100):
            if world.protected():
                break
            world.run(0.05)

    @rule(name=NODES)
    def kill_qemu(self, name: str) -> None:
        self.world.kill_qemu(name)

    @rule(name=NODES)
    def kill_daemon(self, name: str) -> None:
        self.world.kill_daemon(name)

    @rule(name=NODES)
    def start_daemon(self, name: str) -> None:
        self.world.start_daemon(name)

    @rule(name=NODES)
    def lose_host(self, name: str) -> None:
        self.world.kill_daemon(name)
        self.world.kill_qemu(name)

    @rule(name=NODES)
    def freeze_qemu(self, name: str) -> None:
        self.world.freeze_qemu(name)

    @rule(name=NODES, frozen=st.booleans())
    def freeze_host(self, name: str, frozen: bool) -> None:
        self.world.nodes[name].frozen = frozen

    @rule(way=st.sampled_from([("alpha", "beta"), ("beta", "alpha")]))
    def cut_one_way(self, way: tuple[str, str]) -> None:
        self.world.cut.add(way)

    @rule()
    def cut(self) -> None:
        self.world.cut = {("alpha", "beta"), ("beta", "alpha")}

    @rule()
    def mend(self) -> None:
        self.world.cut = set()

    @rule(name=NODES)
    def lose_witness(self, name: str) -> None:
        self.world.witness_down.add(name)

    @rule(doubt=st.sampled_from([0.0, 0.5]))
    def witness_back(self, doubt: float) -> None:
        self.world.witness_down = set()
        self.world.witness_doubt = doubt

    def teardown(self) -> None:
        if hasattr(self, "world"):
            heal(self.world)


def test_any_faults_in_any_order() -> None:
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


FAULTS = (
    *("qemu", "qemu", "daemon", "daemon", "start", "start", "cut", "one-way", "mend", "down"),
    *("up", "freeze", "thaw", "hang", "host"),
)


def happen(world: World, choose: random.Random) -> None:
    """Let one random fault happen, or end."""
    name = choose.choice(["alpha", "beta"])
    other = "beta" if name == "alpha" else "alpha"
    fault = choose.choice(FAULTS)
    world.note(f"--- {fault} {name}")
    match fault:
        case "qemu":
            world.kill_qemu(name)
        case "daemon":
            world.kill_daemon(name)
        case "start":
            world.start_daemon(name)
        case "cut":
            world.cut = {(name, other), (other, name)}
        case "one-way":
            world.cut.add((name, other))
        case "mend":
            world.cut = set()
        case "down":
            world.witness_down.add(name)
        case "up":
            world.witness_down = set()
        case "freeze" | "thaw":
            world.nodes[name].frozen = fault == "freeze"
        case "hang":
            world.freeze_qemu(name)
        case "host":
            world.kill_daemon(name)
            world.kill_qemu(name)


def life(seed: int) -> World:
    """Live through a history that the seed decides, and heal."""
    choose = random.Random(seed)
    world = World(seed, **QUICK)
    world.loss = choose.choice([0.0, 0.0, 0.1, 0.3])
    world.ack_loss = choose.choice([0.0, 0.02])
    world.witness_doubt = choose.choice([0.0, 0.0, 0.3])
    for _ in range(choose.randint(1, 10)):
        world.run(choose.expovariate(1 / choose.choice([0.05, 0.5, 2.0])))
        happen(world, choose)
    heal(world)
    return world


@pytest.mark.parametrize("first", range(0, 1500, 250))
def test_histories(first: int) -> None:
    for seed in range(first, first + 250):
        try:
            life(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_world_is_no_bed_of_roses() -> None:
    """The histories above must contain what they are meant to try."""
    seen: set[str] = set()
    promotions = 0
    for seed in range(120):
        world = life(seed)
        kinds = {tell.kind for node in world.nodes.values() for tell in node.told}
        promotions += sum(t.kind == "promoted" for n in world.nodes.values() for t in n.told)
        seen |= kinds
    assert promotions > 20
    assert {"yielded", "claimed", "promoted", "adopted", "overtaken", "recovered"} <= seen
    assert {"cold-start", "witness-unreachable", "epoch-kept", "hung"} <= seen


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_single_faults_lose_nothing(name: str) -> None:
    """One fault at a time, at many instants: the VM never has to boot again."""
    for seed in range(60):
        world = World(seed, **QUICK)
        world.run_until(world.protected, 20)
        world.run(random.Random(seed).uniform(0.0, 0.4))
        match seed % 4:
            case 0:
                world.kill_qemu(name)
            case 1:
                world.kill_daemon(name)
            case 2:
                world.cut = {("alpha", "beta"), ("beta", "alpha")}
            case 3:
                world.freeze_qemu(name)
        world.run(4)
        assert world.clients.lives == 2, world.story()
        heal(world)
        assert world.clients.lives == 2, world.story()


def test_witness_alone_is_no_fault() -> None:
    world = World(1, **QUICK)
    world.run_until(world.protected, 20)
    primary = world.in_phase(Phase.PROTECTED)
    world.witness_down = {"alpha", "beta"}
    said = world.clients.said
    world.run(5)
    assert world.in_phase(Phase.PROTECTED) is primary
    assert world.clients.said > said + 350


def test_endless_failovers() -> None:
    world = World(2, **QUICK)
    for _ in range(25):
        world.run_until(world.protected, 20)
        world.run(0.3)
        world.kill_qemu(world.in_phase(Phase.PROTECTED).name)
        world.run(0.1)
    world.run_until(world.protected, 20)
    assert world.clients.lives == 2
    assert world.witness is not None
    assert world.witness.generation == 26
