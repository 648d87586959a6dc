"""etcd v3 over its JSON gateway: the members of one cluster, asked as if they were one.

A member that is dead, or cut off from the others, often just says nothing. So members are asked in
turn without waiting for the end of the one before: the first reply counts. One request may thus be
executed by etcd more than once, and long after the call has ended; callers must ask for nothing
where that does harm.
"""

import asyncio
import json
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any

import aiohttp

from coloha.adapters import tls
from coloha.adapters.witness import WitnessError
from coloha.config import EtcdWitness, read_password

ROUNDS = 2
"""How often a member is asked in one call: a connection that stood idle may turn out to be dead."""
MAX_REPLY_BYTES = 256 * 1024
SHOWN_CHARACTERS = 200

INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 3, 7, 8, 9
UNAUTHENTICATED = 16
REFUSALS = (INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION)
"""Codes of gRPC with which etcd says that it did not, and will not, execute a request.

Only in words of its own: its gateway uses the same codes for an answer that it could not pass on.
"""
OWN_WORDS = "etcdserver: "
OLD_TOKEN = ("revision in header is old", "revision of auth store is old")
"""How etcd says that its users or roles have changed since it gave out the token."""

NOT_ETCD = (
    "this is no JSON gateway of etcd 3.4 or newer: correct the endpoint, or have etcd started with"
    " --enable-grpc-gateway"
)
ADVICE = {
    "invalid user ID or password": "correct witness.user or the password file",
    "user name is empty": "etcd wants a user: set witness.user and witness.password_file",
    "authentication is not enabled": "run `etcdctl auth enable`, or remove witness.user",
    "permission denied": "let an administrator of etcd grant witness.user readwrite on the prefix",
    "space exceeded": "compact and defragment etcd, then disarm its alarm",
    "timed out": "most of its members must run and reach each other",
    "leader": "most of its members must run and reach each other",
}
"""What to do, by words that etcd says."""

Json = dict[str, Any]


class _Unanswered(Exception):  # noqa: N818 - it never leaves this module
    """A member gave no reply that can be used."""


class _Refused(_Unanswered):
    """etcd did not execute the request, and another member would say the same."""


class _OldToken(_Refused):
    """etcd wants the user to authenticate anew."""


@dataclass(eq=False, slots=True)
class _Attempt:
    """One request to one member."""

    endpoint: str
    sent: bool = False
    """Whether the member may have the request, and so may execute it, even later."""
    failure: str = "no answer: is the host up, and do most members of etcd reach each other?"


class Etcd:
    """See the module's docstring."""

    def __init__(self, config: EtcdWitness) -> None:
        self._config = config
        self._endpoints = list(config.endpoints)
        """The one that answered last comes first."""
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._context_of: tuple[int, ...] = ()
        self._cluster: str | None = None
        self._token: str | None = None
        self._authenticating = {endpoint: asyncio.Lock() for endpoint in config.endpoints}
        """One lock per member: one that hangs does not keep others from giving a token."""

    async def ask(self, path: str, body: Json, deadline: float, *, changes: bool) -> Json:
        """Return the first reply of any member.

        The next member is asked when the one before failed, or was silent for its share of the
        time; so the last of a long list still has its share.

        :param deadline: in seconds of the event loop's clock.
        :param changes: whether the request changes anything.
        :raises WitnessError: `unknown` if a change may have been, or may yet be, made.
        """
        loop = asyncio.get_running_loop()
        waiting = deque(self._endpoints * ROUNDS)
        allowed = deadline - loop.time()
        share = allowed / (len(waiting) + 1)
        attempts: list[_Attempt] = []
        running: dict[asyncio.Task[Json], _Attempt] = {}
        try:
            while (waiting or running) and loop.time() < deadline:
                if waiting:
                    attempts.append(_Attempt(waiting.popleft()))
                    task = loop.create_task(self._ask(attempts[-1], path, body))
                    running[task] = attempts[-1]
                until = min(deadline, loop.time() + share) if waiting else deadline
                reply = await self._first_reply(running, until - loop.time())
                if reply is not None:
                    return reply
        except _Refused as error:
            unknown = changes and any(attempt.sent for attempt in attempts)
            raise WitnessError(str(error), unknown=unknown) from error
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        unknown = changes and any(attempt.sent for attempt in attempts)
        raise WitnessError(_nobody(attempts), unknown=unknown)

    async def _first_reply(
        self, running: dict[asyncio.Task[Json], _Attempt], timeout_s: float
    ) -> Json | None:
        """Wait until an attempt ends; return its reply, if it has one."""
        done, _ = await asyncio.wait(
            running, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED
        )
        for task in sorted(done, key=lambda task: task.exception() is not None):
            attempt = running.pop(task)
            try:
                reply = task.result()
            except _Refused as error:
                raise _Refused(f"{attempt.endpoint}: {error}") from error
            except _Unanswered as error:
                attempt.failure = str(error)
            else:
                self._endpoints.sort(key=lambda endpoint: endpoint != attempt.endpoint)
                return reply
        return None

    async def ask_everyone(self, path: str, body: Json, deadline: float) -> None:
        """See that every member replies.

        :raises WitnessError: it names those that do not.
        """
        attempts = [_Attempt(endpoint) for endpoint in self._config.endpoints]
        tasks = {asyncio.create_task(self._ask(a, path, body)): a for a in attempts}
        try:
            left = deadline - asyncio.get_running_loop().time()
            done, silent = await asyncio.wait(tasks, timeout=max(0.0, left))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        bad = [tasks[task] for task in silent]
        for task in done:
            if (error := task.exception()) is not None:
                tasks[task].failure = str(error)
                bad.append(tasks[task])
        if bad:
            raise WitnessError(_nobody(bad))

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    # One member

    async def _ask(self, attempt: _Attempt, path: str, body: Json) -> Json:
        """Ask one member, as the user that is configured.

        :raises _Unanswered: if there is no reply, and `attempt.sent` then says whether the request
            may be executed all the same.
        """
        try:
            token = await self._authenticated(attempt.endpoint)
            try:
                return await self._post(attempt.endpoint, path, body, token, attempt)
            except _OldToken:
                attempt.sent = False
                if self._token == token:
                    self._token = None
                token = await self._authenticated(attempt.endpoint)
                return await self._post(attempt.endpoint, path, body, token, attempt)
        except _Refused:
            attempt.sent = False
            raise
        except _Unanswered:
            raise
        except Exception as error:  # whatever it is, the one who asks must get an answer
            raise _Unanswered(_why(error, attempt.endpoint)) from error

    async def _authenticated(self, endpoint: str) -> str | None:
        """Return the user's token, which all members know; None without a user."""
        user, file = self._config.user, self._config.password_file
        if user is None or file is None:
            return None
        async with self._authenticating[endpoint]:
            if self._token is None:
                try:
                    body = {"name": user, "password": read_password(file)}
                except ValueError as error:
                    raise _Refused(str(error)) from error
                reply = await self._post(endpoint, "auth/authenticate", body, None, None)
                self._token = str(reply["token"])
            return self._token

    async def _post(
        self, endpoint: str, path: str, body: Json, token: str | None, attempt: _Attempt | None
    ) -> Json:
        session = self._opened()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = token
        async with session.post(
            f"{endpoint}/v3/{path}",
            data=json.dumps(body).encode(),
            headers=headers,
            ssl=self._tls(),
            allow_redirects=False,
            trace_request_ctx=attempt,
        ) as response:
            return self._judge(response.status, await _bounded(response.content))

    def _judge(self, status: int, data: bytes) -> Json:
        """Return the reply, if it is one."""
        try:
            reply = json.loads(data)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise _Unanswered(f"HTTP status {status}, {NOT_ETCD}")
        if status != 200:
            raise _complaint(status, reply)
        header = reply.get("header")
        cluster = header.get("cluster_id") if isinstance(header, dict) else None
        if not isinstance(cluster, str):
            raise _Unanswered(NOT_ETCD)
        if self._cluster is None:
            self._cluster = cluster
        if cluster != self._cluster:
            raise _Unanswered(
                "this member is of another etcd cluster than the one that answered before: list"
                " the members of one cluster; if etcd was made anew, restart coloha"
            )
        return reply

    def _opened(self) -> aiohttp.ClientSession:
        """Return the session: it belongs to the event loop, so it is opened in it."""
        if self._session is None:
            trace = aiohttp.TraceConfig()
            # From here on the request may be on its way.
            trace.on_connection_create_end.append(_mark_sent)
            trace.on_connection_reuseconn.append(_mark_sent)
            self._session = aiohttp.ClientSession(
                # Members that hang must not use up what the others need.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(),  # the deadline is the caller's
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[trace],
            )
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        """Return what connections are made with; files that were renewed are read again."""
        config = self._config
        if config.endpoints[0].startswith("http:"):
            return True
        try:
            files = tls.named(config)
            stamps = tuple(file.stat().st_mtime_ns for file in files)
            if self._context is None or self._context_of != stamps:
                self._context, self._context_of = tls.context(config), stamps
        except OSError as error:
            named = " ".join(map(str, files))
            raise _Refused(f"{named}: {_words(error)}: correct the PEM files") from error
        return self._context


async def _mark_sent(session: object, context: Any, parameters: object) -> None:
    del session, parameters
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.sent = True


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    data = bytearray()
    while chunk := await content.readany():
        data += chunk
        if len(data) > MAX_REPLY_BYTES:
            raise _Unanswered(f"more than {MAX_REPLY_BYTES} bytes in one reply, {NOT_ETCD}")
    return bytes(data)


def _complaint(status: int, reply: Json) -> _Unanswered:
    """Make the error for what etcd says."""
    said = str(reply.get("message") or reply.get("error") or f"HTTP status {status}")
    code = reply.get("code")
    advice = next((advice for words, advice in ADVICE.items() if words in said), None)
    text = f"it says {said[:SHOWN_CHARACTERS]!r}" + (f": {advice}" if advice else "")
    if code == UNAUTHENTICATED or any(words in said for words in OLD_TOKEN):
        return _OldToken(text)
    refused = code in REFUSALS and said.startswith(OWN_WORDS)
    return _Refused(text) if refused else _Unanswered(text)


def _why(error: Exception, endpoint: str) -> str:
    """Say why there is no reply, and what to do."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"its certificate is not accepted ({_words(error.certificate_error)}): see that"
            " witness.ca_file signed it, and that it names this address"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ssl.SSLError | ConnectionResetError) and endpoint.startswith("https:"):
            return f"no TLS ({_words(cause)}): see that this endpoint speaks https"
        return f"{_words(cause)}: is etcd running there?"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        said = getattr(error, "strerror", None) or "no answer"
        wants = "https" if endpoint.startswith("http:") else "another witness.cert_file"
        return f"it ended the connection ({said}): if it always does, it may want {wants}"
    return _words(error)


def _words(error: BaseException) -> str:
    """Return what the system says of an error; what it does not know comes with its type."""
    if isinstance(error, OSError):
        return tls.words(error)[:SHOWN_CHARACTERS]
    return f"{type(error).__name__}: {error}".rstrip(": ")[:SHOWN_CHARACTERS]


def _nobody(attempts: list[_Attempt]) -> str:
    """Say what became of each member."""
    last = {attempt.endpoint: attempt.failure for attempt in attempts}
    if not last:
        return "etcd is too slow: no time was left to ask again; if that lasts, see its disks"
    return "; ".join(f"{endpoint}: {failure}" for endpoint, failure in last.items())
