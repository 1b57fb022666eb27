"""Events of MkDocs: generated pages, their navigation, and links to files outside of docs/."""

from typing import Any

import api_pages
import cli_pages
import glossary_links
import source_pages
import spec_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_GENERATED_NAVIGATION = {
    "configuration": lambda: list(spec_pages.navigation()),
    "api": api_pages.public_navigation,
    "packages": api_pages.navigation,
    "decisions": source_pages.decisions,
}
"""Text in the navigation of mkdocs.yml → what it is replaced with."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation."""
    config.nav = _complete(config.nav)
    return config


def _complete(node: Any) -> Any:
    if isinstance(node, list):
        return [_complete(item) for item in node]
    if isinstance(node, dict):
        return {title: _complete(item) for title, item in node.items()}
    if isinstance(node, str) and node.startswith("generated:"):
        return _GENERATED_NAVIGATION[node.removeprefix("generated:")]()
    return node


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for page in [
        cli_pages.make_page(),
        *spec_pages.make_pages(),
        *api_pages.make_pages(),
        *source_pages.make_pages(),
    ]:
        files.append(File.generated(config, page.path, content=page.text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files outside of docs/ lead to pages of the site, and guides end with links to the reference."""
    path = page.file.src_uri
    if path == glossary_links.GLOSSARY:
        markdown = glossary_links.add_anchors(markdown)
    return source_pages.rewrite_links(markdown, path) + spec_pages.references_of(path)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link terms of guides to the glossary."""
    path = page.file.src_uri
    if path.startswith("reference/") or path in (glossary_links.GLOSSARY, source_pages.CHANGELOG):
        return html
    glossary = files.get_file_from_path(glossary_links.GLOSSARY)
    assert glossary is not None
    return glossary_links.link_terms(html, glossary_links.linked_terms(), glossary.url_relative_to(page.file))
