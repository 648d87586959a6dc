"""A fake QEMU and the monitor connected to it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coloha.core.commit import Message
from coloha.core.events import Failure
from coloha.qemu.qmp import Monitor
from coloha.qemu.steps import Command, ScriptError
from tests.qemu.fake import FakeQemu
from tests.qemu.loops import PATIENCE_S


class Talk:
    """A fake QEMU and the monitor connected to it."""

    def __init__(self, qemu: FakeQemu) -> None:
        self.qemu = qemu
        self.events: list[Message] = []
        self.monitor = Monitor("test", self.events.append)

    async def call(self, *names: str, timeout_s: float = PATIENCE_S) -> list[Message]:
        return await self.monitor.call([Command(name) for name in names], timeout_s)

    async def failing(self, *names: str, timeout_s: float = PATIENCE_S) -> Failure:
        """Call, and return how that failed."""
        with pytest.raises(ScriptError) as caught:
            await self.call(*names, timeout_s=timeout_s)
        return caught.value.failure


@contextlib.asynccontextmanager
async def talking(folder: Path) -> AsyncIterator[Talk]:
    async with FakeQemu(folder) as qemu:
        talk = Talk(qemu)
        try:
            await talk.monitor.connect(qemu.main.path, qemu.oob.path, PATIENCE_S, lambda: True)
            yield talk
        finally:
            await talk.monitor.close()
