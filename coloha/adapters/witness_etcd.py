"""A witness in an etcd cluster: one key per pair.

A swap is one transaction that compares the key's mod_revision with the one read just before (0: no
such key). A reply may be lost after the request was sent, and etcd may execute it late. Asking the
same transaction again, of any member, is safe, and it is how the outcome becomes known:

- At most one copy ever succeeds: a success moves the mod_revision on, and every copy compares it
  with the same value, which never comes back (0 does, if somebody removes the key by hand).
- A copy that fails says what the record is now, and that the mod_revision has moved on. No copy
  can succeed after that; if one did before, the record is `new`, or a later one that followed it.
- `new` names the node that asks and its session or generation, so nobody else writes the same.

Only if no copy is answered, and one may have been sent, is the outcome unknown.
"""

import asyncio
import base64

from coloha.adapters.etcd import Etcd, Json
from coloha.adapters.witness import WitnessError, decode_record, encode_record
from coloha.config import EtcdWitness as Config
from coloha.core.record import Record, swap_problem


class EtcdWitness:
    """See the module's docstring."""

    def __init__(self, config: Config) -> None:
        self._etcd = Etcd(config)
        self._prefix = config.prefix
        self._timeout_s = config.timeout

    async def read(self, pair: str) -> Record | None:
        """See `Witness.read`. A read is linearizable: it has seen every swap that was answered."""
        record, _ = await self._load(pair, self._deadline())
        return record

    async def swap(self, pair: str, expected: Record | None, new: Record, by: str) -> Record | None:
        """See `Witness.swap`."""
        deadline = self._deadline()
        current, revision = await self._load(pair, deadline)
        if current != expected:
            return current
        problem = swap_problem(current, new, by)
        if problem is not None:
            raise WitnessError(problem)
        compare = {"result": "EQUAL", "mod_revision": str(revision)}
        transaction = self._put(pair, compare, new)
        reply = await self._etcd.ask("kv/txn", transaction, deadline, changes=True)
        if reply.get("succeeded") is True:
            return new
        try:
            (response,) = reply["responses"]
            return self._found(pair, response["response_range"])[0]
        except (ValueError, TypeError, KeyError) as error:
            raise WitnessError(f"etcd's reply makes no sense ({error!r})", unknown=True) from error
        except WitnessError as error:
            raise WitnessError(str(error), unknown=True) from error

    async def probe(self, pair: str) -> None:
        """See `Witness.probe`: ask every member for a swap that cannot be made, beside the record.

        Before etcd compares, most members must agree on the transaction, and all of it must be
        permitted and have room.
        """
        never = {"result": "LESS", "mod_revision": "0"}
        transaction = self._put(f"{pair}.probe", never, Record("probe", 1, "probe"))
        await self._etcd.ask_everyone("kv/txn", transaction, self._deadline())

    async def close(self) -> None:
        """See `Witness.close`."""
        await self._etcd.close()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s

    def _key(self, pair: str) -> str:
        return _text(f"{self._prefix}{pair}".encode())

    def _put(self, pair: str, compare: Json, new: Record) -> Json:
        """Make the transaction that puts `new` if the key's mod_revision compares so."""
        key = self._key(pair)
        return {
            "compare": [{"target": "MOD", "key": key, **compare}],
            "success": [{"request_put": {"key": key, "value": _text(encode_record(new))}}],
            "failure": [{"request_range": {"key": key}}],
        }

    async def _load(self, pair: str, deadline: float) -> tuple[Record | None, int]:
        """Return the record and its key's mod_revision."""
        wanted = {"key": self._key(pair)}
        return self._found(pair, await self._etcd.ask("kv/range", wanted, deadline, changes=False))

    def _found(self, pair: str, reply: Json) -> tuple[Record | None, int]:
        try:
            if not reply.get("kvs"):
                return None, 0
            (found,) = reply["kvs"]
            data = base64.b64decode(found.get("value", ""), validate=True)
            return decode_record(data), int(found["mod_revision"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WitnessError(
                f"{self._prefix}{pair} in etcd is damaged ({error}): see the runbook"
            ) from error


def _text(data: bytes) -> str:
    """Return bytes as etcd's JSON has them."""
    return base64.b64encode(data).decode()
