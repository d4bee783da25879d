"""What the driver knows of one stage's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any, Final

from handlers.pipeline.channel import Channel, Message

SECRET_VARIABLE: Final = "PLAIT_STAGE_SECRET"
#: What torchrun told the driver about itself, which is not true for a stage.
_NOT_INHERITED: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
#: Seconds a stage has to stop by itself, and to be gone after it was killed.
_STOP_WITHIN_S: Final = 5.0


class Member:
    """One stage's process, from its start to its end and over all its successors."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        #: The command it works on; None: it waits for one.
        self.doing: str | None = None
        self._began_at = 0.0
        self.heard_at = 0.0
        self._pinged_at = 0.0
        #: When the step it should be computing reached it; None: it has none.
        self._due_since: float | None = None
        self._num_due = 0
        #: Ends in a row before it was ready.
        self.num_deaths = 0
        #: What it, or who killed it, said last.
        self.last_words = ""
        self._forget()

    def _forget(self) -> None:
        self.profile: Any = None
        self.loaded: Message = {}
        self.cut: tuple[int, int] | None = None
        self.num_blocks: int | None = None
        self.epoch: int | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def state(self) -> str:
        """One word for a status line."""
        if self.channel is None:
            return "starting"
        return self.doing or ("working" if self._num_due else "idle")

    def spawn(self, host: str, port: int, secret: str) -> None:
        """Start a process for this stage. It dies with the calling thread."""
        variables = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "handlers.pipeline.stage_process", host, str(port)],
            env=variables | {SECRET_VARIABLE: secret},
            stdin=subprocess.DEVNULL,
        )
        self._due_since, self._num_due = None, 0
        self.last_words = ""
        self.begin("start", 0.0)

    def take_over(self, standby: Member) -> None:
        """Go on with the process that another member has started, which has no layers yet."""
        self.process, self.channel = standby.process, standby.channel
        self.doing, self.heard_at = standby.doing, standby.heard_at
        self._began_at, self._pinged_at = standby._began_at, standby._pinged_at
        self._due_since, self._num_due = None, 0
        self.last_words = ""
        standby.process = standby.channel = None

    def connected(self, channel: Channel) -> None:
        self.channel, self.doing = channel, None

    def begin(self, do: str, now: float) -> None:
        self.doing, self._began_at = do, now

    def did(self, what: str, message: Message) -> None:
        """Note that it has done what it was told."""
        self.doing = None
        match what:
            case "profile":
                self.profile = message["profile"]
            case "load":
                self.loaded, self.cut = message, tuple(message["cut"])
                self.num_blocks = None
            case "allocate":
                self.num_blocks = message["num_blocks"]
            case "join":
                self.epoch = message["epoch"]
            case _:
                raise ValueError(f"stage {self.index} says it did {what!r}, which nobody can")

    def stand_by(self) -> None:
        """The epoch begins: it has no step."""
        self.num_deaths = 0
        self._due_since, self._num_due = None, 0

    def is_due(self, now: float) -> None:
        """A step has reached it."""
        self._num_due += 1
        if self._num_due == 1:
            self._due_since = now

    def is_through(self, now: float) -> None:
        """It has done the oldest of its steps.

        That may be heard before the stage in front is heard to have passed the step on: then the
        count is below zero for a moment.
        """
        self._num_due -= 1
        self._due_since = now if self._num_due > 0 else None

    def complaint(
        self, now: float, silence_s: float, step_limit_s: float, startup_limit_s: float
    ) -> str:
        """Why it must be taken to hang; empty when it need not."""
        if self.process is None:
            return ""
        if self.doing is not None:
            self._began_at = self._began_at or now
            took = now - self._began_at
            # Loading holds the interpreter, and so the answers to pings, for long.
            return f"took {took:.0f} s to {self.doing}" if took > startup_limit_s else ""
        if self._due_since is not None and now - self._due_since > step_limit_s:
            return f"has been at one step for {now - self._due_since:.0f} s"
        asked = self._pinged_at > self.heard_at
        if asked and now - self._pinged_at > silence_s:
            return f"has not answered for {now - self.heard_at:.0f} s"
        return ""

    def wants_ping(self, now: float, every_s: float) -> bool:
        """Whether it is time to ask for a sign of life; the question counts as asked."""
        if self.channel is None or self.doing is not None or self._pinged_at > self.heard_at:
            return False
        if now - self.heard_at < every_s:
            return False
        self._pinged_at = now
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def bury(self) -> str:
        """Take leave of an ended process; returns why it ended, as far as is known."""
        assert self.process is not None
        self.process.kill()
        ended = self._code()
        if self.channel is not None:
            self.channel.close()
        self.process = self.channel = None
        self.num_deaths += 1
        self._forget()
        return self.last_words or ended

    def _code(self) -> str:
        assert self.process is not None
        try:
            code = self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:  # held by a driver of a device; it is as good as gone
            return "not gone yet after it was killed"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Wait until the process is gone; it was told to stop, and can if it is not busy."""
        if self.process is None:
            return
        if self.doing is not None:
            self.process.kill()
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_WITHIN_S)
        if self.channel is not None:
            self.channel.close()
            self.channel = None
