"""The page for one group, `serve --ui`: one document that loads nothing and calls /score, as any client does.

The document, its style and its script lie next to this file. The browser runs that script alone, turns no text into
elements, and connects to this server alone.
"""

from string import Template

from openrlhf_gpm import look

ROOM = "openrlhf_gpm.serving"


def page() -> tuple[str, dict[str, str]]:
    """The document, and the headers that it needs."""
    style, script = look.style(ROOM, "ui.css"), look.page_file(ROOM, "ui.js")
    rules = [
        "default-src 'none'",
        f"script-src '{look.allowed(script)}'",
        f"style-src '{look.allowed(style)}'",
        "img-src data:",  # the empty icon, or a browser would ask for one
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    headers = {
        "content-security-policy": "; ".join(rules),
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Template(look.page_file(ROOM, "ui.html")).substitute(style=style, script=script), headers
