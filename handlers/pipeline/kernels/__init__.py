"""Makes a built stage fast: how its weights are kept, what is compiled, what is recorded."""

from handlers.pipeline.kernels.preparation import prepare

__all__ = ["prepare"]
