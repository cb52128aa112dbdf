"""Choices, defaults and checks of a scorer's options. Standard library only, so that `--help` loads no torch."""

BACKENDS = ("torch", "vllm", "url")
SHARE_PROMPT = ("auto", "off")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short name -> torch's."""

BATCH_TOKENS = 16384
"""Tokens per forward pass, padding included."""

WINDOW = 16
"""Batches that are made together, so that samples of similar length share one."""


def is_full(tokens: int, batch_tokens: int) -> bool:
    """Whether groups of so many tokens are a window, whose batches are then made."""
    return tokens >= WINDOW * batch_tokens


URL_TIMEOUT = 600.0
"""Seconds that a server's answer may take."""


def check_options(
    batch_tokens: int = BATCH_TOKENS,
    share_prompt: str = SHARE_PROMPT[0],
    backend: str = BACKENDS[0],
    url: str | None = None,
    url_timeout: float = URL_TIMEOUT,
) -> None:
    """Raise ValueError, which names the flag, for a value that no backend takes."""
    if backend not in BACKENDS:
        raise ValueError(f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if share_prompt not in SHARE_PROMPT:
        raise ValueError(f"--share_prompt must be one of {', '.join(SHARE_PROMPT)}; got {share_prompt!r}")
    if batch_tokens < 1:
        raise ValueError(f"--batch_tokens must be >= 1, got {batch_tokens}")
    if (backend == "url") != (url is not None):
        raise ValueError("--backend url and --url need each other: give both, or none")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError(f"--url must begin with http:// or https://, got {url!r}")
    if not 0 < url_timeout < float("inf"):
        raise ValueError(f"--url_timeout must be a number of seconds > 0, got {url_timeout}")
