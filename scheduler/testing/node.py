"""A node in one process: the runner beside the double of TorchServe. It takes a second to start.

    python -m scheduler.testing.node

It reads the settings that ``plait node`` reads, and works until SIGTERM.
"""

from __future__ import annotations

import asyncio
import threading

from scheduler import app
from scheduler.settings import load
from scheduler.testing.torchserve import FakeTorchServe


def main() -> None:
    """Run until told to stop."""
    settings = load()
    settings.model_store.mkdir(parents=True, exist_ok=True)
    settings.state.mkdir(parents=True, exist_ok=True)
    loop = asyncio.new_event_loop()
    torchserve = FakeTorchServe(settings.state, settings.model_store.absolute(), step_s=0.02)
    loop.run_until_complete(torchserve.start())
    # The runner has the main thread, where signals arrive.
    threading.Thread(target=loop.run_forever, daemon=True).start()
    app.run_runner(settings)


if __name__ == "__main__":
    main()
