"""Embeddings of groups, the tokens that a group's samples begin with computed once.

Causal attention makes the states of a sample's first tokens independent of what follows them, so the K samples of a
group share the keys and values of their common prefix. Exact: the same numbers as encoding every sample in full, up to
the rounding that another batch shape brings. Trunks of which this is not true are named by `sharing_obstacle`.

Notation: G groups, N samples, k planes, H hidden size, S tokens of a group's prefix; a batch has B rows and is W wide,
the prefixes in front of it are P wide.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, get_layer_types_and_kwargs

from openrlhf_gpm.models.batching import fullest_prompt, length_batches, shared_length
from openrlhf_gpm.models.formatting import Encoded
from openrlhf_gpm.models.gpm import trunk_class

MIN_SAVED = 0.15
"""Least share of a group's tokens that sharing must save. Below, two smaller passes cost more than they spare."""

ATTENTION = {"full_attention", "sliding_attention"}


def saved_share(group: Sequence[Encoded]) -> float:
    """The share of a group's tokens that need not be computed, in [0, 1)."""
    return (len(group) - 1) * shared_length(group) / sum(len(e.input_ids) for e in group)


def sharing_obstacle(trunk: Any) -> str | None:
    """Why the samples of a trunk must be encoded in full; None where a prefix can be shared."""
    config = trunk.config.get_text_config(decoder=True)
    for rope in _rope_types(config):
        if "dynamic" in rope or rope in ("longrope", "su"):
            return f"its rotary embedding ({rope}) depends on the length of the whole sample"
    others = sorted(set(get_layer_types_and_kwargs(config)[0]) - ATTENTION)
    if others:
        return f"it has layers of another kind than attention ({', '.join(others)})"
    if getattr(config, "alibi", False):
        return "its attention looks at places in the row (ALiBi), not at positions"
    if getattr(trunk, "_is_stateful", False):
        return "its layers are recurrent"
    if any(getattr(module, "is_causal", True) is False for module in trunk.modules()):
        return "its attention looks ahead"
    missing = {"past_key_values", "position_ids", "attention_mask"} - set(inspect.signature(trunk.forward).parameters)
    if missing:
        return f"its forward takes no {', '.join(sorted(missing))}"
    return None


def config_obstacle(config: Any) -> str | None:
    """`sharing_obstacle` of the trunk that a transformers config describes, built without memory for its weights."""
    with torch.device("meta"):
        trunk = trunk_class(config)(config)
    return sharing_obstacle(trunk)


def sliding_window(config: Any) -> int | None:
    """Longest sample, in tokens, that a model's sliding windows leave whole; None where there is none."""
    config = config.get_text_config(decoder=True)
    layer_types, options = get_layer_types_and_kwargs(config)
    return options["sliding_window"] if "sliding_attention" in layer_types else None


def _rope_types(config: Any) -> Iterator[str]:
    """Every kind of rotary embedding in a config: one for the model, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        value = getattr(config, name, None) or {}
        for rope in (value, *value.values()):
            if isinstance(rope, dict):
                yield str(rope.get("rope_type", rope.get("type", "default")))


class _SharedLayer(DynamicLayer):
    """One layer's keys and values of some prefixes, one for each row of a batch, without a copy that outlives its use.

    What a forward pass adds is used and forgotten: nothing reads it again.
    """

    def __init__(self, layer: Any, rows: list[int], width: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = (x[..., x.shape[-2] - width :, :] for x in (layer.keys, layer.values))
        self.rows = rows

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """(B, heads, W, head size) twice -> (B, heads, P + W, head size) twice."""
        return self._after_prefix(self.keys, key_states), self._after_prefix(self.values, value_states)

    def _after_prefix(self, prefix: Tensor, new: Tensor) -> Tensor:
        if len(set(self.rows)) == 1:  # one group: a view will do
            mine = prefix[self.rows[0]].expand(len(self.rows), *prefix.shape[1:])
        else:
            mine = prefix.index_select(0, torch.tensor(self.rows, device=prefix.device))
        return torch.cat([mine, new], dim=-2)


@torch.no_grad()
def embed_shared(
    model: Any, groups: Sequence[Sequence[Encoded]], pad_token_id: int, device: torch.device | str, batch_tokens: int
) -> tuple[Tensor, Tensor]:
    """Embed G groups whose samples share at least one token and keep at least one each: `shared_length` > 0.

    Passes over prefixes hold at most batch_tokens tokens with padding, passes over remainders as many with their
    prefixes; what alone is longer makes its own. Returns v (N, 2k) of the samples in order and one gate a group
    (G, k), that of its `fullest_prompt`, all ones without a gate; fp32 on the CPU.
    """
    config = model.gpm_config
    S = [shared_length(group) for group in groups]
    offset = list(accumulate(map(len, groups), initial=0))  # row of a group's first sample
    v = torch.empty(offset[-1], config.dim)
    gate = torch.ones(len(groups), config.k)
    gate_at = [_gate_at(group) for group in groups] if config.gated else []  # sample, token
    trunk = getattr(model, model.base_model_prefix)

    for batch in length_batches(S, batch_tokens):
        cache, hidden = _read_prefixes(trunk, [groups[g][0].input_ids[: S[g]] for g in batch], pad_token_id, device)
        width = hidden.shape[1]
        for row, g in enumerate(batch if config.gated else []):
            if gate_at[g][1] < S[g]:
                gate[g] = model.gate_hidden(hidden[row, width - S[g] + gate_at[g][1]][None])[0].float().cpu()

        samples = [(row, g, i) for row, g in enumerate(batch) for i in range(len(groups[g]))]
        for part in length_batches([width + len(groups[g][i].input_ids) - S[g] for _, g, i in samples], batch_tokens):
            rows, of_group, index = zip(*(samples[n] for n in part), strict=True)
            ids = [groups[g][i].input_ids[S[g] :] for g, i in zip(of_group, index, strict=True)]
            hidden = _read_remainders(trunk, cache, rows, [S[g] for g in of_group], ids, pad_token_id, device)
            last = torch.tensor([len(own) - 1 for own in ids], device=device)
            v[[offset[g] + i for g, i in zip(of_group, index, strict=True)]] = (
                model.embed_hidden(hidden[torch.arange(len(ids), device=device), last]).float().cpu()
            )
            for row, (g, i) in enumerate(zip(of_group, index, strict=True)):
                if config.gated and gate_at[g][0] == i and gate_at[g][1] >= S[g]:
                    gate[g] = model.gate_hidden(hidden[row, gate_at[g][1] - S[g]][None])[0].float().cpu()
    return v, gate


def _gate_at(group: Sequence[Encoded]) -> tuple[int, int]:
    """The sample and the token, from 0, at which a group's gate is read."""
    i = fullest_prompt(group)
    return i, group[i].prompt_len - 1


def _read_prefixes(
    trunk: Any, prefixes: list[list[int]], pad_token_id: int, device: torch.device | str
) -> tuple[DynamicCache, Tensor]:
    """Keys and values of B prefixes, padded left, and hidden states (B, P, H)."""
    cache = DynamicCache()
    ids, mask = _pad(prefixes, pad_token_id, "left", device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = trunk(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return cache, out.last_hidden_state


def _read_remainders(
    trunk: Any,
    cache: DynamicCache,
    rows: Sequence[int],
    lengths: list[int],
    remainders: list[list[int]],
    pad_token_id: int,
    device: torch.device | str,
) -> Tensor:
    """Hidden states (B, W, H) of B remainders, padded right, each after the prefix in its row of the cache.

    lengths: S of each row. The padding in front of the longest of them is left out.
    """
    S, width = torch.tensor(lengths, device=device), max(lengths)
    ids, mask = _pad(remainders, pad_token_id, "right", device)
    in_prefix = torch.arange(width, device=device) >= width - S[:, None]  # (B, P)
    shared = DynamicCache()
    shared.layers = [_SharedLayer(layer, list(rows), width) for layer in cache.layers]
    hidden: Tensor = trunk(
        ids,
        attention_mask=torch.cat([in_prefix.long(), mask], dim=1),
        position_ids=S[:, None] + torch.arange(ids.shape[1], device=device),  # each row goes on where its prefix ends
        past_key_values=shared,
        use_cache=True,
    ).last_hidden_state
    return hidden


def _pad(rows: list[list[int]], pad_token_id: int, side: str, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, longest) each."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        pad = [0] * (width - len(row))
        on, off = [1] * len(row), [pad_token_id] * len(pad)
        ids.append(off + row if side == "left" else row + off)
        mask.append(pad + on if side == "left" else on + pad)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
