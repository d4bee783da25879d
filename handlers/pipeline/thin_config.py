"""Makes a model's configuration thin: the same layers and the same switches, with few weights.

What tells one layer from another (their number and types, sliding windows, sharing, experts, the
kinds of positions) stays as it is. Widths, heads and the vocabulary become small, and so do the
values that only show in long or loud input: windows and soft caps are made tight enough for a
few dozen tokens to feel them. A model of such a configuration behaves like the real one and is
made in a moment.

Configurations name their sizes as they please, so there is a ladder of recipes: each changes less
than the one before, and the caller takes the first of which a model can be built and run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

HEAD_DIM: Final = 16
NUM_HEADS: Final = 4
HIDDEN: Final = HEAD_DIM * NUM_HEADS
VOCABULARY: Final = 256
WINDOW: Final = 8

#: Sizes of what is inside a layer; none says how a layer works.
_INNER: Final = {
    "intermediate_size": 2 * HIDDEN,
    "ffn_dim": 2 * HIDDEN,
    "ffn_hidden_size": 2 * HIDDEN,
    "n_inner": 2 * HIDDEN,
    "moe_intermediate_size": HEAD_DIM,
    "shared_expert_intermediate_size": HIDDEN,
    "shared_intermediate_size": HIDDEN,
    "intermediate_size_mlp": 2 * HIDDEN,
    "expert_ffn_hidden_size": HIDDEN,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": HEAD_DIM,
}
#: Experts are all alike; a layer needs more of them than any token takes, in groups or not.
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
MAX_EXPERTS: Final = 16
_HEADS: Final = ("num_attention_heads", "n_head", "num_heads")
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads")
_WIDTHS: Final = {
    "hidden_size": HIDDEN,
    "head_dim": HEAD_DIM,
    "global_head_dim": HEAD_DIM,
    "rotary_dim": HEAD_DIM // 2,
    "qk_rope_head_dim": HEAD_DIM,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_head_dim": 2 * HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "q_lora_rank": 2 * HEAD_DIM,
    "kv_lora_rank": 2 * HEAD_DIM,
}
#: What names no width, though its number may be the same as one.
_NO_WIDTHS: Final = ("position", "seq", "vocab", "token", "window", "context")
#: Tight values for what is set; None and 0 mean there is none. So are all sizes of windows.
_TIGHT: Final = {
    "attention_chunk_size": WINDOW,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
    "index_topk": WINDOW,
    "index_block_size": WINDOW,
    "index_topk_blocks": 2,
    "floor_scale": WINDOW,
}
#: Positions that change with the longest sequence; tight, they would fail in short ones too.
LENGTH_DEPENDENT: Final = ("dynamic", "longrope")


def thin_config(config: Any, recipe: Callable[[Any], None]) -> Any:
    """A thin version of a model's configuration, by one of ``RECIPES``.

    Raises:
        Exception: any, where the configuration does not take the recipe.
    """
    thin = copy.deepcopy(config)
    text = thin.get_text_config(decoder=True)
    _leave_out_other_kinds(thin, text)
    recipe(text)
    _tighten(text)
    _fit_token_ids(thin, text.vocab_size)
    _fit_token_ids(text, text.vocab_size)
    return thin


def _leave_out_other_kinds(thin: Any, text: Any) -> None:
    """One layer is enough of what a model has for images or sound; no stage ever runs it."""
    for name in getattr(thin, "sub_configs", ()):
        part = getattr(thin, name, None)
        if part is not None and part is not text:
            _set(part, {"num_hidden_layers": 1, "depth": 1})


def _narrow(text: Any) -> None:
    """Few small heads; what is as wide as all heads together becomes as wide as they are."""
    heads, key_heads = _first(text, _HEADS), _first(text, _KEY_HEADS)
    hidden = text.hidden_size
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    _small_inside(text)
    _fewer_experts(text)
    for name, value in list(vars(text).items()):
        if value == hidden and not any(other in name for other in _NO_WIDTHS):
            setattr(text, name, HIDDEN)
    _set(text, dict.fromkeys(_HEADS, NUM_HEADS))
    _set(text, dict.fromkeys(_KEY_HEADS, _fewer(key_heads, heads)))
    _set(text, _WIDTHS)
    _fit_rope(text, head_dim)


def _narrow_keeping_heads(text: Any) -> None:
    """Heads keep their size and relations; there are fewer of them."""
    heads, key_heads = _first(text, _HEADS), _first(text, _KEY_HEADS)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    _small_inside(text)
    _fewer_experts(text)
    _set(text, dict.fromkeys(_HEADS, NUM_HEADS))
    _set(text, dict.fromkeys(_KEY_HEADS, _fewer(key_heads, heads)))
    _set(text, {"hidden_size": NUM_HEADS * head_dim})


def _small_inside(text: Any) -> None:
    _set(text, _INNER)


def _fewer_experts(text: Any) -> None:
    experts = _first(text, _EXPERTS)
    if isinstance(experts, int) and experts > MAX_EXPERTS:
        _set(text, dict.fromkeys(_EXPERTS, MAX_EXPERTS))


#: Ways to make a configuration thin, the thinnest first.
RECIPES: Final = (_narrow, _narrow_keeping_heads, _small_inside)


def _tighten(text: Any) -> None:
    windows = [
        name
        for name, value in vars(text).items()
        if "window" in name and type(value) is int and not name.endswith(("layers", "pattern"))
    ]
    _set(text, _TIGHT | dict.fromkeys(windows, WINDOW))
    for rope in ropes(text):
        kind = str(rope.get("rope_type"))
        if not any(name in kind for name in LENGTH_DEPENDENT):
            _shorten(rope)


def _shorten(rope: dict[str, Any]) -> None:
    if rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = 4 * WINDOW


def ropes(text: Any) -> Iterator[dict[str, Any]]:
    """What a configuration says of rotary positions; some have several, by kind of layer."""
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict):
        yield rope
        yield from (each for each in rope.values() if isinstance(each, dict))


def _set(text: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        is_computed = isinstance(getattr(type(text), name, None), property)
        if not is_computed and (old := getattr(text, name, None)):
            # Some families say it for each layer.
            setattr(text, name, [value] * len(old) if isinstance(old, list) else value)


def _first(text: Any, names: tuple[str, ...]) -> int:
    return next((getattr(text, name) for name in names if getattr(text, name, None)), 0)


def _fewer(key_heads: int, heads: int) -> int:
    if key_heads in (1, heads):
        return 1 if key_heads == 1 else NUM_HEADS
    return 2


def _fit_rope(text: Any, head_dim: int) -> None:
    """Lists of one number for each pair of rotated dimensions lose their end."""
    for rope in ropes(text):
        for name, value in rope.items():
            if isinstance(value, list) and len(value) > 1 and name.endswith("_factor"):
                rope[name] = value[: max(1, len(value) * HEAD_DIM // head_dim)]


def _fit_token_ids(config: Any, vocab_size: int) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= vocab_size:
            setattr(config, name, vocab_size - 1)
        elif isinstance(value, list):
            setattr(config, name, [min(token_id, vocab_size - 1) for token_id in value])
