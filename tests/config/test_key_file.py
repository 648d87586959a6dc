"""What is wrong with a key file, and what to do about it."""

from pathlib import Path

import pytest

from coloha.config import key_name, load, read_keys

from .support import HOST, KEY, check, edit, problems_of, refuse, write


def key_problems(folder: Path, key: bytes, mode: int) -> list[str]:
    host_file = write(folder, {"key": key})
    (folder / "key").chmod(mode)
    return problems_of(host_file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_key_file_open_to_others(tmp_path: Path, mode: int) -> None:
    check(
        key_problems(tmp_path, KEY.encode(), mode),
        ("coloha.yaml:5:11: key_file", f"open to others (mode {mode:04o})", "run chmod 600"),
    )


def test_key_file_open_and_short(tmp_path: Path) -> None:
    place = "coloha.yaml:5:11: key_file"
    check(
        key_problems(tmp_path, b" " * 40 + b"x" * 31 + b"\n", 0o644),
        (place, "holds 31 bytes, a key needs at least 32", "coloha keygen"),
        (place, "open to others (mode 0644)", "run chmod 600"),
    )


def test_key_file_long(tmp_path: Path) -> None:
    check(
        key_problems(tmp_path, b"x" * 4097, 0o600),
        ("coloha.yaml:5:11: key_file", "larger than 4096 bytes"),
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", ("cannot be used (No such file or directory)", "create it")),
        (".", ("is not a regular file",)),
        ("n" * 300, ("cannot be used (File name too long)",)),
        ("''", ("is not a regular file",)),
    ],
)
def test_no_key_file(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    host = edit(HOST, "key_file: key", f"key_file: {name}")
    refuse(tmp_path, {"coloha.yaml": host}, ("coloha.yaml:5:11: key_file", *words))


def test_unreadable_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser can read everything, so the refusal is made here.
    original = Path.open

    def refuse_key(path: Path, mode: str) -> object:
        if path.name == "key":
            raise PermissionError(13, "Permission denied")
        return original(path, mode)

    host_file = write(tmp_path, {})
    monkeypatch.setattr(Path, "open", refuse_key)
    check(
        problems_of(host_file),
        ("coloha.yaml:5:11: key_file", "cannot be read (Permission denied)", "user that runs"),
    )


def test_several_keys(tmp_path: Path) -> None:
    one, two = b"1" * 32, b"2" * 64
    write(tmp_path, {"key": one + b"\n  " + two + b"\n\n"})
    assert read_keys(tmp_path / "key") == (one, two)
    assert len({key_name(one), key_name(two)}) == 2
    place = "coloha.yaml:5:11: key_file"
    check(
        key_problems(tmp_path, one + b"\n" + b"3" * 31, 0o600),
        (place, "holds 31 bytes in a line, a key needs at least 32"),
    )
    check(
        key_problems(tmp_path, b"\n".join([one] * 4), 0o600),
        (place, "has 4 lines, each a key: leave 3 at most"),
    )


def test_what_is_no_text_is_one_key(tmp_path: Path) -> None:
    key = b"\xff" * 40 + b"\n" + b"\xfe" * 40
    write(tmp_path, {"key": key})
    assert read_keys(tmp_path / "key") == (key,)


def test_a_credential_of_the_same_name_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd lets the daemon's user read it by an access list, which looks like a group's."""
    host_file = write(tmp_path, {"key": "0" * 64})
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "key").write_text("1" * 64)
    (credentials / "key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert read_keys(load(host_file).host.key_file) == (b"1" * 64,)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "none"))
    assert read_keys(load(host_file).host.key_file) == (b"0" * 64,)


def test_credentials_that_may_not_be_seen_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd names the folder to programs beside the daemon, too, and hides what is in it."""
    host_file = write(tmp_path, {"key": "0" * 64})
    hidden = tmp_path / "hidden"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(hidden))
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent == hidden:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert read_keys(load(host_file).host.key_file) == (b"0" * 64,)
