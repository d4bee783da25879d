"""One stage, in a process of its own: does what the driver says, in the order it says it.

    python -m handlers.pipeline.stage_process HOST PORT

A thread reads the driver's messages and answers pings, so that a stage at work is told from a
dead one; the main thread does the rest. A neighbour that is lost breaks the *epoch*: what was on
its way is dropped, the weights stay, and the stage waits for the driver to form the next one. An
error of its own ends the process, since after a failed kernel nothing on the device can be
trusted; only memory that ran out is survived.

It knows nothing of requests: slots, tokens and blocks come from the driver.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from handlers.pipeline import kernels, process, profile, step, surgery
from handlers.pipeline.channel import Channel, Closed, Message
from handlers.pipeline.kernels.graphs import recorder_for
from handlers.pipeline.member import SECRET_VARIABLE
from handlers.pipeline.memory import free_bytes, is_out_of_memory, memory_name, release
from handlers.pipeline.sampling import Sampler
from handlers.pipeline.stage import Stage
from handlers.pipeline.step import Step
from handlers.pipeline.transport import Due, Line

logger = logging.getLogger(__name__)


#: Seconds after which a main thread that does not get to the next epoch is taken to be stuck.
_FREE_AFTER_S: Final = 2.0


class EpochBroken(Exception):
    """A neighbour is gone; this stage is sound."""


class StageProcess:
    """What one stage's process holds, from its start to its end."""

    def __init__(self, channel: Channel, host: str) -> None:
        self._channel, self._host = channel, host
        #: Which stage this is; a process that stands by has yet to be told.
        self._index = -1
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._due: deque[tuple[Step, Due | None]] = deque()
        self._settings: Message = {}
        self._parts: surgery.StageModel | None = None
        self._stage: Stage | None = None
        self._sampler: Sampler | None = None
        self._line: Line | None = None
        #: None while the stages are not connected.
        self._epoch: int | None = None
        self._is_stopping = False

    def run(self) -> None:
        """Work until the driver says stop.

        Raises:
            Closed: the driver is gone.
        """
        threading.Thread(target=self._read, name="channel", daemon=True).start()
        while not self._is_stopping or self._due:
            self._obey(is_patient=not self._due)
            if self._due:
                self._guarded(self._run_step)

    def _read(self) -> None:
        try:
            while True:
                for message in self._channel.receive():
                    if message["do"] == "ping":
                        self._tell("ping")
                        continue
                    if message["do"] == "join":
                        self._free_later()
                    self._inbox.put(message)
        except Closed as error:
            if not self._is_stopping:  # else this end has hung up
                process.end(f"stage {self._index} lost its driver: {error}")

    def _free_later(self) -> None:
        """See that the main thread gets to the next epoch.

        Between processors a receive from a stage that is gone raises. Between devices it waits
        on the device, and nothing but breaking it off ends that.
        """
        stuck_in = self._epoch

        def free() -> None:
            if stuck_in is not None and self._epoch == stuck_in and self._line is not None:
                self._line.abort()

        timer = threading.Timer(_FREE_AFTER_S, free)
        timer.daemon = True
        timer.start()

    def _tell(self, did: str, **facts: Any) -> None:
        self._channel.send({"did": did, **facts})

    def _obey(self, *, is_patient: bool) -> None:
        """Take the messages there are; wait for one if there is nothing else to do."""
        while is_patient or not self._inbox.empty():
            message = self._inbox.get()
            self._guarded(lambda message=message: self._carry_out(message))  # type: ignore[misc]  # bound by the default
            is_patient = False

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except EpochBroken as error:
            self._break(str(error))
        except Closed:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                self._tell("fail", reason=f"{type(error).__name__}: {error}"[:2000])
                raise
            logger.exception("stage_out_of_memory stage=%d", self._index)
            self._break(f"out of memory: {error}"[:2000], is_memory=True)

    def _break(self, reason: str, *, is_memory: bool = False) -> None:
        epoch, self._epoch = self._epoch, None
        self._due.clear()
        if self._line is not None:
            self._line.leave()
        release(self._device)
        self._tell("break", epoch=epoch, reason=reason, is_memory=is_memory)

    def _carry_out(self, message: Message) -> None:
        self._index = message.get("stage", self._index)
        match message["do"]:
            case "step":
                self._expect(message)
            case "profile":
                self._profile(message)
            case "load":
                self._load(message)
            case "allocate":
                self._allocate(message)
            case "join":
                self._join(message)
            case "stop":
                self._is_stopping = True

    @property
    def _device(self) -> torch.device:
        return torch.device(self._settings.get("device", "cpu"))

    def _use(self, message: Message) -> None:
        self._settings = message
        if self._device.type != "cpu":
            getattr(torch, self._device.type).set_device(self._device)

    def _profile(self, message: Message) -> None:
        self._use(message)
        # Compiling takes longer than measuring, and changes little about the balance of layers.
        how = message["kernels"] | {"compiles": False}
        measured = profile.measure(
            Path(message["model_dir"]),
            getattr(torch, message["dtype"]),
            self._device,
            prepare=lambda parts: kernels.prepare(parts, **how),
        )
        self._tell("profile", profile=measured.to_document())

    def _load(self, message: Message) -> None:
        """Build the stage; a model that cannot be cut this way is the configuration's fault."""
        self._use(message)
        self._parts = self._stage = self._sampler = None
        release(self._device)
        try:
            parts = surgery.build(
                Path(message["model_dir"]),
                tuple(message["cut"]),
                getattr(torch, message["dtype"]),
                self._device,
            )
            how = kernels.prepare(parts, **message["kernels"])
        except (ValueError, OSError) as error:
            self._tell("refuse", reason=str(error))
            return
        self._parts = parts
        recorder = recorder_for(self._device, message["kernels"]["kernels"])
        self._stage = Stage(parts, message["num_slots"], message["max_context"], recorder)
        if parts.is_last:
            self._sampler = Sampler(
                message["vocabulary_size"],
                self._device,
                self._tokenizer,
                message["eos_token_ids"],
            )
            self._sampler.prepare()
        logger.info("stage_loaded stage=%d kernels=%s %r", self._index, how, self._stage)
        self._tell(
            "load",
            cut=message["cut"],
            free_bytes=free_bytes(self._device),
            memory=memory_name(self._device),
            kv_bytes=self._stage.kv_bytes_per_block,
        )

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._settings["model_dir"])

    def _allocate(self, message: Message) -> None:
        assert self._stage is not None
        self._stage.allocate(message["num_blocks"])
        self._tell("allocate", num_blocks=message["num_blocks"])

    def _join(self, message: Message) -> None:
        assert self._stage is not None
        self._due.clear()
        self._stage.reset()
        self._line = self._line or Line(self._index, message["num_stages"], self._device)
        try:
            self._line.join(self._host, message["port"], message["epoch"])
        except RuntimeError as error:
            raise EpochBroken(f"stage {self._index} could not join: {error}") from error
        self._epoch = message["epoch"]
        self._tell("join", epoch=self._epoch)

    def _expect(self, message: Message) -> None:
        """Let a step come in while the ones before are computed."""
        if message["epoch"] != self._epoch or self._stage is None:
            return
        told = step.decode(message["step"])
        due = None
        if not self._stage.is_first:
            due = self._connected(
                lambda line, stage: line.expect(told, stage.hidden_size, stage.dtype)
            )
        self._due.append((told, due))

    def _run_step(self) -> None:
        told, due = self._due.popleft()
        stage = self._stage
        assert stage is not None
        hidden = torch.tensor(told.token_ids) if due is None else self._received(due)
        began = time.perf_counter()
        result = stage.forward(told, hidden)
        draws = self._draw(told, result) if stage.is_last else None
        if draws is None:
            self._settle()
        seconds = time.perf_counter() - began
        if draws is None:
            self._connected(lambda line, _: line.send(result))
        self._tell("step", epoch=self._epoch, number=told.number, s=seconds, draws=draws)

    def _draw(self, told: Step, logits: Tensor) -> list[Any]:
        assert self._sampler is not None
        with torch.inference_mode():
            for opened in told.opens:
                self._sampler.open(opened)
            draws = self._sampler.draw(logits, told.rows)
        return [None if draw is None else asdict(draw) for draw in draws]

    def _settle(self) -> None:
        """Once a step, let the device finish, so that the time told is the time it took."""
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize(self._device)

    def _received(self, due: Due) -> Tensor:
        try:
            return due.wait()
        except RuntimeError as error:
            raise EpochBroken(f"stage {self._index - 1} is gone: {error}") from error

    def _connected(self, work: Callable[[Line, Stage], Any]) -> Any:
        assert self._line is not None
        assert self._stage is not None
        try:
            return work(self._line, self._stage)
        except RuntimeError as error:
            raise EpochBroken(f"a neighbour of stage {self._index} is gone: {error}") from error


def main(arguments: list[str]) -> None:
    """Connect to the driver and work for it."""
    process.die_with_parent(is_forked_by_a_lasting_thread=True)
    host, port = arguments[0], int(arguments[1])
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    channel = Channel.connect(host, port)
    secret = os.environ.pop(SECRET_VARIABLE, "")
    channel.send({"did": "hello", "secret": secret, "pid": os.getpid()})
    try:
        StageProcess(channel, host).run()
    except Exception as error:  # noqa: BLE001  # whatever it is, `end` logs it
        process.end(f"a stage failed: {type(error).__name__}: {error}")
    finally:
        channel.close()


if __name__ == "__main__":
    main(sys.argv[1:])
