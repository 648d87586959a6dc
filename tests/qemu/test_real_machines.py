"""Real QEMU: every kind of machine that a pair file can describe goes through COLO."""

from pathlib import Path
from typing import Any

import pytest

from coloha.core.actions import Script
from coloha.core.events import Failure
from coloha.qemu.scripts import Plan
from coloha.qemu.steps import ScriptError
from tests.qemu import firmware, specs
from tests.qemu.loops import Loop
from tests.qemu.pairs import epochs, pair

pytestmark = pytest.mark.qemu

MACHINES: dict[str, dict[str, Any]] = {
    "eight-nics": {"nics": tuple(map(specs.nic, range(8)))},
    "e1000": {"nics": tuple(specs.nic(number, model="e1000") for number in range(2))},
    "rtl8139": {"nics": (specs.nic(0, model="rtl8139"),)},
    "q35": {"machine": "q35"},
    "versioned": {"machine": "pc-i440fx-7.2"},
    "larger": {"memory": "96MiB", "cpus": 4},
    "tcg": {"accelerator": "tcg"},
    "tcg-smp": {"accelerator": "tcg", "cpus": 2, "cpu": "qemu64"},
    "more-devices": {"extra_arguments": ("-device", "VGA", "-device", "qemu-xhci")},
}


@pytest.mark.parametrize("name", MACHINES)
def test_each_goes_through_colo(run: Loop, folder: Path, name: str) -> None:
    settings = dict(MACHINES[name])
    if settings.get("accelerator") == "tcg":
        settings["firmware"] = firmware.image(folder / "image", firmware.IDLE)

    async def main() -> None:
        async with pair(folder, **settings) as both:
            primary, secondary = await both.start_both()
            await both.protect(primary, secondary)
            await epochs(primary, 5)
            await primary.speak(1)
            assert await both.wire.frames() == 0
            primary.vm.kill()
            await secondary.do(Script.PROMOTE)
            assert await secondary.status() == "running"
            heard = await both.wire.heard(1)
            assert set(heard) == {secondary.run.id}

    run(main())


@pytest.mark.parametrize("script", [Script.ENTER_COLO, Script.ACCEPT_COLO])
def test_the_return_path_is_required(run: Loop, folder: Path, script: Script) -> None:
    async def main() -> None:
        async with pair(folder) as both:
            primary, secondary = await both.start_both()
            node = primary if script is Script.ENTER_COLO else secondary
            node.vm._plan = Plan(("net0",), return_path=False)
            with pytest.raises(ScriptError, match="return-path") as caught:
                await node.do(script)
            assert caught.value.failure is Failure.REFUSED

    run(main())
