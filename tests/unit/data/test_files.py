"""Rows and media files from every kind of store, and the errors of stores."""

import base64
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny_jobs
from reading import read_all

from rayfuse.data.files import resolve_relative
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError, InvalidInputError, UnavailableError
from rayfuse.spec.base import join_url

STORES = ["file", "memory", "s3", "http"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows/train.jsonl, whose images are in its folder, next to its folder, at a URL, and missing."""
    top = tmp_path_factory.mktemp("stores")
    for name in ("rows/own.png", "images/other.png"):
        (top / name).parent.mkdir(exist_ok=True)
        tiny_jobs.write_image(top / name)
    images = ["own.png", "../images/other.png", (top / "rows/own.png").as_uri(), "absent.png"]
    rows = [{"image": image, "page": "https://example.org/x.html"} for image in images]
    tiny_jobs.write_rows(top / "rows/train.jsonl", rows)
    return top


@pytest.fixture(scope="module")
def http_url(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            if self.path.startswith("/secret"):
                return self.send_error(403)
            return super().do_GET()

        do_HEAD = do_GET  # type: ignore[assignment]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def s3_url(folder: Path) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        fs.mkdir("data")
        fs.put(f"{folder}/", "data/", recursive=True)
        yield "s3://data"
        fs.clear_instance_cache()
    server.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    store: str = request.param
    if store == "file":
        return folder.as_uri()
    if store == "memory":
        fsspec.filesystem("memory").put(f"{folder}/", "/stores/", recursive=True)
        return "memory://stores"
    found: str = request.getfixturevalue(f"{store}_url")
    return found


@pytest.fixture
def preprocessor(tmp_path: Path) -> Preprocessor:
    inputs = tiny_jobs.tiny_job(tmp_path, **{"inputs.text.optional": True}).inputs
    return Preprocessor({"image": inputs["image"]})


@pytest.mark.parametrize("url", STORES, indirect=True)
def test_rows_and_their_images(url: str, preprocessor: Preprocessor) -> None:
    rows, bad = read_all(f"{url}/rows/train.jsonl")
    assert (len(rows), len(bad)) == (4, 0)
    assert rows[1].file == f"{url}/rows/train.jsonl"
    for row in rows[:3]:
        assert preprocessor.from_row(row).features["image"][0]["pixel_values"].shape == (3, 8, 8)
    with pytest.raises(InvalidInputError, match="image: absent.png: no such file"):
        preprocessor.fingerprint(rows[3])


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_with_data_uris(suffix: str, tmp_path: Path, preprocessor: Preprocessor) -> None:
    content = tiny_jobs.write_image(tmp_path / "a.png").read_bytes() + bytes(200_000)
    uri = f"data:image/png;base64,{base64.urlsafe_b64encode(content).decode()}"
    plain = uri.partition(",")[2]
    texts = {
        "jsonl": "".join(json.dumps({"image": image}) + "\n" for image in (uri, plain)),
        "csv": f'image\n"{uri}"\n{plain}\n',
    }
    (tmp_path / f"rows.{suffix}").write_text(texts[suffix])
    rows, bad = read_all(str(tmp_path / f"rows.{suffix}"))
    assert (len(rows), len(bad)) == (2, 0)
    found, wanted = preprocessor.from_row(rows[0]), preprocessor.from_values({"image": content})
    assert found.keys == wanted.keys
    with pytest.raises(InvalidInputError, match="too long for a path; give base64 as a data: URI") as caught:
        preprocessor.fingerprint(rows[1])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", ["file", "memory", "s3"], indirect=True)
def test_globs_and_folders(url: str) -> None:
    for rows, _ in (read_all(f"{url}/rows/*.jsonl"), read_all(f"{url}/rows")):
        assert [row.origin for row in rows][:2] == [f"{rows[0].file}:1", f"{rows[0].file}:2"]
        assert rows[0].file.startswith(url.partition("//")[0])
        assert len(rows) == 4


def test_an_http_page_with_links_is_a_folder(http_url: str) -> None:
    assert len(read_all(f"{http_url}/rows/")[0]) == 4
    assert len(read_all(f"{http_url}/rows/train.jsonl?download=1")[0]) == 4


@pytest.mark.parametrize("url", STORES, indirect=True)
def test_missing_files(url: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_all(f"{url}/rows/absent.jsonl")


def test_errors_of_http_stores(http_url: str, preprocessor: Preprocessor) -> None:
    with pytest.raises(UnavailableError, match="secret.jsonl: cannot be read: ClientResponseError: 403"):
        read_all(f"{http_url}/secret.jsonl")
    with pytest.raises(
        InvalidInputError, match="image: .*secret.png: cannot be read: ClientResponseError: 403"
    ):
        preprocessor.fingerprint(Row({"image": f"{http_url}/secret.png"}, "rows.jsonl", 1))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(UnavailableError, match="rows.jsonl: cannot be read"):
            read_all(f"http://127.0.0.1:{port}/rows.jsonl")


def test_errors_of_s3(s3_url: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_all("s3://no-such-bucket/rows.jsonl")
    with pytest.raises(DataError, match="no file matches"):
        read_all(f"{s3_url}/*.csv")


@pytest.mark.parametrize(
    ("folder_url", "path", "url"),
    [
        ("/data", "a.png", "/data/a.png"),
        ("/data", "/b.png", "/b.png"),
        (".", "a.png", "./a.png"),
        ("s3://b", "a.png", "s3://b/a.png"),
        ("s3://b/x", "../y/a.png", "s3://b/y/a.png"),
        ("s3://b/x", "memory://a.png", "memory://a.png"),
        ("memory:/", "a.png", "memory://a.png"),
        ("memory://", "a.png", "memory:///a.png"),
        ("file://", "a.png", "file:///a.png"),
        ("file:///data", "./c//a.png", "file:///data/c/a.png"),
        ("simplecache::s3://b/x", "a.png", "simplecache::s3://b/x/a.png"),
    ],
)
def test_resolve_relative(folder_url: str, path: str, url: str) -> None:
    assert resolve_relative(folder_url, path) == url


@pytest.mark.parametrize(("folder_url", "path"), [("s3://b/x", "../../c/a"), ("file:///x", "../../a")])
def test_paths_above_the_root_are_rejected(folder_url: str, path: str) -> None:
    with pytest.raises(ValueError, match="above the root"):
        join_url(folder_url, path)
