"""The page on which people try a model, with all assets served locally."""

import html
from pathlib import Path

from rayfuse.serving.swagger_ui import HEADERS

__all__ = ["HEADERS", "asset_path", "render_page"]
_FOLDER = Path(__file__).with_name("static")
_ASSETS = ("try.css", "try.js")


def render_page(title: str, root: str) -> str:
    """Render the page; `root` is the path that the endpoint is mounted at."""
    template = (_FOLDER / "try.html").read_text()
    return template.format(title=html.escape(title), root=html.escape(root))


def asset_path(name: str) -> Path | None:
    """Return the path of a file that the page loads; None if it is unknown."""
    return _FOLDER / name if name in _ASSETS else None
