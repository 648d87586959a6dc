"""QEMU's command line: what both roles get, what only one gets, and how a run is found again."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloha.config.model import Vm
from coloha.core.events import Role, Run
from coloha.qemu.command_line import Files, build, directory_of, mark, netdevs, run_of, tap_name
from tests.qemu.relaxed import relaxed
from tests.qemu.specs import PRIMARY, SECONDARY, argv, nic, vm

PAIR_DIRECTORY = Path("/run/coloha/web")

BOTH = pytest.mark.parametrize("run", [PRIMARY, SECONDARY], ids=lambda run: run.role)


def values(words: list[str], option: str) -> list[str]:
    """What is given to an option, each time."""
    return [value for name, value in itertools.pairwise(words) if name == option]


def test_the_whole_of_it() -> None:
    assert argv(PRIMARY, PAIR_DIRECTORY) == [
        "qemu-system-x86_64",
        *("-name", "guest=web,process=coloha-web"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc,accel=kvm", "-m", "16M", "-smp", "1"),
        *("-qmp", "unix:/run/coloha/web/p-1/qmp.sock,server=on,wait=off"),
        *("-qmp", "unix:/run/coloha/web/p-1/oob.sock,server=on,wait=off"),
        *("-chardev", "file,id=console,path=/run/coloha/web/p-1/console.log,append=on"),
        *("-serial", "chardev:console"),
        "-netdev",
        f"tap,id=net0,ifname={tap_name('web', 0, nic(0))},script=no,downscript=no,vhost=off",
        *("-device", "virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile="),
    ]


@pytest.mark.parametrize("nics", [0, 1, 2, 8])
def test_the_secondary_differs_in_sinks_and_in_waiting(nics: int) -> None:
    spec = vm(nics, extra_arguments=("-device", "isa-debugcon"))
    primary = [word.replace("/p-1/", "/R/") for word in argv(PRIMARY, PAIR_DIRECTORY, spec)]
    secondary = [word.replace("/s-2a/", "/R/") for word in argv(SECONDARY, PAIR_DIRECTORY, spec)]
    assert primary[-2:] == secondary[-2:] == ["-device", "isa-debugcon"]
    sinks = [
        word
        for netdev in netdevs(spec)
        for word in (
            *("-chardev", f"null,id=null-{netdev}", "-object"),
            f"filter-redirector,id=sink-{netdev},netdev={netdev},queue=rx,outdev=null-{netdev}",
        )
    ]
    assert secondary == [*primary[:-2], *sinks, "-incoming", "defer", *primary[-2:]]


@BOTH
def test_each_nic_has_its_own_tap_and_address(run: Run) -> None:
    spec = vm(0, nics=(nic(0), nic(1, model="e1000"), nic(2, tap="mytap")))
    words = argv(run, PAIR_DIRECTORY, spec)
    backends, devices = values(words, "-netdev"), values(words, "-device")
    assert [field(backend, "id") for backend in backends] == ["net0", "net1", "net2"]
    assert [field(device, "netdev") for device in devices] == ["net0", "net1", "net2"]
    assert [device.split(",")[0] for device in devices] == [
        *("virtio-net-pci", "e1000", "virtio-net-pci"),
    ]
    assert [field(device, "mac")[-2:] for device in devices] == ["01", "02", "03"]
    assert field(backends[2], "ifname") == "mytap"
    assert len({field(backend, "ifname") for backend in backends}) == 3


def field(value: str, key: str) -> str:
    (found,) = re.findall(rf"(?:^|,){key}=([^,]*)", value)
    return str(found)


@BOTH
def test_no_packet_gets_past_the_filters(run: Run) -> None:
    words = argv(run, PAIR_DIRECTORY, vm(3))
    for backend in values(words, "-netdev"):
        assert field(backend, "vhost") == "off"
        assert "queues=" not in backend
    for device in values(words, "-device"):
        assert "mq=on" not in device


@BOTH
@pytest.mark.parametrize("nics", [0, 2])
def test_nothing_listens_on_a_network_port(run: Run, nics: int) -> None:
    words = argv(run, PAIR_DIRECTORY, vm(nics))
    text = " ".join(words)
    for forbidden in (
        "tcp:",
        "telnet:",
        "udp:",
        "inet",
        ",host=",
        ",port=",
        "-vnc",
        "-spice",
        "-gdb",
    ):
        assert forbidden not in text
    servers = [word for word in words if "server=on" in word]
    assert all(word.startswith("unix:/run/coloha/web/") for word in servers)
    assert values(words, "-incoming") == (["defer"] if run is SECONDARY else [])


@BOTH
def test_qemu_adds_nothing_by_itself(run: Run) -> None:
    words = argv(run, PAIR_DIRECTORY)
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert values(words, "-display") == ["none"]


def test_what_a_vm_may_set(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    words = argv(
        PRIMARY,
        PAIR_DIRECTORY,
        vm(
            *(0,),
            qemu="/opt/qemu",
            machine="pc-i440fx-7.2,usb=off",
            accelerator="tcg",
            cpu="Skylake-Client,-hle",
            cpus=4,
            memory="3GiB",
            kernel=kernel,
            initrd=tmp_path / "initrd",
            append="console=ttyS0 a=b,c",
        ),
    )
    assert words[0] == "/opt/qemu"
    expected = {
        "-machine": "pc-i440fx-7.2,usb=off,accel=tcg",
        "-cpu": "Skylake-Client,-hle",
        "-smp": "4",
        "-m": "3072M",
        "-kernel": str(kernel),
        "-initrd": str(tmp_path / "initrd"),
        "-append": "console=ttyS0 a=b,c",
    }
    assert {option: values(words, option) for option in expected} == {
        option: [value] for option, value in expected.items()
    }
    assert "-bios" not in words
    assert values(argv(PRIMARY, PAIR_DIRECTORY, vm(firmware="/f,w")), "-bios") == ["/f,w"]


# Taps


def test_tap_names_are_unique_and_fit() -> None:
    names = [
        tap_name(f"pair-{number}", index, nic(0)) for number in range(500) for index in range(8)
    ]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 15


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True), st.integers(0, 7))
@relaxed(100)
def test_any_tap_name_is_an_interface_name(pair: str, index: int) -> None:
    assert re.fullmatch(r"[a-z0-9]{1,15}", tap_name(pair, index, nic(0)))


def test_tap_names_last() -> None:
    """A daemon that was upgraded must find the taps of its elder."""
    assert tap_name("web", 0, nic(0)) == "co4b5e57f6n0"


# Finding a run again

RUNS = st.builds(lambda n: Run(f"p-{n:x}", Role.PRIMARY), st.integers(0, 2**63 - 1)) | st.builds(
    lambda n: Run(f"s-{n:x}", Role.SECONDARY, n), st.integers(0, 2**63 - 1)
)

FOLDERS = st.sampled_from(["/run/coloha", "/r", "/tmp/a b", "/tmp/ünï", "/tmp/x,y=z", "/tmp/,,"])

PAIRS = st.sampled_from(["web", "web2", "w", "web-2"])


@relaxed(200)
@given(RUNS, FOLDERS, PAIRS, PAIRS)
def test_a_run_is_found_by_its_arguments(run: Run, folder: str, pair: str, other: str) -> None:
    directory = Path(folder) / pair
    words = argv(run, directory, pair=pair)
    assert any(word.startswith(mark(directory)) for word in words)
    assert run_of(words, directory) == run
    if other != pair:
        elsewhere = Path(folder) / other
        assert not any(word.startswith(mark(elsewhere)) for word in words)
        assert run_of(words, elsewhere) is None


def test_options_survive_a_comma_in_a_path() -> None:
    """QEMU ends a value at a comma, unless there are two."""
    directory = Path("/run/a,server=off/web")
    for option in ("-qmp", "-chardev"):
        for value in values(argv(PRIMARY, directory, vm(0)), option):
            assert "/run/a,,server=off/web/p-1/" in value


OTHERS = [
    [],
    ["qemu-system-x86_64"],
    ["socat", "-", "unix:/run/coloha/web/p-1/qmp.sock"],
    ["socat", "unix:/run/coloha/web/s-2a/qmp.sock,retry", "-"],
    ["qemu", "-qmp", "unix:/run/coloha/web2/p-1/qmp.sock,server=on,wait=off"],
    ["qemu", "-qmp", "unix:/run/coloha/web/qmp.sock,server=on,wait=off"],
    ["qemu", "-qmp", "unix:/run/coloha/web/s-xyz/qmp.sock,server=on,wait=off"],
    ["qemu", "-qmp", "unix:/run/coloha/web/s-/qmp.sock,server=on,wait=off"],
    ["qemu", "-qmp", "unix:/run/coloha/web/p-xyz/qmp.sock,server=on,wait=off"],
    ["qemu", "-qmp", "unix:/run/coloha/web/p/qmp.sock,server=on,wait=off"],
    ["grep", "unix:/run/coloha/web/"],
]


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_other_processes_are_no_runs(words: list[str]) -> None:
    assert run_of(words, PAIR_DIRECTORY) is None


# Files


def test_each_run_has_files_of_its_own() -> None:
    files = [Files(directory_of(PAIR_DIRECTORY, run)) for run in (PRIMARY, SECONDARY)]
    paths = [path for each in files for path in (each.qmp, each.oob, each.stderr, each.console)]
    assert len(set(paths)) == 8
    assert all(path.parent.parent == PAIR_DIRECTORY for path in paths)


def test_the_spec_is_the_configurations() -> None:
    """So that what is tested here is what a pair file can say."""
    assert isinstance(vm(8), Vm)


def test_a_compared_nic_leaves_no_checksum_to_the_host(tmp_path: Path) -> None:
    """The rewriter computes whole ones. A NIC that is not compared is as ever."""
    spec = vm(nics=(nic(0), nic(1, output="open")))
    files = Files(directory_of(tmp_path, SECONDARY))
    words = build("web", spec, SECONDARY, files, compared=True)
    compared, other = (word for word in words if word.startswith("virtio-net-pci"))
    assert ",csum=off," in compared
    assert "csum" not in other
    filters = [word.split(",")[1] for word in words if word.startswith("filter-")]
    assert filters == [
        "id=sink-net1",
        *("id=deaf-net0", "id=input-net0", "id=sink-net0", "id=rewrite-net0"),
    ]
