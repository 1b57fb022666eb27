from collections.abc import Callable
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.registry.versions import describe_model, get_version, list_models, resolve_model_uri

Add = Callable[..., int]


def test_an_alias_and_a_number_resolve_to_a_version(client: Any, add_version: Add) -> None:
    add_version("answers", alias="champion")
    add_version("answers", alias="candidate")
    assert resolve_model_uri(client, "models:/answers@champion") == ("answers", 1)
    assert resolve_model_uri(client, "models:/answers/2") == ("answers", 2)
    assert get_version(client, "answers", 2).aliases == ("candidate",)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/numbers", "use models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/numbers/x", "use models:/NAME@ALIAS"),
        ("models:/numbr@champion", "registered model `numbr` not found; did you mean numbers"),
        (
            "models:/numbers@champ",
            r"no version of numbers has the alias `champ`; aliases: champion \(version 1\)",
        ),
        ("models:/numbers/7", "models:/numbers/7: version not found; versions: 1"),
    ],
)
def test_an_unknown_model_alias_or_version_is_an_error(
    client: Any, add_version: Add, uri: str, message: str
) -> None:
    if not client.search_registered_models("name='numbers'"):
        add_version("numbers", alias="champion")
    with pytest.raises(SpecError, match=message):
        resolve_model_uri(client, uri)


def test_models_are_listed_with_metrics(client: Any, add_version: Add) -> None:
    add_version("shown", 0.8, alias="champion")
    add_version("shown", 0.9, alias="candidate")
    entry = next(model for model in list_models(client) if model["name"] == "shown")
    assert entry == {
        "name": "shown",
        "versions": 2,
        "latest": 2,
        "aliases": {"candidate": 2, "champion": 1},
        "metric": "answer/accuracy",
        "value": 0.8,
    }
    found = describe_model(client, "shown")
    assert [version["version"] for version in found["versions"]] == [2, 1]
    assert found["versions"][0]["by_inputs"]["text"] == {"answer/accuracy": 0.45}


@pytest.mark.parametrize("content", ["not json", "[1]", None])
def test_a_record_that_cannot_be_read_has_no_metrics(
    client: Any, add_version: Add, content: str | None
) -> None:
    number = add_version("broken")
    if content is not None:
        run = get_version(client, "broken", number).run_id
        client.log_text(run, content, "versions/broken.json")
        client.set_model_version_tag("broken", str(number), "rayfuse.record", "versions/broken.json")
    else:
        client.delete_model_version_tag("broken", str(number), "rayfuse.record")
    assert get_version(client, "broken", number).metrics == {}
