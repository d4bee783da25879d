"""Records a decode step as a device graph and replays it: one launch instead of hundreds.

On a fast device a small step lasts as long as the processor takes to launch its kernels. Steps of
the same *layout* launch the same kernels on the same addresses, if what changes between them is
copied into the same buffers first; so the launches are recorded once and replayed
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs). A layout is recorded the
second time it is met. A recording holds addresses of the cache: it is void once that moves.

Knows nothing of models; what it records has to read all that changes from the tensors it is given.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Layouts whose recordings are kept; the one that was not used for longest makes room.
MAX_GRAPHS: Final = 64
_NUM_WARM_UPS: Final = 2

Tensors = Mapping[str, Tensor]
Work = Callable[[Tensors], Tensor]
Replay = Callable[[], Tensor]


class Recorder(Protocol):
    """Records work on a device."""

    def record(self, work: Callable[[], Tensor]) -> Replay:
        """What does the same work again, on the same addresses; its result is overwritten then.

        Raises:
            RuntimeError: the work does something that cannot be recorded.
        """


class CudaRecorder:
    """Records with CUDA graphs, all in one memory pool: only one is replayed at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> Replay:
        # Libraries set themselves up at their first calls, which must not become part of it.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # upstream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def recorder_for(device: torch.device, kernels: str = "auto") -> Recorder | None:
    """What records on ``device``; None where nothing does, or plain kernels are asked for."""
    return CudaRecorder() if device.type == "cuda" and kernels != "plain" else None


@dataclass(frozen=True, slots=True)
class _Graph:
    #: The buffers that the recording reads.
    tensors: dict[str, Tensor]
    replay: Replay


class Graphs:
    """The recordings of one stage."""

    def __init__(self, recorder: Recorder, max_graphs: int = MAX_GRAPHS) -> None:
        self._recorder: Recorder | None = recorder
        self._max_graphs = max_graphs
        #: None for a layout that was met once.
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()

    def __repr__(self) -> str:
        recorded = sum(graph is not None for graph in self._graphs.values())
        return f"<Graphs recorded={recorded} is_recording={self._recorder is not None}>"

    def clear(self) -> None:
        """Forget all recordings: the addresses they use are no longer the right ones."""
        self._graphs.clear()

    def run(self, layout: Hashable, work: Work, tensors: Tensors) -> Tensor:
        """The result of ``work(tensors)``, replayed where it was recorded.

        ``tensors`` have the same names, shapes and types whenever the layout is the same.
        """
        is_new = layout not in self._graphs
        graph = self._graphs.get(layout)
        if graph is None and not is_new:
            graph = self._record(work, tensors)
        self._graphs[layout] = graph
        self._graphs.move_to_end(layout)
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        if graph is None:
            return work(tensors)
        for name, tensor in tensors.items():
            graph.tensors[name].copy_(tensor)
        # The next replay overwrites what this one made, and the result may still be on its way.
        return graph.replay().clone()

    def _record(self, work: Work, tensors: Tensors) -> _Graph | None:
        if self._recorder is None:
            return None
        buffers = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            return _Graph(buffers, self._recorder.record(lambda: work(buffers)))
        except RuntimeError as error:
            # A model may ask the device for a number on the way, which no recording can hold.
            logger.warning("stage_not_recorded reason=%s", error)
            self._recorder = None
            return None
