"""Indexes of passages, with a real sentence encoder on both sides of a retrieval task."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
from faq_index import PASSAGES, make_retriever

import rayfuse
from rayfuse.cli import main
from rayfuse.data import passage_index, row_chunks
from rayfuse.errors import DataError, InvalidInputError, SpecError
from rayfuse.model.predictor import Predictor


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_retriever(tmp_path_factory.mktemp("faq"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the passages, and a row without a text."""
    path = tmp_path_factory.mktemp("data") / "faq.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*PASSAGES, {"id": 5, "text": None}]))
    return path


@pytest.fixture(scope="module")
def index(retriever: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "faq"
    result = rayfuse.build_index(retriever, data, folder, verbose=False)
    assert (result.rows, result.invalid, result.dim) == (4, 1, 384)
    assert "text: missing" in result.reasons[0]
    return folder


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("How long until I get my new card?", 2),
        ("Do I pay for cash in another country?", 1),
        ("I forgot my PIN", 3),
    ],
)
def test_a_question_finds_the_entry_that_answers_it(index: Path, query: str, best: int) -> None:
    found = rayfuse.load_index(index).search(query, top=2)
    assert [len(found), found[0].values["id"]] == [2, best]
    assert found[0].values == {"link": None, **PASSAGES[best - 1]}
    assert found[0].similarity > found[1].similarity


def test_the_commands(
    retriever: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = [
        "index",
        str(retriever),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "faq"),
        "--keep",
        "id,text",
    ]
    assert main([*written, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(tmp_path / "faq"),
        "rows": 4,
        "invalid": 1,
        "dim": 384,
    }
    assert main(["search", str(tmp_path / "faq"), "I forgot my PIN", "--top", "1", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["passages"]
    assert found["values"] == {"id": 3, "text": PASSAGES[2]["text"]}
    assert main(["search", str(tmp_path / "faq"), "I forgot my PIN", "--columns", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["similarity", "text"]
    assert str(PASSAGES[2]["text"]) in lines[1]
    assert main(["search", str(tmp_path), "x"]) == 1
    assert "not an index" in capsys.readouterr().err


def test_similarities_are_those_of_the_model(index: Path, retriever: Path) -> None:
    query = "Do I pay for cash in another country?"
    found = {one.values["text"]: one.similarity for one in rayfuse.load_index(index).search(query, top=4)}
    predictions = Predictor(retriever).predict([{"question": query, "text": row["text"]} for row in PASSAGES])
    expected = {
        row["text"]: one["outputs"]["find"]["similarity"]
        for row, one in zip(PASSAGES, predictions, strict=True)
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_index_is_searched_without_the_model_that_wrote_it(index: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(index, tmp_path / "moved")
    assert rayfuse.load_index(moved).search("I forgot my PIN", 1, ["link", "id"])[0].values == {
        "link": None,
        "id": 3,
    }


def test_partitions_find_what_an_exact_search_finds(
    retriever: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "many.jsonl"
    rows.write_text("\n".join(json.dumps({"id": n, "text": f"The number {n} bus"}) for n in range(300)))
    exact = rayfuse.build_index(retriever, rows, tmp_path / "exact", verbose=False)
    monkeypatch.setattr(passage_index, "INDEXED_ROWS", 300)
    partitioned = rayfuse.build_index(retriever, rows, tmp_path / "partitioned", verbose=False)
    queries = [f"bus {n}" for n in (3, 77, 250)]
    one, other = (rayfuse.load_index(found.output).search_many(queries, 3) for found in (exact, partitioned))
    assert [[p.values["id"] for p in found] for found in one] == [
        [p.values["id"] for p in found] for found in other
    ]


def test_an_interrupted_call_embeds_only_the_rows_that_are_left(
    retriever: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 2)
    embedded: list[int] = []
    original = Predictor.predict_valid_rows

    def interrupted_at(count: int) -> Any:
        def predict(self: Predictor, rows: Any, batch_size: int) -> Any:
            if len(embedded) == count:
                raise KeyboardInterrupt
            embedded.append(len(rows))
            return original(self, rows, batch_size)

        return predict

    monkeypatch.setattr(Predictor, "predict_valid_rows", interrupted_at(2))
    with pytest.raises(KeyboardInterrupt):
        rayfuse.build_index(retriever, data, tmp_path / "index", verbose=False)
    with pytest.raises(DataError, match="not an index"):
        rayfuse.load_index(tmp_path / "index")
    monkeypatch.setattr(Predictor, "predict_valid_rows", interrupted_at(99))
    assert rayfuse.build_index(retriever, data, tmp_path / "index", verbose=False).rows == 4
    assert embedded == [2, 2, 1]
    assert rayfuse.load_index(tmp_path / "index").search("I forgot my PIN", 1)[0].values["id"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


class TestErrors:
    def test_data_for_both_inputs_needs_the_input(self, retriever: Path, tmp_path: Path) -> None:
        rows = [{"question": "Where?", "text": "Here."}]
        path = tmp_path / "both.jsonl"
        path.write_text(json.dumps(rows[0]))
        with pytest.raises(
            SpecError, match="columns of both inputs of task find: question, text; choose one"
        ):
            rayfuse.build_index(retriever, path, tmp_path / "index", verbose=False)
        found = rayfuse.build_index(retriever, path, tmp_path / "index", input="question", verbose=False)
        assert rayfuse.load_index(found.output).description.query_input == "text"
        with pytest.raises(SpecError, match="input: tex: not an input of task find; did you mean text"):
            rayfuse.build_index(retriever, path, tmp_path / "index", input="tex", verbose=False)

    def test_data_without_the_inputs(self, retriever: Path, tmp_path: Path) -> None:
        path = tmp_path / "other.jsonl"
        path.write_text('{"body": "x"}')
        with pytest.raises(SpecError, match="no columns of the inputs of task find"):
            rayfuse.build_index(retriever, path, tmp_path / "index", verbose=False)

    def test_a_query_and_a_column_that_do_not_exist(self, index: Path) -> None:
        loaded = rayfuse.load_index(index)
        with pytest.raises(InvalidInputError, match="question"):
            loaded.search("")
        with pytest.raises(SpecError, match="the passages have no column links; did you mean link"):
            loaded.search("a", columns=["links"])

    @pytest.mark.parametrize("content", ["{", '{"format": 0}', "[]"])
    def test_a_damaged_description(self, index: Path, tmp_path: Path, content: str) -> None:
        broken = shutil.copytree(index, tmp_path / "broken")
        (broken / "index.json").write_text(content)
        with pytest.raises(DataError, match=r"index.json cannot be read|another version"):
            rayfuse.load_index(broken)

    def test_a_missing_table(self, index: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(index, tmp_path / "broken")
        shutil.rmtree(broken / "passages.lance")
        with pytest.raises(DataError, match="cannot be searched"):
            rayfuse.load_index(broken).search("a")

    def test_a_model_without_retrieval(self, tmp_path: Path) -> None:
        model = tiny_jobs.make_model_folder(tmp_path, steps=0)
        with pytest.raises(SpecError, match="has no retrieval task"):
            rayfuse.build_index(model, tmp_path / "x.jsonl", tmp_path / "index", verbose=False)
