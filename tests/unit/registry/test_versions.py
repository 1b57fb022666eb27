from collections.abc import Callable
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.registry.versions import get_version, list_models, resolve, show

Add = Callable[..., int]


def test_an_alias_and_a_number_mean_a_version(client: Any, add_version: Add) -> None:
    add_version("answers", alias="champion")
    add_version("answers", alias="candidate")
    assert resolve(client, "models:/answers@champion") == ("answers", 1)
    assert resolve(client, "models:/answers/2") == ("answers", 2)
    assert get_version(client, "answers", 2).aliases == ("candidate",)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/numbers", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/numbers/x", "write models:/NAME@ALIAS"),
        ("models:/nubmers@champion", "no registered model `nubmers`; did you mean numbers"),
        (
            "models:/numbers@champ",
            r"no version of numbers has the alias `champ`; there are: champion \(version 1\)",
        ),
        ("models:/numbers/7", "models:/numbers/7: no such version; there are: 1"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    client: Any, add_version: Add, uri: str, message: str
) -> None:
    if not client.search_registered_models("name='numbers'"):
        add_version("numbers", alias="champion")
    with pytest.raises(SpecError, match=message):
        resolve(client, uri)


def test_list_and_show_tell_what_was_measured(client: Any, add_version: Add) -> None:
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
    found = show(client, "shown")
    assert [version["version"] for version in found["versions"]] == [2, 1]
    assert found["versions"][0]["by_inputs"]["text"] == {"answer/accuracy": 0.45}


def test_a_tag_that_somebody_broke_does_not_break_the_list(client: Any, add_version: Add) -> None:
    number = add_version("broken")
    client.set_model_version_tag("broken", str(number), "rayfuse.metrics", "not json")
    assert get_version(client, "broken", number).metrics == {}
