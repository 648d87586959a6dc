"""The lab's guests on TCG: a secondary runs what a checkpoint brought, not what it was before."""

import asyncio
from pathlib import Path

import pytest

from lab.assets import load_assets
from tests.qemu import firmware
from tests.qemu.pairs import epochs, pair
from tests.qemu.specs import PRIMARY, SECONDARY

pytestmark = pytest.mark.qemu

EPOCHS = 40


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "bare"])
def test_no_code_outlives_the_memory_it_was_translated_from(folder: Path, plugin: bool) -> None:
    """Without lab/tcg.c it does (docs/qemu.md, 2.6)."""

    async def main() -> None:
        image = firmware.image(folder / "image", firmware.CHANGES_ITS_CODE)
        words = ("-plugin", str(load_assets().plugin)) if plugin else ()
        async with pair(folder, accelerator="tcg", firmware=image, extra_arguments=words) as both:
            said = {each: folder / each.id for each in (PRIMARY, SECONDARY)}
            primary, secondary = [
                await both.start(each, "-debugcon", f"file:{path}") for each, path in said.items()
            ]
            await both.protect(primary, secondary)
            for _ in range(EPOCHS):
                await epochs(primary, 1)
                await asyncio.sleep(0.01)
            assert said[PRIMARY].read_text() == ""
            assert ("!" in said[SECONDARY].read_text()) is not plugin

    asyncio.run(main())
