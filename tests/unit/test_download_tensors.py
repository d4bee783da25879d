"""Which tensors a machine needs, and the file that is made of them."""

from __future__ import annotations

import json
import struct

import pytest

from scheduler.downloader import tensors

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.mlp.weight" for i in range(4)),
    "model.norm.weight",
    "lm_head.weight",
]


def needed(
    names: list[str], layers: set[int], count: int | None, is_tied: bool = False
) -> list[str]:
    return list(filter(tensors.needs(names, layers, count, is_tied), names))


def test_the_first_stage_needs_the_embedding_and_its_layers() -> None:
    assert needed(LLAMA, {0, 1}, 4) == [*LLAMA[:3], "model.norm.weight"]


def test_the_last_stage_needs_the_head_and_what_precedes_it() -> None:
    assert needed(LLAMA, {3}, 4) == ["model.layers.3.mlp.weight", *LLAMA[-2:]]


def test_a_head_that_may_share_its_weights_needs_the_embedding() -> None:
    assert "model.embed_tokens.weight" in needed(LLAMA, {3}, 4, is_tied=True)


def test_layers_beyond_the_model_s_own_are_not_needed() -> None:
    names = [*LLAMA, "model.layers.4.eh_proj.weight"]

    assert needed(names, {0, 1, 2, 3}, 4) == LLAMA


def test_the_layers_of_a_vision_tower_are_not_the_decoder_s() -> None:
    names = [*LLAMA, *(f"vision_tower.encoder.layers.{i}.weight" for i in range(9))]

    assert needed(names, {0}, 4)[-9:] == names[-9:]


def test_everything_is_needed_of_a_model_whose_layers_cannot_be_told() -> None:
    names = [f"{part}.layers.{i}.weight" for part in ("encoder", "decoder") for i in range(4)]

    assert needed(names, {0}, 4) == names
    assert needed(LLAMA, {0}, None) == LLAMA


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_hidden_layers": 12}, 12),
        ({"n_layer": 6}, 6),
        (
            {"text_config": {"num_hidden_layers": 26}, "vision_config": {"num_hidden_layers": 27}},
            26,
        ),
        ({"num_hidden_layers": "many"}, None),
        ({}, None),
    ],
)
def test_a_configuration_tells_the_number_of_layers(config: object, count: int | None) -> None:
    assert tensors.num_layers(config) == count  # type: ignore[arg-type]  # as JSON gives it


def header(**sizes: int) -> tuple[dict[str, object], bytes]:
    """A header of tensors one after the other, and the bytes of all of them."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data, at = b"", 0
    for number, (name, size) in enumerate(sizes.items()):
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        data += bytes([number + 1]) * size
        at += size
    return entries, data


def test_a_part_is_a_whole_file_of_the_needed_tensors() -> None:
    entries, data = header(a=3, b=5, c=7, d=2)
    text = json.dumps(entries).encode()
    source = struct.pack("<Q", len(text)) + text + data

    content = tensors.part(entries, len(text), lambda name: name in "acd")

    made = content.head + b"".join(
        source[s.source_start : s.source_start + s.size_bytes] for s in content.segments
    )
    length = tensors.header_length(made[:8], len(made))
    new = tensors.parse_header(made[8 : 8 + length])
    found = {n: made[8 + length :][slice(*new[n]["data_offsets"])] for n in "acd"}
    assert found == {"a": b"\1" * 3, "c": b"\3" * 7, "d": b"\4" * 2}
    assert (new.keys(), len(content.segments)) == ({"__metadata__", "a", "c", "d"}, 2)
    assert [s.target_start for s in content.segments] == [8 + length, 8 + length + 3]


@pytest.mark.parametrize(
    "first", [b"", struct.pack("<Q", 1), struct.pack("<Q", 93), struct.pack("<Q", 2**60)]
)
def test_a_header_that_does_not_fit_the_file_is_refused(first: bytes) -> None:
    with pytest.raises(tensors.NoSafetensors):
        tensors.header_length(first, 100)


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a": {}}', b'{"a": {"data_offsets": [2, 1]}}'])
def test_a_header_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(tensors.NoSafetensors):
        tensors.parse_header(text)
