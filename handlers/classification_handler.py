"""Entry file of a model that labels texts; packed into its archive and found there by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handlers.lifecycle import Context, Lifecycle


class ClassificationHandler:
    """What TorchServe makes one of in each rank of a worker."""

    def __init__(self) -> None:
        self._lifecycle = Lifecycle("classify")

    def initialize(self, context: Context) -> None:
        self._lifecycle.initialize(context)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[str]:
        return self._lifecycle.handle(data, context)
