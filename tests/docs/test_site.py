"""Tests of what makes and checks the documentation site; `make docs` builds and checks the site itself."""

from pathlib import Path

import api_docstrings
import api_pages
import check_site
import cli_pages
import click
import glossary_links
import pytest
import source_pages
import spec_pages
import spec_schema
import yaml

from rayfuse.spec.kinds import KINDS

LINK = '<a href="{}">link</a>'


def write_site(folder: Path, pages: dict[str, str]) -> Path:
    for path, body in pages.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"<html><body>{body}</body></html>")
    return folder


def links_of(folder: Path) -> list[str]:
    return check_site.broken_links(check_site.read_pages(folder), folder)


class TestCheckSite:
    def test_links_that_work(self, tmp_path: Path) -> None:
        home = LINK.format("a/#part") + LINK.format("https://example.org/x#y") + LINK.format("#top")
        pages = {"index.html": f'<p id="top">{home}</p>', "a/index.html": '<p id="part">' + LINK.format("..")}
        assert links_of(write_site(tmp_path, pages)) == []

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (LINK.format("b/"), "index.html: b/: no such page"),
            (LINK.format("a/#other"), "index.html: a/#other: no such anchor"),
            ('<img src="a.png">', "index.html: a.png: no such page"),
            (
                '<script src="https://cdn.example/x.js"></script>',
                "index.html: loads https://cdn.example/x.js from the internet",
            ),
        ],
    )
    def test_links_that_do_not(self, tmp_path: Path, body: str, problem: str) -> None:
        assert links_of(write_site(tmp_path, {"index.html": body, "a/index.html": ""})) == [problem]

    def test_markdown_that_is_left_in_the_text(self, tmp_path: Path) -> None:
        body = "<p>Raises [SpecError][x].</p><pre>a[b][c]</pre>"
        assert links_of(write_site(tmp_path, {"index.html": body})) == [
            "index.html: [SpecError][x]: not a link"
        ]

    def test_clicks_from_home(self, tmp_path: Path) -> None:
        pages = {
            "index.html": LINK.format("a/"),
            "a/index.html": LINK.format("../b/") + LINK.format("../"),
            "b/index.html": "",
            "alone/index.html": LINK.format("../"),
        }
        clicks = check_site.clicks_from_home(check_site.read_pages(write_site(tmp_path, pages)))
        assert clicks == {"index.html": 0, "a/index.html": 1, "b/index.html": 2}

    def test_an_empty_reference_misses_every_name_command_and_key(self, tmp_path: Path) -> None:
        counts, problems = check_site.check(write_site(tmp_path, {"index.html": ""}))
        expected = counts["public names"] + counts["commands and options"] + counts["spec keys"]
        assert len(problems) == expected
        for entry in (
            "name rayfuse.model.predictor.Predictor.predict_samples",
            "command rayfuse-models-promote.min",
            "spec key TrainConfig.epochs",
        ):
            assert f"{entry}: on no reference page" in problems


class TestCliPage:
    def test_every_command_with_its_options(self) -> None:
        text = cli_pages.make_page().text
        for words, command in cli_pages.commands():
            assert f"`{' '.join(words)}` {{ #{'-'.join(words)} }}" in text
            for option in (p for p in command.params if isinstance(p, click.Option)):
                assert option.opts[0] in text

    def test_defaults_and_help(self) -> None:
        text = cli_pages.make_page().text
        assert "{ #rayfuse-models-promote.tolerance .key } *default: 0.01*\n:   Largest allowed" in text


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {page.path.rpartition("/")[2]: page.text for page in spec_pages.make_pages()}


class TestConfigurationPages:
    def test_every_key(self, texts: dict[str, str]) -> None:
        every = "".join(texts.values())
        missing = [
            f"{definition}.{key}"
            for definition, key in spec_schema.all_keys()
            if f'data-key="{definition}.{key}"' not in every
        ]
        assert missing == []

    def test_every_part_of_every_family(self, texts: dict[str, str]) -> None:
        headings = {line for text in texts.values() for line in text.splitlines() if line.startswith("#")}
        for family in spec_schema.families():
            for type_ in spec_schema.variants(family):
                assert any(f" `{type_}` {{" in heading for heading in headings), (family.name, type_)

    def test_anchors_are_unique(self, texts: dict[str, str]) -> None:
        for kind in KINDS:
            anchors = [part.split(" ")[0] for part in texts[f"{kind}.md"].split("{ #")[1:]]
            assert len(anchors) == len(set(anchors))

    def test_type_default_and_description_of_a_key(self, texts: dict[str, str]) -> None:
        [line] = [line for line in texts["job.md"].splitlines() if 'data-key="TrainConfig.epochs"' in line]
        assert line.startswith("[`epochs`](#train.epochs){ #train.epochs .key")
        assert line.endswith("} integer ≥ 1 · default `10`")
        assert "\n:   Passes over the training rows.\n" in texts["job.md"]

    def test_guides_end_with_links_to_the_reference(self) -> None:
        assert spec_pages.references_of("optimization.md").endswith(
            ": [Optimizers](reference/configuration/optimizers.md), "
            "[Schedules](reference/configuration/schedules.md).\n"
        )
        assert spec_pages.references_of("faq.md") == ""

    @pytest.mark.parametrize(
        ("definition", "key", "default"),
        [
            ("Job", "align", "{type: linear}"),
            ("DataConfig", "validation", "{fraction: 0.1}"),
            ("Service", "port", "8000"),
            ("Job", "name", None),
        ],
    )
    def test_defaults(self, definition: str, key: str, default: str | None) -> None:
        assert spec_schema.default_of(definition, key) == default

    def test_types_in_words(self) -> None:
        properties = spec_schema.definitions()
        words = {
            key: spec_schema.type_in_words(
                spec_schema.without_null(properties[definition]["properties"][key]), str.lower
            )
            for definition, key in [
                ("Limits", "request_timeout"),
                ("ComputeConfig", "workers"),
                ("AdamWConfig", "betas"),
                ("Job", "inputs"),
                ("DataConfig", "test"),
            ]
        }
        assert words == {
            "request_timeout": "text or number ≥ 0, such as `5ms`",
            "workers": "integer ≥ 1 or list of integer ≥ 1",
            "betas": "list of 2: number ≥ 0, < 1, number ≥ 0, < 1",
            "inputs": "mapping from names to input",
            "test": "fractionsplit or text or list of text",
        }


class TestApiPages:
    def test_every_module_has_one_page(self) -> None:
        directives = [
            line.removeprefix("::: ")
            for page in api_pages.make_pages()
            for line in page.text.splitlines()
            if line.startswith("::: ")
        ]
        assert len(directives) == len(set(directives))
        modules = {name for modules in api_pages.packages().values() for name in modules}
        assert modules <= set(directives)

    def test_parameters_become_a_list(self) -> None:
        text = "Join them.\n\nfirst: the one,\nof two. second: the other. Raises SpecError if they differ."
        assert api_docstrings.list_parameters(text, {"first", "second"}) == (
            "Join them.\n\n- `first`: the one, of two.\n- `second`: the other.\n\nRaises SpecError if they differ."
        )
        assert api_docstrings.list_parameters("note: nothing", set()) == "note: nothing"
        section = "Args:\n    first: The one."
        assert api_docstrings.list_parameters(section, {"first"}) == section

    def test_errors_become_links(self) -> None:
        errors = {"SpecError": "rayfuse.errors.SpecError"}
        linked = api_docstrings.link_errors("Raises SpecError, not `SpecError` or MySpecError.", errors)
        assert linked == "Raises [SpecError][rayfuse.errors.SpecError], not `SpecError` or MySpecError."
        section = "Raises:\n    SpecError: It is invalid."
        assert api_docstrings.link_errors(section, errors) == section

    def test_columns_stay_aligned(self) -> None:
        assert api_docstrings.keep_columns("Files:\n\na.json    status\nb.json    metrics") == (
            "Files:\n\n```text\na.json    status\nb.json    metrics\n```"
        )


class TestSourcePages:
    def test_links_to_files_of_the_repository(self) -> None:
        text = "[a](../jobs/arithmetic.yaml) [b](../tests/toy_parts) [c](data.md#x) [d](../nowhere.py)"
        assert source_pages.rewrite_links(text, "guide.md") == (
            "[a](reference/recipes.md#jobs-arithmetic-yaml) [b](reference/custom-parts.md) [c](data.md#x) "
            "[d](../nowhere.py)"
        )
        assert source_pages.rewrite_links("[a](../../CHANGELOG.md)", "adr/1.md") == "[a](../changelog.md)"
        modules = "[a](../platform/rayfuse/data) [b](../platform/rayfuse/errors.py)"
        assert source_pages.rewrite_links(modules, "guide.md") == (
            "[a](reference/packages/rayfuse.data/index.md) [b](reference/api/errors.md)"
        )

    def test_every_shipped_spec_is_shown(self, root: Path) -> None:
        [recipes] = [page for page in source_pages.make_pages() if page.path == source_pages.RECIPES]
        for folder in ("jobs", "tune", "serve"):
            for path in (root / folder).glob("*.yaml"):
                assert path.read_text().rstrip() in recipes.text
        assert "k8s/mlflow.yaml" not in recipes.text


class TestGlossaryLinks:
    def test_the_first_mention_is_a_link(self) -> None:
        html = "<h2>Gates</h2><p>A <code>gate</code> and two gates, one Gate.</p>"
        assert glossary_links.link_terms(html, {"Gate": 'a "rule"'}, "../glossary/") == (
            "<h2>Gates</h2><p>A <code>gate</code> and two "
            '<a class="term" href="../glossary/#gate" title="a &quot;rule&quot;">gates</a>, one Gate.</p>'
        )

    def test_terms_have_anchors(self) -> None:
        assert glossary_links.add_anchors("**Model soup** – an average.\n") == (
            "**Model soup**{ #model-soup } – an average.\n"
        )


def test_the_navigation_names_existing_pages(root: Path) -> None:
    config = yaml.safe_load((root / "mkdocs.yml").read_text())
    generated = {
        page.path for pages in (api_pages, spec_pages, source_pages) for page in pages.make_pages()
    } | {cli_pages.PATH}

    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]  # type: ignore[attr-defined]

    named = [leaf for leaf in leaves(config["nav"]) if not leaf.startswith("generated:")]
    assert all(leaf in generated or (root / "docs" / leaf).is_file() for leaf in named)
    pages = {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    assert pages <= {*named, *source_pages.decisions()}
