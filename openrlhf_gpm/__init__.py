"""General Preference Models (arXiv:2410.02197) for OpenRLHF.

Importing this package is free: Ray and vLLM workers import it through an entry point and must not load torch for that.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openrlhf_gpm.scoring.scorer import GPM as GPM

__version__ = "0.2.0"
__all__ = ["GPM", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `GPM` (torch, transformers) when it is first asked for."""
    if name == "GPM":
        from openrlhf_gpm.scoring.scorer import GPM

        return GPM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
