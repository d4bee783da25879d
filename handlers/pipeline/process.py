"""Ends this process when it has no more use: its parent is gone, or its pipeline is broken.

torchrun is killed without a chance to stop its ranks, and each rank is the leader of a session of
its own, so nothing else would stop them: they would keep their devices. The kernel is asked to
send SIGKILL when the parent dies; a thread that looks at the parent's id serves where the kernel
cannot (the parent died before it was asked, or is not the one who forked).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from typing import Final, NoReturn

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
#: Seconds between two looks at the parent.
_LOOK_EVERY_S: Final = 1.0
#: Seconds the last words may take.
_LOG_WITHIN_S: Final = 1.0


def die_with_parent(*, is_forked_by_a_lasting_thread: bool | None = None) -> None:
    """From now on this process ends, at once and without cleaning up, when its parent does.

    The kernel's signal follows the *thread* that forked. torchrun forks in its main thread; Java
    in a thread of a pool, whose end would kill a healthy worker. None: find out which it is.
    """
    parent = os.getppid()
    if is_forked_by_a_lasting_thread is None:
        is_forked_by_a_lasting_thread = "TORCHELASTIC_RUN_ID" in os.environ
    if is_forked_by_a_lasting_thread and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    end(f"the parent process {parent} is gone")


def end(reason: str) -> NoReturn:
    """Log why and leave now: no handler, thread or destructor can hold the process back.

    Called while an exception is handled, it logs that too.
    """
    # Writing the log blocks for ever when nobody reads the other end of the pipe any more.
    in_any_case = threading.Timer(_LOG_WITHIN_S, os._exit, args=(1,))
    in_any_case.daemon = True
    in_any_case.start()
    with contextlib.suppress(OSError, ValueError):
        is_handling = sys.exception() is not None
        # One record, the reason first: TorchServe soon stops reading what a worker prints.
        logger.critical("process_ended pid=%d reason=%s", os.getpid(), reason, exc_info=is_handling)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)
