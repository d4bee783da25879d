"""The Python client library; the command line is its first user.

client = Client()
for text in client.generate("def main():", max_new_tokens=40):
    print(text, end="", flush=True)
"""

from handlers.wire import TokenLogprob
from scheduler.client.problems import ApiError, InputRefused, TaskUnsuccessful, Unreachable
from scheduler.client.session import Client
from scheduler.client.streaming import Chunk, State

__all__ = [
    "ApiError",
    "Chunk",
    "Client",
    "InputRefused",
    "State",
    "TaskUnsuccessful",
    "TokenLogprob",
    "Unreachable",
]
