"""Choices, defaults and checks of a scorer's options. Standard library only, so that `--help` loads no torch."""

BACKENDS = ("torch", "vllm")
SHARE_PROMPT = ("auto", "off")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short name -> torch's."""

BATCH_TOKENS = 16384
"""Tokens per forward pass, padding included."""


def check_options(
    batch_tokens: int = BATCH_TOKENS, share_prompt: str = SHARE_PROMPT[0], backend: str = BACKENDS[0]
) -> None:
    """Raise ValueError, which names the flag, for a value that no backend takes."""
    if backend not in BACKENDS:
        raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if share_prompt not in SHARE_PROMPT:
        raise ValueError(f"--share_prompt must be one of {', '.join(SHARE_PROMPT)}; got {share_prompt!r}")
    if batch_tokens < 1:
        raise ValueError(f"--batch_tokens must be >= 1, got {batch_tokens}")
