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
                self.positions[request_id] = len(document.get("generated", []))
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
        num_given = len(document.get("generated", []))
        if document["prompt"] == "die" and not num_given and position == 3:
            os._exit(1)
        self.positions[request_id] = position + 1
        if position < document["max_new_tokens"]:
            return json.dumps({"token_ids": [position], "text": f"{position} "}) + "\n", False
        finish = {"reason": "length", "num_prompt_tokens": 1, "num_output_tokens": position}
        return json.dumps(finish) + "\n", None if position == num_given else True
