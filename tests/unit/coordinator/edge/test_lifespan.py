"""What begins when the application begins to serve."""

from __future__ import annotations

import gc


async def test_garbage_is_collected_though_its_process_held_that_off(app) -> None:
    gc.disable()
    try:
        async with app.router.lifespan_context(app):
            assert gc.isenabled()
    finally:
        gc.enable()
