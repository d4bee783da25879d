"""Makes stages fail at certain tokens, three in a row, in every process with this on its path.

Stands for what an input can do to a kernel: end the process, hang it, run out of memory, or give
numbers that are none.
"""

import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

STAGE = "handlers.pipeline.stage"
DEADLY, HANGING, HUNGRY, NOT_A_NUMBER = 1999, 1998, 1997, 1996


class _Failing(MetaPathFinder):
    """Loads the stage's module, then changes what its first stage does with the tokens."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != STAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            forward = module.Stage.forward

            def failing(stage, step, inputs):
                _fail(module.torch, step)
                result = forward(stage, step, inputs)
                with module.torch.inference_mode():
                    for row in _rows_with(NOT_A_NUMBER, step):
                        result[row] = float("nan")
                return result

            module.Stage.forward = failing

        spec.loader.exec_module = exec_module
        return spec


def _rows_with(token_id, step):
    words = f" {token_id} {token_id} {token_id} "
    return [
        row for row, ids in enumerate(step.token_ids) if words in f" {' '.join(map(str, ids))} "
    ]


def _fail(torch, step):
    if _rows_with(DEADLY, step):
        os._exit(66)
    if _rows_with(HANGING, step):
        time.sleep(3600)
    if _rows_with(HUNGRY, step):
        raise torch.OutOfMemoryError("a test asked for too much")


sys.meta_path.insert(0, _Failing())
