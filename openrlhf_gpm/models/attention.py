"""transformers' "sdpa" attention for a CPU, without copies of keys and values where several query heads share them.

With a mask, which every remainder behind a shared prefix needs, transformers repeats keys and values for each query
head, because the kernels of a GPU would otherwise be slow. The kernel of a CPU reads shared heads where they are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_shared_heads"


def sdpa_shared_heads(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, heads, W, d), key and value (B, shared heads, P + W, d),
    attention_mask (B, 1, W, P + W) or None -> (B, W, heads, d). The numbers of "sdpa"."""
    plain = attention_mask is not None and kwargs.get("position_bias") is None
    if not plain or not getattr(module, "num_key_value_groups", 1) > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, sdpa_shared_heads)
AttentionMaskInterface.register(NAME, sdpa_mask)


def share_heads(model: Any) -> None:
    """Let a model on a CPU whose query heads share keys, and that uses "sdpa", read them in place."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", 0)
    shared = (getattr(config, "num_key_value_heads", None) or heads) < heads
    if shared and model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        getattr(model, model.base_model_prefix).set_attn_implementation(NAME)  # its code knows whether it can
