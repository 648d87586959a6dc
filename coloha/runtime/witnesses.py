"""The witness that a pair's file names, opened."""

from coloha import config
from coloha.adapters.witness import Witness
from coloha.adapters.witness_file import FileWitness


def open_witness(section: config.Witness) -> Witness | None:
    """Return the witness of this section, if there is one. Nothing is asked of it yet."""
    if isinstance(section, config.NoWitness):
        return None
    if isinstance(section, config.EtcdWitness):
        # The HTTP client is large: every verb would load it, and most pairs do without.
        from coloha.adapters.witness_etcd import EtcdWitness  # noqa: PLC0415

        return EtcdWitness(section)
    return FileWitness(section.directory, section.timeout)
