"""What a GPM checkpoint says about itself: `config.gpm` in config.json. Standard library only."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

FORMAT_VERSION = 2
"""Version of `GPMConfig` as a dict, of the tensors that belong to it, and of how texts are read."""

TODAY = "2024-07-26"
"""The day that chat templates are told when they ask for one: what Llama 3's say where there is no clock."""

Message = dict[str, Any]
"""One turn of a conversation: "role", "content", and what else a chat template reads."""

Prompt = str | list[Message]
"""A text, or the messages up to the response."""

POOLS = ("last", "mean")
GATES = ("none", "softmax", "softmax_scaled", "softplus")
CHOICES = {
    "head": ("embedding", "reward", "pairwise"),
    "gate": GATES,
    "pool": POOLS,
    "bos": ("one", "tokenizer"),
    "eos": ("append", "replace"),
    "layout": ("gpm", "classifier"),
    "reasoning": ("keep", "strip"),
}


@dataclass(frozen=True, kw_only=True)
class GPMConfig:
    """The model's own settings, saved with it: scoring needs no flags.

    Raises ValueError that names the flag. Warns if the gate has no effect.
    """

    head: str = "embedding"
    """What the head gives: "embedding" (2k numbers per response: a GPM), "reward" (one number r per response, whose
    embedding is [r, 1]: Bradley-Terry), or "pairwise" (one number for a text that holds two responses, read in both
    orders, to compare a GPM with). The last two have dim 2, no gate and no normalisation: see `scalar_head`."""

    dim: int = 8
    """Embedding size 2k, even: k planes of 2. The paper's best are 6 and 8."""

    gate: str = "softmax_scaled"
    """Scales of the planes, from the last prompt token's logits z (k,): "none" (all 1), "softmax" (z; the authors'
    released checkpoints), "softmax_scaled" (k * softmax(z / sqrt(hidden size))) or "softplus" (z)."""

    pool: str = "last"
    """Which of the trunk's states the head reads: "last" (of the sample's last token, as in the paper), or "mean" (the
    mean over the response's tokens, EOS included)."""

    normalize: bool = True
    """Embeddings have length 1 (before the gate)."""

    tau: float = 0.1
    """Temperature > 0 that divides every score, in units of the raw score."""

    learn_tau: bool = False
    """tau was trained (tensor `temperature.rho`); `tau` above is the value it reached."""

    chat_template: bool = True
    """Prompts and responses are rendered with the tokenizer's chat template; otherwise joined as plain text."""

    input_template: str | None = None
    """Plain text only: how to write the prompt, such as "User: {}\\nAssistant: "."""

    max_len: int | None = None
    """Longest sample in tokens; longer responses are cut (and still end with EOS)."""

    reasoning: str | None = None
    """What the model reads of a response's reasoning, <think> ... </think>: "keep": all of it, also where the chat
    template leaves it out; "strip": nothing; None: what the template writes."""

    today: str = TODAY
    """The day, ISO 8601, that a chat template is told when it asks for one, so that a score depends on no clock."""

    generation_prompt: bool = True
    """The prompt, whose last token the gate reads, ends with the template's generation prompt (the authors': no)."""

    bos: str = "one"
    """"one": exactly one BOS in front. "tokenizer": whatever the tokenizer adds to the rendered text, so two BOS if
    the template writes one too (the authors' convention)."""

    eos: str = "append"
    """"append": exactly one EOS after the text. "replace": EOS replaces the last token (the authors' convention)."""

    layout: str = "gpm"
    """Tensors: "gpm" (`score.weight`, `gate.weight`), or "classifier" (`score.weight` ends with the gate's rows)."""

    format_version: int = FORMAT_VERSION
    """1: prompt and response were tokenised together. 2: the prompt alone, and control tokens in texts as text."""

    def __post_init__(self) -> None:
        if not _is_int(self.dim) or self.dim < 2 or self.dim % 2:
            hint = f"; try {self.dim + 1}" if _is_int(self.dim) and self.dim > 0 else ""
            raise ValueError(f"--gpm.dim must be an even number >= 2, got {self.dim!r}{hint}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices and (name != "reasoning" or self.reasoning is not None):
                raise ValueError(f"--gpm.{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if isinstance(self.tau, bool) or not isinstance(self.tau, (int, float)) or not 0 < self.tau < float("inf"):
            raise ValueError(f"--gpm.tau must be a finite number > 0, got {self.tau!r}")
        for name in ("normalize", "learn_tau", "chat_template", "generation_prompt"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`gpm.{name}` in config.json must be true or false, got {getattr(self, name)!r}")
        if self.scalar_head and (self.dim != 2 or self.gated or self.normalize):
            raise ValueError(
                f"--gpm.head {self.head} gives one number per response: it needs --gpm.dim 2, --gpm.gate none and "
                "--gpm.no_normalize"
            )
        if self.pool == "mean" and self.layout == "classifier":
            raise ValueError("--gpm.pool mean needs layout gpm: a plain classifier reads the last token only")
        if self.max_len is not None and (not _is_int(self.max_len) or self.max_len < 3):
            raise ValueError(f"--data.max_len must be a number of tokens >= 3, got {self.max_len!r}")
        check_input_template(self.input_template)
        try:
            date.fromisoformat(self.today)
        except (TypeError, ValueError):
            raise ValueError(f"`gpm.today` in config.json must be a day such as {TODAY}, got {self.today!r}") from None
        if self.k == 1 and self.gate.startswith("softmax"):
            warnings.warn(
                f"--gpm.gate {self.gate} is constant with --gpm.dim 2 (one plane): use gate none or a larger dim",
                stacklevel=3,
            )

    @property
    def k(self) -> int:
        """Number of planes, dim / 2."""
        return self.dim // 2

    @property
    def gated(self) -> bool:
        """Whether there is a gate with weights."""
        return self.gate != "none"

    @property
    def scalar_head(self) -> bool:
        """Whether the head gives one number r, and the embedding is [r, 1]."""
        return self.head != "embedding"

    @property
    def head_rows(self) -> int:
        """Rows of the tensor `score.weight` in layout "gpm"."""
        return 1 if self.scalar_head else self.dim

    @property
    def classifier_rows(self) -> int:
        """Rows of the same tensor in layout "classifier", which ends with the gate's."""
        return self.head_rows + (self.k if self.gated else 0)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object under `gpm` in config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPMConfig":
        """The settings in `to_dict`'s form. Raises ValueError for a format or key that this version does not know."""
        if not isinstance(values, Mapping):
            raise ValueError(f"`gpm` in config.json must be an object such as {{'dim': 8}}, got {values!r}")
        version = values.get("format_version", FORMAT_VERSION)
        if version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"`gpm` in config.json has format_version {version!r}, this openrlhf-gpm reads 1 to {FORMAT_VERSION}: "
                "upgrade openrlhf-gpm or save the checkpoint again"
            )
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"`gpm` in config.json has unknown keys {', '.join(unknown)}: upgrade openrlhf-gpm")
        return cls(**values)

    @classmethod
    def from_pretrained_config(cls, config: Any) -> "GPMConfig":
        """The settings in `config.gpm` of a transformers config. Raises ValueError if the model is not a GPM."""
        values = getattr(config, "gpm", None)
        if values is None:
            kind = (getattr(config, "architectures", None) or ["?"])[0]
            if kind == "RewardModel" or kind.endswith("ForSequenceClassification"):
                raise ValueError(
                    f"{kind} is a Bradley-Terry reward model (no `gpm` in config.json), not a GPM: "
                    "use `openrlhf-gpm convert --from bt`"
                )
            raise ValueError(
                f"{kind} is not a GPM (no `gpm` in config.json): train one with --reward_model_type gpm, or use "
                "`openrlhf-gpm convert --from authors` for a checkpoint of the GPM authors"
            )
        return values if isinstance(values, cls) else cls.from_dict(values)


def check_input_template(template: str | None) -> None:
    """Raise ValueError unless `template.format(prompt)` works and contains the prompt."""
    if template is None:
        return
    try:
        if isinstance(template, str) and "\0" in template.format("\0"):
            return
    except (IndexError, KeyError, ValueError):
        pass
    raise ValueError(
        f"--data.input_template must hold the prompt once as {{}} (other braces doubled), got {template!r}"
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
