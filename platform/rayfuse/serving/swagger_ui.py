"""The Swagger UI page of an endpoint, with all assets served locally."""

import html
import importlib.util
from functools import cache
from pathlib import Path

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
INITIALIZER_FILE = "swagger-initializer.js"

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}

INITIALIZER_SCRIPT = """window.ui = SwaggerUIBundle({
  url: document.documentElement.dataset.openapi,
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""

_PAGE_TEMPLATE = """<!doctype html>
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
<script src="{root}/docs/swagger-initializer.js"></script>
</body>
</html>
"""


def render_page(title: str, root: str) -> str:
    """Render the page; `root` is the path that the endpoint is mounted at."""
    note = "" if asset_path(_ASSETS[0]) else "Swagger UI is not installed: pip install fastapi-offline"
    return _PAGE_TEMPLATE.format(title=html.escape(title), root=html.escape(root), note=note)


def asset_path(name: str) -> Path | None:
    """Return the path of a file of Swagger UI; None where it is unknown or not installed."""
    folder = _assets_dir()
    return folder / name if folder and name in _ASSETS and (folder / name).is_file() else None


@cache
def _assets_dir() -> Path | None:
    """Return fastapi-offline's copy of swagger-ui-dist, without importing the package."""
    spec = importlib.util.find_spec("fastapi_offline")
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0], "static") if locations else None
