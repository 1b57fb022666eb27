"""The page on which people try a model, in a real Chromium."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

SECONDS = 120


@pytest.fixture
def page(browser: Any, url: str) -> Any:
    browser.get(f"{url}/")
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "fieldset"))
    yield browser
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("422" in entry["message"] or "400" in entry["message"] for entry in errors), errors


def wait(browser: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, SECONDS).until(lambda _: condition())


def find(page: Any, selector: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, selector)


def predict(page: Any) -> None:
    page.execute_script("document.getElementById('result').replaceChildren()")
    find(page, "#predict").click()
    wait(page, lambda: find(page, "#result").text)
    assert not page.find_elements(By.CSS_SELECTOR, "#result .error"), find(page, "#result").text


def used(page: Any) -> set[str]:
    return set(find(page, "#used").text.split(", "))


def test_every_input_of_the_model_has_a_labelled_field(page: Any, url: str) -> None:
    inputs = httpx.get(f"{url}/openapi.json", trust_env=False).json()["x-rayfuse-model"]["inputs"]
    assert [field.get_attribute("id") for field in page.find_elements(By.CSS_SELECTOR, "fieldset")] == [
        f"input-{name}" for name in inputs
    ]
    assert "(required)" in find(page, "#legend-text").text
    assert find(page, "#value-images").get_attribute("multiple")
    assert find(page, "#value-clip").get_attribute("accept").startswith("video/*,")
    columns = page.find_elements(By.CSS_SELECTOR, "#input-person input")
    assert [column.get_attribute("type") for column in columns] == ["number", "text"]
    for control in page.find_elements(By.CSS_SELECTOR, "input, textarea, button"):
        if control.get_attribute("id") == "key-value":
            assert not control.is_displayed()
            continue
        assert control.accessible_name, control.get_attribute("outerHTML")


def test_inputs_that_are_left_empty_are_absent(page: Any) -> None:
    find(page, "#value-text").send_keys("bright or dark?")
    predict(page)
    assert used(page) == {"text"}
    rows = page.find_elements(By.CSS_SELECTOR, "#result tbody th")
    assert {row.text for row in rows} == {"bright", "dark"}


def test_a_value_of_every_kind_and_what_each_contributed(page: Any, files: Path, tmp_path: Path) -> None:
    find(page, "#value-text").send_keys("bright or dark?")
    find(page, "#value-images").send_keys(f"{files}/red.png\n{files}/green.png")
    find(page, "#value-clip").send_keys(str(files / "dark.mp4"))
    find(page, "#value-sensor").send_keys("x,y\n0.5,1\n0.25,2\n0.75,3")
    age, city = page.find_elements(By.CSS_SELECTOR, "#input-person input")
    age.send_keys("61")
    city.send_keys("Oslo")
    find(page, "#value-history").send_keys('[{"id": 1, "time": 5}]')
    find(page, "#explain").click()
    predict(page)
    everything = {"clip", "sound", "sensor", "person", "history", "images", "text"}
    assert used(page) == everything
    contributions = page.find_elements(By.CSS_SELECTOR, "table:last-of-type tbody th")
    assert {row.text for row in contributions} >= everything
    assert len(page.find_elements(By.CSS_SELECTOR, "#input-images canvas")) == 2
    assert " ms" in find(page, "#latency").text
    page.save_screenshot(str(tmp_path / "explained.png"))


def test_the_curl_command_gives_the_same_prediction(page: Any, files: Path) -> None:
    find(page, "#value-text").send_keys("it's @dark; or 'bright'?")
    find(page, "#value-images").send_keys(str(files / "red.png"))
    predict(page)
    shown = {
        row.find_element(By.TAG_NAME, "th").text: row.find_element(By.CSS_SELECTOR, ".number").text
        for row in page.find_elements(By.CSS_SELECTOR, "#result tbody tr")
    }
    command = find(page, "#curl").text
    assert shlex.split(command)[0] == "curl"
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl --silent --noproxy '*' ", 1)],
        cwd=files,
        capture_output=True,
        text=True,
        check=True,
    )
    scores = httpx.Response(200, text=done.stdout).json()["outputs"]["answer"]["scores"]
    assert {name: float(f"{score:.4g}") for name, score in scores.items()} == {
        name: float(score) for name, score in shown.items()
    }


def test_the_example_is_a_valid_request(page: Any) -> None:
    find(page, "#example").click()
    predict(page)
    assert "Inputs used" in find(page, "#result").text


def test_errors_are_shown_as_the_endpoint_words_them(page: Any) -> None:
    find(page, "#predict").click()
    [error] = wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#result .error"))
    assert error.get_attribute("role") == "alert"
    assert "text" in error.text


def test_a_picture_and_a_clip_are_recorded(page: Any) -> None:
    """Chromium has a camera and a microphone of its own for tests."""
    find(page, "#value-text").send_keys("bright or dark?")
    find(page, "#input-images .tools button").click()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#input-images img"))
    record = find(page, "#input-sound .tools button")
    record.click()
    wait(page, lambda: record.text == "Stop")
    begun = page.execute_script("return performance.now()")
    wait(page, lambda: page.execute_script("return performance.now()") > begun + 1500)
    record.click()
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#input-sound audio"))
    predict(page)
    assert used(page) == {"text", "images", "sound"}


def test_the_keyboard_is_enough(page: Any) -> None:
    find(page, "#value-text").click()
    page.switch_to.active_element.send_keys("dark")
    for _ in range(20):
        page.switch_to.active_element.send_keys(Keys.TAB)
        if page.switch_to.active_element.get_attribute("id") == "predict":
            break
    page.switch_to.active_element.send_keys(Keys.ENTER)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#used"))
    assert used(page) == {"text"}


def test_nothing_is_loaded_from_other_hosts(page: Any, url: str) -> None:
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert {name.partition("/kinds")[0] for name in loaded if not name.startswith("data:")} == {
        url.removesuffix("/kinds")
    }
