"""Load the host file and all pair files, or say everything that is wrong with them at once."""

from dataclasses import dataclass
from pathlib import Path

from coloha.config import rules
from coloha.config.messages import validate
from coloha.config.model import CONTROL_SOCKET, HostConfig, PairConfig
from coloha.config.rules import ValidHost, ValidPair
from coloha.config.source import Source, read
from coloha.errors import ConfigError, Problem
from coloha.places import RUNTIME


@dataclass(frozen=True)
class Config:
    """Everything that is configured on one host; `pairs` are sorted by name."""

    host: HostConfig
    pairs: tuple[PairConfig, ...]

    def peer_of(self, pair: PairConfig) -> str:
        """Return the name of the pair's other node."""
        (peer,) = (node for node in pair.nodes if node != self.host.node)
        return peer


def load(host_file: Path) -> Config:
    """Return what the host file and the pair files beside it say.

    Relative paths become absolute, starting at the folder of the file they are in. Raises
    ConfigError with every problem of every file.
    """
    host_source = read(host_file.absolute())
    host, problems = validate(HostConfig, host_source, host_source.file.parent)
    problems += host_source.problems
    files, folder_problems = _pair_files(host_source, _pairs_directory(host, host_source))
    problems += folder_problems
    pairs = []
    for file in files:
        pair, pair_problems = _load_pair(file)
        problems += pair_problems
        if pair is not None:
            pairs.append(pair)
    problems += rules.check(ValidHost(host, host_source) if host else None, pairs)
    if problems or host is None:
        raise ConfigError(problems)
    return Config(host, tuple(sorted((pair.config for pair in pairs), key=lambda pair: pair.name)))


def control_socket(host_file: Path) -> Path:
    """Return where the daemon listens for the command line.

    Whatever else is wrong with the configuration, a daemon that runs can be asked. Raises
    ConfigError if the file cannot be read, and no daemon listens where it does by default.
    """
    source = read(host_file.absolute())
    if source.data is None and not (RUNTIME / CONTROL_SOCKET).exists():
        raise ConfigError(source.problems)
    return _folder(source, "runtime_directory") / CONTROL_SOCKET


def folders(host_file: Path) -> tuple[Path, Path]:
    """Return the runtime folder and the state folder, whatever is wrong with the configuration."""
    source = read(host_file.absolute())
    return _folder(source, "runtime_directory"), _folder(source, "state_directory")


def _folder(source: Source, name: str) -> Path:
    """Return a folder of the host file, as it is written there, or by default."""
    written = (source.data or {}).get(name)
    default = str(HostConfig.model_fields[name].default)
    return source.file.parent / (written if isinstance(written, str) else default)


def _load_pair(file: Path) -> tuple[ValidPair | None, list[Problem]]:
    source = read(file)
    config, problems = validate(PairConfig, source, file.parent)
    return ValidPair(config, source) if config else None, source.problems + problems


def _pairs_directory(host: HostConfig | None, source: Source) -> Path:
    """Return where the pair files are; a broken host file does not keep them from being checked."""
    if host is not None:
        return host.pairs_directory
    return _folder(source, "pairs_directory")


def _pair_files(source: Source, folder: Path) -> tuple[list[Path], list[Problem]]:
    """Return the pair files in a folder, sorted, and what is wrong with the folder itself."""
    try:
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError) as error:
        if source.data is None:
            return [], []
        reason = getattr(error, "strerror", None) or "not a folder name"
        message = f"{folder} cannot be listed ({reason}): create the folder, or correct this"
        return [], [source.problem(("pairs_directory",), message)]
    misnamed = [
        Problem(str(path), 0, 0, "", f"is not read: rename it to {path.stem}.yaml")
        for path in names
        if path.suffix == ".yml"
    ]
    return [path for path in names if path.suffix == ".yaml"], misnamed
