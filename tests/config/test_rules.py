"""Rules between files: what is valid by itself, but not together."""

from pathlib import Path

import pytest

from coloha.config import load

from .support import HOST, PAIR, check, edit, load_from, pair_named, problems_of, refuse, write

APP = pair_named("app", "52:54:00:00:00:02")


def test_this_host_must_be_a_node(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"coloha.yaml": edit(HOST, "node: alpha", "node: gamma")},
        ("pairs.d/web.yaml:3:3: nodes", "this host is 'gamma'", "add it, or remove this file"),
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "path"),
    [
        ("10.9.0.1:7770", "10.9.0.1:7772", 4, "nodes.alpha.channel"),
        ("10.9.0.1:7770", "10.9.0.3:7770", 4, "nodes.alpha.channel"),
        ("10.9.0.1:7771", "10.9.0.1:7772", 5, "nodes.alpha.heartbeat"),
        ("10.9.0.1:7771", "10.9.0.3:7771", 5, "nodes.alpha.heartbeat"),
    ],
)
def test_own_addresses_agree_with_listen(
    tmp_path: Path, old: str, new: str, line: int, path: str
) -> None:
    place = f"pairs.d/web.yaml:{line}:{14 if 'channel' in path else 16}: {path}"
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": edit(PAIR, old, new)},
        (place, f"is {new}, but this host listens on {old}", f"listen.{path.split('.')[2]}"),
    )


def test_wildcard_covers_its_family_and_port_only(tmp_path: Path) -> None:
    wildcard = HOST.replace("10.9.0.1", "0.0.0.0")
    other = PAIR.replace("10.9.0.1", "10.9.0.9")
    assert load_from(tmp_path, {"coloha.yaml": wildcard, "pairs.d/web.yaml": other}).pairs
    refuse(
        tmp_path,
        {"coloha.yaml": wildcard, "pairs.d/web.yaml": edit(PAIR, "10.9.0.1:7770", "10.9.0.1:1")},
        ("pairs.d/web.yaml:4:14: nodes.alpha.channel", "listens on 0.0.0.0:7770"),
    )
    sixth = edit(wildcard, "channel: 0.0.0.0:7770", "channel: '[::]:7770'")
    refuse(
        tmp_path,
        {"coloha.yaml": sixth, "pairs.d/web.yaml": PAIR},
        ("pairs.d/web.yaml:4:14: nodes.alpha.channel", "listens on [::]:7770"),
    )


def disks(*words: str) -> str:
    return f"vm:\n  disks: [{', '.join('{' + word + ', format: raw}' for word in words)}]\n"


def test_nobody_else_uses_a_disk_that_is_written_to(tmp_path: Path) -> None:
    write(tmp_path, {"pairs.d/a": "", "pairs.d/b": "", "pairs.d/c": ""})
    shared = "image: c, access: read-only"
    mine = edit(PAIR, "vm:\n", disks("image: a", shared, "image: b", "image: a"))
    theirs = edit(APP, "vm:\n", disks("image: b, access: read-only", shared))
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": mine, "pairs.d/app.yaml": theirs},
        ("pairs.d/app.yaml:10:19: vm.disks[0].image", "written to by vm.disks[2] of web.yaml"),
        ("pairs.d/web.yaml:10:113: vm.disks[3].image", "written to by vm.disks[0] of web.yaml"),
    )


def test_nodes_do_not_share_addresses(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": PAIR.replace("10.9.0.2", "10.9.0.1")},
        ("pairs.d/web.yaml:7:14: nodes.beta.channel", "channel of node alpha in web.yaml"),
        ("pairs.d/web.yaml:8:16: nodes.beta.heartbeat", "heartbeat of node alpha in web.yaml"),
    )


def test_nodes_on_one_host_differ_by_port(tmp_path: Path) -> None:
    text = edit(PAIR, "10.9.0.2:7770", "10.9.0.1:7780")
    text = edit(text, "10.9.0.2:7771", "10.9.0.1:7781")
    assert load_from(tmp_path, {"pairs.d/web.yaml": text}).pairs


def test_channel_and_heartbeat_may_have_equal_addresses(tmp_path: Path) -> None:
    host, pair = HOST.replace("7771", "7770"), PAIR.replace("7771", "7770")
    assert load_from(tmp_path, {"coloha.yaml": host, "pairs.d/web.yaml": pair}).pairs


def test_families_are_not_mixed(tmp_path: Path) -> None:
    text = edit(PAIR, "10.9.0.2:7771", "'[fd00::2]:7771'")
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": text},
        ("pairs.d/web.yaml:8:16: nodes.beta.heartbeat", "IPv4 and IPv6", "nodes.alpha.heartbeat"),
    )


def test_pairs_agree_on_the_addresses_of_a_peer(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"pairs.d/app.yaml": edit(APP, "10.9.0.2:7771", "10.9.0.2:7772")},
        (
            "pairs.d/web.yaml:8:16: nodes.beta.heartbeat",
            "is 10.9.0.2:7771, but app.yaml says 10.9.0.2:7772",
        ),
    )


def test_two_peers_do_not_share_an_address(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {"pairs.d/app.yaml": edit(APP, "  beta:", "  gamma:")},
        ("pairs.d/web.yaml:7:14: nodes.beta.channel", "channel of node gamma in app.yaml"),
        ("pairs.d/web.yaml:8:16: nodes.beta.heartbeat", "heartbeat of node gamma in app.yaml"),
    )


def test_two_peers_with_addresses_of_their_own(tmp_path: Path) -> None:
    app = edit(APP, "  beta:", "  gamma:").replace("10.9.0.2", "10.9.0.3")
    config = load_from(tmp_path, {"pairs.d/app.yaml": app})
    assert [config.peer_of(pair) for pair in config.pairs] == ["gamma", "beta"]


def test_this_node_may_have_an_address_for_each_peer(tmp_path: Path) -> None:
    app = edit(APP, "  beta:", "  gamma:")
    app = app.replace("10.9.0.2", "10.8.0.2").replace("10.9.0.1", "10.8.0.1")
    host = HOST.replace("10.9.0.1", "0.0.0.0")
    config = load_from(tmp_path, {"coloha.yaml": host, "pairs.d/app.yaml": app})
    assert [str(pair.nodes["alpha"].channel.host) for pair in config.pairs] == [
        "10.8.0.1",
        "10.9.0.1",
    ]


def many(count: int) -> dict[str, str]:
    return {
        f"pairs.d/vm{index:02}.yaml": pair_named(f"vm{index:02}", f"52:54:00:00:01:{index:02}")
        for index in range(count)
    }


def test_one_heartbeat_carries_16_pairs(tmp_path: Path) -> None:
    assert len(load_from(tmp_path, many(15)).pairs) == 16
    refuse(
        tmp_path,
        many(22),
        ("pairs.d/vm16.yaml:3:3: nodes", "alpha and beta have 23 pairs", "carries 16"),
    )


def test_16_pairs_for_each_peer(tmp_path: Path) -> None:
    files = many(25)
    for name in list(files)[:10]:
        files[name] = edit(files[name], "  beta:", "  gamma:").replace("10.9.0.2", "10.9.0.3")
    assert len(load_from(tmp_path, files).pairs) == 26


def test_macs_and_taps_are_unique(tmp_path: Path) -> None:
    web = edit(PAIR, "bridge: br0", "tap: tap0\n    - {mac: 52:54:00:12:34:56, tap: tap1}")
    app = edit(APP, "52:54:00:00:00:02", "52:54:00:12:34:56")
    app = edit(app, "bridge: br0", "tap: tap1\n    - {mac: 52:54:00:12:34:57, tap: tap1}")
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": web, "pairs.d/app.yaml": app},
        ("pairs.d/app.yaml:14:37: vm.nics[1].tap", "tap1 is used by vm.nics[0] of app.yaml"),
        ("pairs.d/web.yaml:12:12: vm.nics[0].mac", "is used by vm.nics[0] of app.yaml"),
        ("pairs.d/web.yaml:14:13: vm.nics[1].mac", "is used by vm.nics[0] of app.yaml"),
        ("pairs.d/web.yaml:14:37: vm.nics[1].tap", "tap1 is used by vm.nics[0] of app.yaml"),
    )


def test_macs_differ_by_more_than_case(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {
            "pairs.d/app.yaml": edit(APP, "52:54:00:00:00:02", "52:54:00:00:00:AB"),
            "pairs.d/web.yaml": edit(PAIR, "52:54:00:12:34:56", "52:54:00:00:00:ab"),
        },
        ("pairs.d/web.yaml:12:12: vm.nics[0].mac", "52:54:00:00:00:ab is used by"),
    )


def test_pairs_may_share_a_bridge(tmp_path: Path) -> None:
    assert len(load_from(tmp_path, {"pairs.d/app.yaml": APP}).pairs) == 2


def test_rules_between_pairs_need_no_valid_host_file(tmp_path: Path) -> None:
    host_file = write(
        tmp_path,
        {
            "coloha.yaml": edit(HOST, "node: alpha\n", ""),
            "pairs.d/app.yaml": edit(APP, "52:54:00:00:00:02", "52:54:00:12:34:56"),
        },
    )
    check(
        problems_of(host_file),
        ("coloha.yaml:1:1: node", "missing"),
        ("pairs.d/web.yaml:12:12: vm.nics[0].mac", "is used by"),
    )


def test_broken_pair_does_not_hide_rules_between_the_others(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        {
            "pairs.d/app.yaml": edit(APP, "memory: 128MiB", "memory: 1"),
            "pairs.d/db.yaml": pair_named("db", "52:54:00:12:34:56"),
        },
        ("pairs.d/app.yaml:10:11: vm.memory", "has no unit"),
        ("pairs.d/web.yaml:12:12: vm.nics[0].mac", "is used by vm.nics[0] of db.yaml"),
    )


def test_cold_start_leaves_time_for_a_failover(tmp_path: Path) -> None:
    slow = "heartbeat: {interval: 1s, misses: 10}\nrecovery: {cold_start_after: "
    assert load(write(tmp_path, {"pairs.d/web.yaml": PAIR + slow + "22s}\n"})).pairs
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": PAIR + slow + "21999ms}\n"},
        ("pairs.d/web.yaml:18:30: recovery.cold_start_after", "write at least 22s"),
    )


def test_a_vm_that_somebody_else_starts(tmp_path: Path) -> None:
    attach = "  attach: {node: gamma, monitor: /run/a.sock, second_monitor: /run/b.sock}\n"
    image = tmp_path / "image"
    image.touch()
    disks = f"  disks:\n    - {{image: {image}, format: raw}}\n"
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": edit(PAIR, "  nics:\n", f"{disks}{attach}  nics:\n")},
        ("pairs.d/web.yaml:12:7: vm.disks[0]", "cannot be replicated"),
        ("pairs.d/web.yaml:13:18: vm.attach.node", "'gamma', which is none of the pair's nodes"),
    )
    same = attach.replace("b.sock", "a.sock").replace("gamma", "alpha")
    refuse(
        tmp_path,
        {"pairs.d/web.yaml": edit(PAIR, "  nics:\n", f"{same}  nics:\n")},
        ("pairs.d/web.yaml:11:63: vm.attach.second_monitor", "the same as monitor"),
    )
