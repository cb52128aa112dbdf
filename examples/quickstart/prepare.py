"""Stage 1: write the world's data and models to DIR.

python examples/quickstart/prepare.py DIR
"""

import sys
from pathlib import Path

from commands import Settings
from models import write_models
from world import write_data


def main(folder: Path) -> None:
    """Write pairs.jsonl, eval.jsonl, prompts.jsonl, base/ and start/ to `folder`."""
    settings = Settings()
    write_data(folder, settings.seed, settings.groups)
    divergence = write_models(folder, settings.seed)
    print(f"the start policy is {divergence:.1e} nats from the one asked for")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
