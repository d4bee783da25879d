"""Makes every process that has this folder on its path die at a certain token.

Stands for an input that crashes a kernel: the stage's process is gone the moment it meets it.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

POISON = 1999
STAGE = "handlers.pipeline.stage"


class _Poisoning(MetaPathFinder):
    """Loads the stage's module, then changes what its stage does with the token."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != STAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            forward = module.Stage.forward

            def dying(stage, step, inputs):
                if any(POISON in row for row in step.token_ids):
                    os._exit(66)
                return forward(stage, step, inputs)

            module.Stage.forward = dying

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Poisoning())
