"""The General Preference Model: a causal trunk with an embedding head and a scale gate (arXiv:2410.02197, section 4).

Notation: B samples, T tokens (padded), N tokens (packed), H hidden size, k planes, v (B, 2k) embedding,
lambda (B, k) gate, z (B, k) the gate's logits.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers import initialization as init

from openrlhf_gpm.config import GATES, GPMConfig
from openrlhf_gpm.core import embed_rewards
from openrlhf_gpm.models.inputs import TrunkInputs, forest_inputs, packed_inputs, padded_inputs
from openrlhf_gpm.models.transformers4 import write_old_names
from openrlhf_gpm.models.trunks import trunk_class, use_forest_attention
from openrlhf_gpm.samples.forest import Forest

# Names of the output layer in causal-LM checkpoints. A GPM has none, so these tensors are expected to be unused.
OUTPUT_LAYERS = [r"^lm_head\.", r"^embed_out\."]


class Fp32Linear(nn.Linear):
    """A bias-free linear layer that computes in fp32, whatever the dtypes of input and weight, also under autocast.

    A module call, not a function on `weight`: DeepSpeed ZeRO-3 gathers parameters in module hooks.
    """

    def __init__(self, in_features: int, out_features: int, init_std: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.init_std = init_std

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) of any float dtype -> (..., out_features) fp32."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = F.linear(x.float(), self.weight.float())
        return out


def scale_gate(z: Tensor, kind: str, hidden_size: int) -> Tensor:
    """Scales lambda_l(x) >= 0 of the k planes (eq. 4.4; the four forms of `GPMConfig.gate`).

    z: (..., k) -> (..., k). Sums to 1 with "softmax", to k with "softmax_scaled"; "softplus" is unbounded above;
    "none" is all ones.
    """
    gate: Tensor
    if kind == "none":
        gate = torch.ones_like(z)
    elif kind == "softmax":
        gate = z.softmax(-1)
    elif kind == "softmax_scaled":
        gate = (z / hidden_size**0.5).softmax(-1) * z.shape[-1]
    elif kind == "softplus":
        gate = F.softplus(z)
    else:
        raise ValueError(f"--gpm.gate must be one of {', '.join(GATES)}; got {kind!r}")
    return gate


def finish_embedding(out: Tensor, config: GPMConfig) -> Tensor:
    """From the head's numbers (B, head_rows) to embeddings (B, 2k): [r, 1], or unit length where `normalize` is on."""
    if config.scalar_head:
        return embed_rewards(out.squeeze(-1))
    return F.normalize(out, dim=-1) if config.normalize else out


def pool(hidden: Tensor, batch: TrunkInputs, kind: str) -> Tensor:
    """One state per sample, which the head reads: of its last token, or the mean over its response (`GPMConfig.pool`).

    hidden: (N, H) -> (B, H), fp32 for the mean. The head is linear, so the mean of the states is that of its outputs.
    """
    if kind == "last":
        return hidden[batch.last_at]
    return torch.segment_reduce(hidden[batch.response_at].float(), "mean", lengths=batch.response_lens)


class Temperature(nn.Module):
    """Learnable tau = softplus(rho) + EPS > 0, in raw score units; a module call, so that ZeRO-3 gathers rho."""

    EPS = 1e-4

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.start = tau
        self.rho = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        """Set rho so that tau is what the config says."""
        tau = max(self.start - self.EPS, 1e-6)
        init.constant_(self.rho, tau + math.log(-math.expm1(-tau)))  # softplus, inverted without overflow

    def forward(self) -> Tensor:
        """-> (), fp32."""
        return F.softplus(self.rho.float()).squeeze() + self.EPS


class _GPMMixin:
    """Turns a transformers trunk into a GPM; `make_gpm_class` puts it in front of the trunk's PreTrainedModel."""

    base_model_prefix: str
    _keys_to_ignore_on_load_unexpected: Any
    supports_gradient_checkpointing = True

    def _build(self, trunk_class: type, config: PretrainedConfig, packing_samples: bool) -> None:
        self.gpm_config = gpm = GPMConfig.from_pretrained_config(config)
        self.packing_samples = packing_samples
        self.hidden_size = config.get_text_config().hidden_size
        config.num_labels = gpm.head_rows  # plain transformers and vLLM read the head's size here
        write_old_names(config)
        setattr(self, self.base_model_prefix, trunk_class(config))
        # 1/(H+1) is OpenRLHF's value-head scale. A gate of zeros starts with every plane equally strong.
        self.score = Fp32Linear(self.hidden_size, gpm.head_rows, init_std=1 / (self.hidden_size + 1))
        if gpm.gated:
            self.gate = Fp32Linear(self.hidden_size, gpm.k, init_std=0.0)
        if gpm.learn_tau:
            self.temperature = Temperature(gpm.tau)
        self._keys_to_ignore_on_load_unexpected = [*(self._keys_to_ignore_on_load_unexpected or []), *OUTPUT_LAYERS]

    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for weights that a checkpoint lacks, gathered under ZeRO-3; the trunk has its own."""
        if isinstance(module, Fp32Linear):
            init.normal_(module.weight, mean=0.0, std=module.init_std)
        elif isinstance(module, Temperature):
            module.reset()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_lens: Tensor | None = None,
        forest: Forest | None = None,
        lm_from: Tensor | None = None,
        lm_to: Tensor | None = None,
        return_output: bool = False,
        ring_attn_group: Any = None,
        pad_sequence: bool = False,
        packed_seq_lens: Any = None,
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Any]:
        """Embed B samples in one pass.

        Args:
            input_ids: (B, T) token ids, padded left or right.
            attention_mask: (B, T), 1 on tokens, 0 on padding. Default: no padding.
            prompt_lens: (B,) tokens of each sample's prompt, 1 <= prompt_lens <= length; the gate reads the last of
                them, and `pool` "mean" the tokens behind them, of which there is at least one. Required for either.
            forest: makes input_ids (1, N), one row of groups whose samples share their prompt: see `collate_forest`.
            lm_from, lm_to: (M,) columns of the flattened input_ids, and the token that follows each: adds
                `outputs.lm_loss`, the mean cross-entropy of these tokens in nats.
            return_output: also return the trunk's outputs; with a learnable tau, `outputs.tau` is its value ().
            ring_attn_group: must be None.
            pad_sequence, packed_seq_lens: unused; OpenRLHF passes them to every reward model.

        Returns:
            v (B, 2k) fp32, of unit length unless `normalize` is off, and lambda (B, k) fp32, all ones without a gate.
            The preference score of i over j is `preference_score(v_i, v_j, lambda, tau)`. With a forest: v of all
            samples, group after group, and lambda (G, k), one per group.

        Raises:
            ValueError: prompt_lens missing or out of range, an empty sample, context parallelism, or a forest for a
                trunk that does not read forests (`forest_obstacle`).
        """
        if ring_attn_group is not None:
            raise ValueError("a GPM does not support context parallelism: set --ds.ring_attn_size 1")
        trunk = getattr(self, self.base_model_prefix)
        if forest is not None:
            use_forest_attention(trunk)
            batch = forest_inputs(input_ids, forest)
        else:
            mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).long()
            prompts = self._check_lengths(mask.sum(1), prompt_lens)
            batch = (packed_inputs if self.packing_samples else padded_inputs)(input_ids, mask, prompts)

        outputs = trunk(**batch.inputs, use_cache=False)
        hidden = outputs.last_hidden_state.flatten(0, 1)  # (N, H); the head sees only the positions that it needs
        v = finish_embedding(self.score(pool(hidden, batch, self.gpm_config.pool)), self.gpm_config)
        if self.gpm_config.gated:
            gate = scale_gate(self.gate(hidden[batch.gate_at]), self.gpm_config.gate, self.hidden_size)
        else:
            gate = v.new_ones(len(batch.gate_at), self.gpm_config.k)
        if self.gpm_config.learn_tau:
            outputs.tau = self.temperature()
        if lm_from is not None and lm_to is not None:
            at = lm_from if batch.index is None else batch.index[lm_from]
            logits = F.linear(hidden[at], trunk.get_input_embeddings().weight)  # tied: see --gpm.lm_coef
            outputs.lm_loss = F.cross_entropy(logits.float(), lm_to)
        return (v, gate, outputs) if return_output else (v, gate)

    def _check_lengths(self, lengths: Tensor, prompt_lens: Tensor | None) -> Tensor:
        """(B,) lengths of samples and prompts -> those of the prompts, checked, on the device; any if none is read."""
        if (lengths == 0).any():
            raise ValueError(f"sample {int((lengths == 0).nonzero()[0])} of the batch has no tokens")
        mean = self.gpm_config.pool == "mean"
        if not self.gpm_config.gated and not mean:
            return lengths
        if prompt_lens is None:
            reader = "a mean over the response, which begins behind" if mean else "a gate, which reads"
            raise ValueError(f"this GPM has {reader} the prompt: pass prompt_lens, the prompt's token count")
        if prompt_lens.shape != lengths.shape:
            raise ValueError(f"prompt_lens must be of shape ({len(lengths)},), got {tuple(prompt_lens.shape)}")
        prompt_lens = prompt_lens.to(lengths.device)
        longest = lengths - int(mean)
        wrong = (prompt_lens < 1) | (prompt_lens > longest)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(f"prompt_lens[{i}] is {int(prompt_lens[i])}, outside 1..{int(longest[i])}, the sample")
        return prompt_lens


@cache
def make_gpm_class(pretrained_class: type, trunk_class: Any, packing_samples: bool = False) -> type:
    """The GPM class over a trunk, with the name of transformers' classifier: LlamaForSequenceClassification.

    Args:
        pretrained_class: the family's PreTrainedModel, such as LlamaPreTrainedModel.
        trunk_class: the family's model without a head, such as LlamaModel.
        packing_samples: run a batch as one row without padding (flash attention's variable-length kernel on a GPU;
            elsewhere transformers builds the block mask).

    Returns:
        A PreTrainedModel subclass. Its `__init__(config)` reads `config.gpm`, a dict in `GPMConfig`'s form;
        `from_pretrained` initialises the head and the gate if the checkpoint is a causal LM.
    """

    def __init__(self: Any, config: PretrainedConfig) -> None:
        pretrained_class.__init__(self, config)  # type: ignore[misc]
        self._build(trunk_class, config, packing_samples)
        # transformers 5 registers tied weights and parallel plans here, and from_pretrained needs them.
        self.post_init()

    name = trunk_class.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(
        name,
        (_GPMMixin, pretrained_class),
        {
            "__init__": __init__,
            "__module__": __name__,
            # transformers looks for these in the source of a class's module, and ours is not the family's.
            "_can_set_attn_implementation": trunk_class._can_set_attn_implementation,
            "_can_set_experts_implementation": trunk_class._can_set_experts_implementation,
        },
    )


def gpm_class(config: PretrainedConfig, packing_samples: bool = False) -> type:
    """`make_gpm_class` for any trunk that transformers' AutoModel knows. Raises ValueError for the others."""
    trunk = trunk_class(config)
    return make_gpm_class(trunk.__base__, trunk, packing_samples)
