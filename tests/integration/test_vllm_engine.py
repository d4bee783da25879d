"""The vLLM engine, over the double, when things go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

#: Starts the engine; what is done with it follows.
START = """
import gc, logging, sys
from dataclasses import replace
from pathlib import Path
from handlers import model_config
from handlers.engines.base import Place
from handlers.lifecycle import start_engine
from handlers.wire import GenerationRequest

logging.basicConfig()
root = Path({root!r})
demo = model_config.load(root / "model_configs" / "demo.yaml")
config = replace(demo, engine="vllm", num_stages={stages}, engine_options={options})
engine = start_engine(config, Place(rank={rank}))
"""
DIE = """
from vllm.v1.engine.async_llm import AsyncLLM
[llm] = [each for each in gc.get_objects() if isinstance(each, AsyncLLM)]
llm.die()
while True:
    engine.wait(30)
    engine.take("a")
"""
#: The next request fails, as one does that the package cannot take apart.
BREAK = """
from vllm.v1.engine import async_llm, exceptions
generate = async_llm.AsyncLLM.generate
async def broken(self, *arguments):
    async_llm.AsyncLLM.generate = generate
    raise exceptions.EngineGenerateError("no page")
    yield
async_llm.AsyncLLM.generate = broken
"""
ASK = """
def say(**changes):
    engine.submit("a", GenerationRequest("def ", max_new_tokens=4, **changes))
    answers = []
    while not answers or not type(answers[-1]).__name__ in ("Finish", "Failure"):
        engine.wait(30)
        answers += engine.take("a")
    print(answers[-1])
"""


def _run(root: Path, *parts: str, rank: int = 0, stages: int = 1, options: str = "{}") -> str:
    head = START.format(root=str(root), rank=rank, stages=stages, options=options)
    environment = {**os.environ, "PYTHONPATH": str(root / "tests" / "doubles")}
    done = subprocess.run(
        [sys.executable, "-c", head + "\n".join(parts)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"{done.returncode} {done.stdout} {done.stderr}"


def test_an_engine_that_dies_idle_ends_the_process(root: Path) -> None:
    said = _run(root, DIE)

    assert said.startswith("1 ")
    assert "process_ended" in said


def test_an_engine_that_dies_at_work_ends_the_process(root: Path) -> None:
    begin = 'engine.submit("a", GenerationRequest("def ", max_new_tokens=900))'

    said = _run(root, begin, "engine.wait(30)", DIE)

    assert said.startswith("1 ")
    assert "vllm's engine died" in said


def test_a_value_vllm_does_not_take_is_refused_by_name(root: Path) -> None:
    said = _run(root, ASK, "try: say(temperature=3.0)", "except Exception as error: print(error)")

    assert "temperature: vllm: " in said


def test_an_answer_that_vllm_fails_is_the_requests_failure_only(root: Path) -> None:
    said = _run(root, ASK, BREAK, "say()", "say()", "engine.close()")

    assert said.startswith("0 Failure(status=500, message='vllm: EngineGenerateError: no page'")
    assert "Finish(reason='length'" in said


def test_an_option_vllm_does_not_know_is_named(root: Path) -> None:
    said = _run(root, options='{"enforce_eagr": True, }')

    assert "plait.engine_options.enforce_eagr" in said
    assert "no such engine argument" in said


def test_a_rank_that_is_not_the_first_only_keeps_its_place(root: Path) -> None:
    said = _run(root, "print(type(engine).__name__); engine.close()", rank=1, stages=2)

    assert said.startswith("0 Placeholder")


#: A process like vLLM's, which the worker's starts and then says the number of.
CHILD = """
import multiprocessing, os, time
from handlers.engines._vllm_library import end_with_worker, own_environment

def work():
    end_with_worker()
    time.sleep(60)

if __name__ == "__main__":
    with own_environment():
        child = multiprocessing.get_context("spawn").Process(target=work)
        child.start()
    print(child.pid, flush=True)
    child.join()
"""


def test_vllms_processes_end_when_the_worker_is_killed(tmp_path: Path, root: Path) -> None:
    (tmp_path / "worker.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "worker.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        worker.kill()

    assert psutil.wait_procs([child], timeout=30)[1] == []
