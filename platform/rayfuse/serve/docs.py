"""The web page that shows the OpenAPI description and tries it out. Its parts are served from here."""

import html
import importlib.util
from functools import cache
from pathlib import Path

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
START_FILE = "start.js"

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}

START = """window.ui = SwaggerUIBundle({
  url: document.documentElement.dataset.openapi,
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""

_PAGE = """<!doctype html>
<html lang="en" data-openapi="{root}/openapi.json">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{root}/docs/favicon.png">
<link rel="stylesheet" href="{root}/docs/swagger-ui.css">
</head>
<body>
<div id="docs">{note}</div>
<script src="{root}/docs/swagger-ui-bundle.js"></script>
<script src="{root}/docs/start.js"></script>
</body>
</html>
"""


def page(title: str, root: str) -> str:
    """The page; `root` is the path below which the endpoint answers."""
    note = "" if asset(_ASSETS[0]) else "Swagger UI is not installed here: pip install fastapi-offline"
    return _PAGE.format(title=html.escape(title), root=html.escape(root), note=note)


def asset(name: str) -> Path | None:
    """A file of Swagger UI, from the installed package that carries it."""
    folder = _folder()
    return folder / name if folder and name in _ASSETS and (folder / name).is_file() else None


@cache
def _folder() -> Path | None:
    """fastapi-offline's copy of swagger-ui-dist; the package itself is not imported."""
    found = importlib.util.find_spec("fastapi_offline")
    places = found.submodule_search_locations if found else None
    return Path(places[0], "static") if places else None
