"""Counts, one number a step: what a continuously batched handler looks like to TorchServe.

``scheduler/testing/torchserve.py`` answers the same requests in the same way.
"""

import json
import os
import time

STEP_S = 0.02


class CountingHandler:
    """One number a step for every live request."""

    def __init__(self):
        self.positions = {}
        self.documents = {}

    def initialize(self, context):
        """There is nothing to load."""

    def handle(self, data, context):
        time.sleep(STEP_S)
        ids = [context.get_request_id(index) for index in range(len(data))]
        for request_id in set(self.positions) - set(ids):
            del self.positions[request_id], self.documents[request_id]
        for request_id, row in zip(ids, data, strict=True):
            if request_id not in self.positions:
                body = row.get("body") or row.get("data")
                document = body if isinstance(body, dict) else json.loads(bytes(body))
                self.documents[request_id] = document
                self.positions[request_id] = min(starts(document))
        steps = [self.step(request_id, index, context) for index, request_id in enumerate(ids)]
        context.stopping_criteria = [lambda _, last=last: last for _, last in steps]
        return [answer for answer, _ in steps]

    def step(self, request_id, index, context):
        """The next line of one request, and whether it is the last; None: the only one."""
        document, position = self.documents[request_id], self.positions[request_id]
        if "input" in document:
            answer = {"embeddings": [[1.0, 2.0] for _ in document["input"]]}
            return json.dumps(answer | {"num_live": len(self.positions)}), None
        if document["prompt"] == "refuse":
            context.set_response_status(422, "Unprocessable Entity", index)
            return json.dumps({"status": 422, "message": "not this", "field": "prompt"}), None
        known, end = starts(document), document["max_new_tokens"]
        if document["prompt"] == "die" and not any(known) and position == 3:
            os._exit(1)
        self.positions[request_id] = position + 1
        if position < end:
            going_on = [index for index, start in enumerate(known) if start <= position]
            return "".join(line(document, position, index) for index in going_on), False
        num_tokens = sum(max(start, end) for start in known)
        finish = {"reason": "length", "num_prompt_tokens": 1, "num_output_tokens": num_tokens}
        if len(known) > 1:
            finish["reasons"] = ["length"] * len(known)
        return json.dumps(finish) + "\n", None if position == min(known) else True


def starts(document):
    """How many tokens each answer has already."""
    given, num_answers = document.get("generated", []), document.get("n", 1)
    if num_answers == 1:
        return [len(given)]
    return [len(answer) for answer in given or [[]] * num_answers]


def line(document, position, index):
    """The next number of an answer."""
    chunk = {"token_ids": [position], "text": f"{position} "}
    if index:
        chunk["index"] = index
    if "logprobs" in document:
        chunk["logprobs"] = [{"logprob": -0.5, "top": [[position, -0.5]]}]
    return json.dumps(chunk) + "\n"
