"""Make a tiny config of any architecture by rules on the names of its fields; no architecture is named here.

Widths keep their ratio to the hidden size, counts of heads, experts and layers become small ones, tables get a few
rows, token ids move into the small vocabulary. The layers are as many as are needed to see every kind of layer once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VOCABULARY = 128
FIRST_SPECIAL = 104
MAX_LAYERS = 8

_TOKEN = re.compile(r"token_(id|index)$|_(start|end)_id$|^(mask|unk)_index$")
_LAYERS = re.compile(
    r"^(num_hidden_layers|num_layers|n_layers?|(en|de)coder_layers|num_(en|de)coder_layers|depth|num_blocks|"
    r"num_layers_per_stack|num_lstm_layers|conf_num_hidden_layers|.*_(num_hidden_layers|num_layers|depth))$"
)
_FEW = re.compile(
    r"(first_k_dense_replace|num_dense_layers|max_window_layers|num_kv_shared_layers|num_nextn_predict_layers|"
    r"moe_layer_start_index|num_global_layers|num_mem_blocks|num_zero_experts|zero_expert_num|topk_group|n_group|"
    r"num_expert_group|num_hash_layers|num_mtp_layers)$"
)
_HEADS = re.compile(r"(^|_)(n_?)?heads?(_per_layer)?$|num_.*heads$|attention_heads$|^heads_per")
_KEYS = re.compile(r"kv|key")
_HEAD_DIM = re.compile(r"head_dim$|d_head$|headdim$|head_size$|kv_channels$|dim_head$|^d_kv$|per_head$")
_EXPERTS = re.compile(r"experts$|^moe_num_experts")
_TOP = re.compile(r"per_tok(en)?$|top_?k$|^moe_k$|topk_experts$")
_ROWS = re.compile(r"vocab_size|n_vocab|vocab_size_base|codebook_size|num_centroids|_vocab$|num_embeddings|n_mel_bins")
_PLACES = re.compile(
    r"position|n_ctx|max_seq|seq_len|context_length|model_max_length|rel_extent|max_distance|prompt_length"
)
_WINDOW = re.compile(r"window|chunk_size|chunk_length|^local_attention$|block_size$|index_topk|num_sliding")
_WIDTH = re.compile(
    r"hidden|d_model|n_embd|emb|dim|ff|inner|intermediate|rank|width|size|channels|d_ssm|features|proj|filters|d_rel"
)
_KEPT = re.compile(
    r"patch|image|kernel|stride|conv|expand|multiplier|num_channels|in_channels|audio_channels|merge|group|type_vocab|"
    r"sampling|seed|temporal|chunk_size_feed|mel|mult|parts|log_scaling|floor|max_2d|max_pixels|ratio|resolution"
)


@dataclass(frozen=True)
class Strategy:
    """One way of shrinking; another is tried where a model cannot be built or run.

    ``hidden`` is the hidden size, ``heads`` the heads; ``own_head`` sets every head's size to hidden / heads even
    where the architecture chooses it freely; ``layers`` a fixed number of layers (0: as many as kinds need).
    """

    hidden: int = 64
    heads: int = 4
    keys: int = 2
    head_dim: int = 16
    layers: int = 0
    image: int = 32
    patch: int = 8
    fill: bool = False
    whole: bool = False
    twice: bool = False


STRATEGIES = (
    Strategy(),
    Strategy(fill=True),
    Strategy(twice=True),
    Strategy(whole=True, hidden=128),
    Strategy(head_dim=32),
    Strategy(keys=4),
    Strategy(head_dim=64),
    Strategy(head_dim=128),
    Strategy(hidden=128, heads=4, head_dim=32, layers=4),
    Strategy(hidden=128, heads=8, keys=8, head_dim=16, layers=4, image=64, patch=16),
)


def tiny_config(kind: type, strategy: Strategy = STRATEGIES[0], **fixed: Any) -> Any:
    """A tiny instance of a config class; ``fixed`` are fields that the caller wants so."""
    default = kind()
    return _tiny(default, strategy, _widest(default) if strategy.whole else 0, fixed)


def _widest(default: Any) -> int:
    inner = [value for value in vars(default).values() if hasattr(value, "sub_configs")]
    return max([_main_width(default, 0), *map(_widest, inner)])


def _tiny(default: Any, strategy: Strategy, widest: int, fixed: Mapping[str, Any] | None = None) -> Any:
    kind = type(default)
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    chosen: dict[str, Any] = {}
    nested = set(getattr(kind, "sub_configs", None) or {})
    main = widest or _main_width(default)
    layers = _layers(default, strategy)
    for name, field in fields.items():
        if name in nested:
            inner = _value(default, name)
            if hasattr(inner, "sub_configs"):
                chosen[name] = _tiny(inner, strategy, widest, _inner(fixed or {}, name))
            continue
        # A field whose default is None is worked out by the class itself from the others.
        value = field.default if field.default is not dataclasses.MISSING else _value(default, name)
        if value is None:
            value = _kinds(_value(default, name), layers) or (_filled(name, layers, default) if strategy.fill else None)
            if value is not None and strategy.fill:
                chosen[name] = value
        small = _small(name, value, main, layers, strategy, default)
        if small is not None and (small != value or name in chosen):
            chosen[name] = small
    chosen.update(_specials(default, fields))
    plain = {name.removeprefix("*."): value for name, value in (fixed or {}).items()}
    chosen.update({name: value for name, value in plain.items() if name in fields})
    return kind(**chosen)


def _inner(fixed: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What is fixed in a part of the config: ``part.name`` there alone, ``*.name`` wherever it is a field."""
    own = {name.removeprefix(f"{part}."): value for name, value in fixed.items() if name.startswith(f"{part}.")}
    return {**{name: value for name, value in fixed.items() if name.startswith("*.")}, **own}


def _layers(default: Any, strategy: Strategy) -> int:
    """As many layers as show every kind of layer, two at least."""
    if strategy.layers:
        return strategy.layers
    needed = 2
    for name, value in vars(default).items():
        if isinstance(value, list | tuple) and len(value) > 4 and all(isinstance(item, str | int) for item in value):
            if not any(word in name for word in ("types", "layers", "block", "pattern", "heads")):
                continue
            if all(isinstance(item, str) for item in value) or set(value) == {0, 1}:
                needed = max(needed, _covering(value, 2 if strategy.twice else 1))
        elif re.search(r"(period|interval|group_size|every_n_layers|_pattern)$", name) and isinstance(value, int):
            needed = max(needed, value)
        elif re.search(r"(cross_attention_layers|intermediate_layers_indices)$", name):
            needed = max(needed, 4)
    return min(needed, 2 * MAX_LAYERS if strategy.twice else MAX_LAYERS)


def _value(default: Any, name: str) -> Any:
    """A field's value; the plain one where a config may have another per layer."""
    return vars(default).get(name)


def _kinds(value: Any, layers: int) -> Any:
    """A list that says what kind each layer is (or a table of rates); it has to be cut also where the class made it."""
    if isinstance(value, dict) and value and all(isinstance(item, int) for item in value.values()):
        return value
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) for item in value):
        return [[value[0][0], max(1, layers // len(value[0][0]))]]  # [[[kinds], repeats]]
    return None


def _filled(name: str, layers: int, default: Any) -> Any:
    """A value for a field that is None by default."""
    if name.startswith("default_"):
        choices = _value(default, f"{name.removeprefix('default_')}s")
        return next(iter(choices), None) if choices else None
    if name.startswith("clip"):
        return 8.0
    if name == "vocab_size":
        return VOCABULARY
    if re.search(r"^image_token_(id|index)$", name):
        return FIRST_SPECIAL
    if name == "mlp_layer_types":
        return ["dense", *["sparse"] * (layers - 1)]
    if name.endswith("intermediate_size"):
        return 64
    if name == "layer_types":
        return ["full_attention"] * layers
    if name == "rope_parameters":
        plain = {"rope_type": "default", "rope_theta": 10000.0}
        return {**plain, "full_attention": plain, "sliding_attention": plain}
    if _TOP.search(name):
        return 2
    if _EXPERTS.search(name):
        return 1 if "shared" in name else 4
    if _HEADS.search(name):
        return 2
    if _HEAD_DIM.search(name):
        return 16
    return 8 if name.endswith("budget") else 2 if name.endswith("compress_ratio") else None


def _covering(kinds: Any, times: int) -> int:
    """Length of the shortest beginning that holds every kind ``times`` times (or as often as there is)."""
    places = [[i for i, item in enumerate(kinds) if item == kind][:times] for kind in set(kinds)]
    return max(found[-1] for found in places) + 1


def _main_width(default: Any, otherwise: int = 1024) -> int:
    for name in ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_dim", "emb_dim", "hidden_dim"):
        value = _value(default, name)
        if isinstance(value, int) and value > 0:
            return value
    return otherwise


def _small(name: str, value: Any, main: int, layers: int, strategy: Strategy, default: Any) -> Any:
    """The small value of a field, or None to leave it alone."""
    if isinstance(value, bool) or value is None or isinstance(value, float | str):
        return None
    if isinstance(value, list | tuple):
        return _small_list(name, value, main, layers, strategy, default)
    if isinstance(value, dict) and name.endswith("rates"):
        return {key: min(rate, 4) for key, rate in value.items()}
    if not isinstance(value, int):
        return None
    return _small_number(name, value, main, layers, strategy, default)


def _small_number(name: str, value: int, main: int, layers: int, strategy: Strategy, default: Any) -> int | None:
    rules: tuple[tuple[re.Pattern[str], Any], ...] = (
        (_TOKEN, lambda: None),
        (_FEW, lambda: min(value, 1)),
        (_LAYERS, lambda: min(value, layers)),
        (re.compile(r"(period|interval)$"), lambda: min(value, layers)),
        (re.compile(r"type_vocab_size$"), lambda: None),
        (_ROWS, lambda: min(value, VOCABULARY)),
        (_TOP, lambda: min(value, 2)),
        (_EXPERTS, lambda: value if value <= 2 else 4),
        (re.compile(r"image_size$|crop_size$"), lambda: strategy.image),
        (re.compile(r"patch_size$"), lambda: value if value <= 4 else strategy.patch),
        (_HEADS, lambda: _heads(name, value, strategy, default)),
        (_HEAD_DIM, lambda: _head_dim(name, value, strategy, default)),
        (_PLACES, lambda: min(value, VOCABULARY)),
        (re.compile(r"^window_size$"), lambda: _window(value, strategy, default)),
        (_WINDOW, lambda: value if value <= 0 else min(value, 8)),
        (re.compile(r"out_hidden_size$|adapter_out_dim$"), lambda: strategy.hidden),
        (re.compile(r"^base_channels$"), lambda: min(value, 32)),
        (re.compile(r"^num_groups$"), lambda: min(value, 8)),
        (re.compile(r"kernel_size$"), lambda: None if value < 32 else 9),
        (_KEPT, lambda: None if value < 64 else _scaled(value, main, strategy)),
        (_WIDTH, lambda: _scaled(value, main, strategy)),
    )
    for pattern, rule in rules:
        if pattern.search(name):
            result: int | None = rule()
            return result
    return None


def _heads(name: str, value: int, strategy: Strategy, default: Any) -> int:
    if value <= 1:
        return value
    if _KEYS.search(name):
        most = max((v for k, v in vars(default).items() if _HEADS.search(k) and type(v) is int), default=value)
        return strategy.heads if value >= most else strategy.keys
    return strategy.heads


def _head_dim(name: str, value: int, strategy: Strategy, default: Any) -> int:
    rope = _value(default, "qk_rope_head_dim")
    if "rope" in name or "nope" in name or (name == "head_dim" and rope == _value(default, name)):
        return strategy.head_dim // 2
    expand = next((v for v in map(vars(default).get, ("mamba_expand", "expand")) if v), None)
    if "mamba" in name and isinstance(expand, int):
        return expand * strategy.hidden // strategy.heads
    if "mamba" not in name and name == "head_dim" and isinstance(expand, int) and "state_size" in vars(default):
        return expand * strategy.hidden // strategy.heads
    return strategy.head_dim


def _window(value: int, strategy: Strategy, default: Any) -> int:
    """A window in pixels keeps its number of patches, one in tokens becomes shorter than the example."""
    patch = _value(default, "patch_size")
    if isinstance(patch, int) and patch > 4:
        return value * strategy.patch // patch
    if isinstance(patch, int):
        return min(value, 4)
    return value if value <= 0 else min(value, 8)


def _scaled(value: int, main: int, strategy: Strategy) -> int:
    """A width in proportion to the hidden size, a multiple of 16."""
    if value <= 16:
        return value
    small = 16 * round(value * strategy.hidden / main / 16)
    return max(16, min(small, 4 * strategy.hidden))


def _small_list(name: str, value: Any, main: int, layers: int, strategy: Strategy, default: Any) -> Any:
    depth = next((v for k, v in vars(default).items() if _LAYERS.search(k) and isinstance(v, int)), 0)
    kept: list[Any]
    if len(value) > 1 and all(type(v) is int for v in value) and sum(value) == main:
        return type(value)([v * strategy.hidden // main for v in value])
    if re.search(r"heads$", name) and len(set(value)) > 1 and all(type(v) is int for v in value):
        value = type(value)([max(1, 2 * v // value[0]) for v in value])
        return type(value)(value[:layers]) if len(value) == depth and depth > layers else value
    if name.endswith(("feature_layer", "feature_layers")):
        return type(value)([min(v, 1) if v >= 0 else max(v, -1) for v in value])
    if len(value) == depth and depth > layers:
        kept = list(value[:layers])
    elif re.search(r"layers$|indices$|idxs$|indexes$|layer_ids$", name) and all(type(v) is int for v in value):
        kept = [v for v in value if v < layers] or ([1] if value else [])
    elif _WIDTH.search(name) and not _KEPT.search(name) and value and all(type(v) is int for v in value):
        if not re.search(r"hidden|channels|dim|width|embed", name):
            return None
        widest = max(value)
        kept = [max(8, 8 * round(v * strategy.hidden / widest / 8)) for v in value] if widest > 64 else list(value)
    else:
        return None
    return type(value)(kept)


def _specials(default: Any, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Token ids inside the small vocabulary, each another one."""
    usual = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    free = iter(range(FIRST_SPECIAL, VOCABULARY))
    for name in fields:
        value = _value(default, name)
        if isinstance(value, list) and name == "eos_token_id":
            yield name, 2
        elif _TOKEN.search(name) and isinstance(value, int) and not isinstance(value, bool):
            yield name, usual.get(name, next(free) if name not in usual else 0)
