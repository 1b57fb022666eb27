"""A headless Chromium, and an endpoint whose model has inputs of every kind."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kinds_of_input
import pytest
from endpoints import serve_in_thread
from tiny_jobs import make_model_folder

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",  # a camera and a microphone without a question
    "--use-fake-device-for-media-stream",
    "--window-size=1280,1600",
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images and clips."""
    folder = tmp_path_factory.mktemp("files")
    kinds_of_input.make_rows(folder)
    return folder


@pytest.fixture(scope="session")
def url(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a model of every kind of input, and return the URL of its route."""
    from rayfuse.model.predictor import Predictor

    folder = tmp_path_factory.mktemp("served")
    encoders = {f"inputs.{name}.encoder": options for name, options in kinds_of_input.SMALL_ENCODERS.items()}
    job = kinds_of_input.make_job(folder).override(**encoders)
    predictor = Predictor(make_model_folder(folder, steps=20, job=job))
    with serve_in_thread(predictor, "/kinds") as served:
        yield served


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start the Chromium or Chrome of this machine."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver: apt install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as started:
        yield started
