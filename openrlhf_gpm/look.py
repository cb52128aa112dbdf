"""What the pages of this package share: files that travel with it, the style, and what a browser may run. Standard
library only.
"""

import base64
import hashlib
from importlib.resources import files


def page_file(room: str, name: str) -> str:
    """A file of a page, without the newline at its end. room: the package that it lies in."""
    return files(room).joinpath(name).read_text(encoding="utf-8").rstrip("\n")


def style(room: str, name: str) -> str:
    """The style of a page: what all pages share, then its own file."""
    return f"{page_file('openrlhf_gpm', 'look.css')}\n{page_file(room, name)}"


def allowed(text: str) -> str:
    """How a content security policy names the one script, or style, that may be inside a page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
