"""Inputs whose texts are found in an index, in training rows, predictions, batch predictions and endpoints."""

import json
import pickle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import tiny_language_models
import torch
from endpoints import serve_in_thread
from faq_index import PASSAGES, make_retriever

import rayfuse
from rayfuse.data.cached_features import TOKENS
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.text import PROMPT_TEXT
from rayfuse.model.encoders import build_encoder
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import save_model
from rayfuse.model.predictor import Predictor
from rayfuse.presets.pretrained import find_pretrained
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.feature_cache import encode_frozen_inputs

QUESTION = "Do I pay for cash in another country?"
ROWS = [
    {"question": QUESTION, "reply": "Yes, a fee."},
    {"question": "I forgot my PIN", "reply": "Reset it in the app."},
    {"note": "a greeting", "reply": "Hello."},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    rows = folder / "faq.jsonl"
    rows.write_text("\n".join(map(json.dumps, PASSAGES)))
    rayfuse.build_index(make_retriever(folder), rows, folder / "faq", verbose=False)
    return folder / "faq"


def make_job(folder: Path, index: Path, **retrieve: Any) -> rayfuse.Job:
    """Return a job that answers questions from the two nearest passages, by a tiny language model."""
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    model = folder / "smollm"
    if not model.exists():
        tiny_language_models.smollm(model)
    text = {"type": "text", "encoder": {"type": "prompt"}, "max_tokens": 200, "optional": True}
    options = {"index": str(index), "query": "question", "top": 2, **retrieve}
    task = {
        "type": "generation",
        "model": str(model),
        "max_tokens": 40,
        "prompt": "{passages}\n\n{note}{question}",
    }
    return rayfuse.Job(
        name="faq-replies",
        data={"train": str(folder / "train.jsonl"), "validation": str(folder / "train.jsonl")},
        inputs={"note": text, "question": text, "passages": {**text, "retrieve": options}},
        fusion={"type": "soft_tokens"},
        tasks={"reply": task},
        output={"storage": str(folder / "runs")},
    )


@pytest.fixture(scope="module")
def model(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    job, _ = load_dataset(make_job(folder, index))
    save_model(folder / "model", job, trainable_state_dict(FusedModel(job)), {})
    return folder / "model"


def texts(predictor: Predictor, sample: Any) -> dict[str, str]:
    return {
        name: items[0][PROMPT_TEXT].astype(np.uint8).tobytes().decode()
        for name, items in sample.features.items()
    }


def test_training_rows_have_the_passages_of_their_query(index: Path, tmp_path: Path) -> None:
    job, dataset = load_dataset(make_job(tmp_path, index))
    preprocessor = pickle.loads(
        pickle.dumps(Preprocessor(job.inputs, job.tasks))
    )  # as for a process of the loader
    first, _, without = [preprocessor.from_row(row) for row in dataset.splits["train"]]
    assert texts(preprocessor, first) == {
        "question": QUESTION,
        "passages": f"{PASSAGES[0]['text']}\n\n{PASSAGES[3]['text']}",
    }
    assert texts(preprocessor, without) == {"note": "a greeting"}


def test_a_request_has_the_passages_of_training_and_names_them(model: Path) -> None:
    predictor = Predictor(model)
    [found] = predictor.predict([{"question": QUESTION}])
    assert found["inputs_used"] == ["question", "passages"]
    assert [one["values"] for one in found["sources"]["passages"]] == [PASSAGES[0], PASSAGES[3]]
    sample = predictor.preprocess({"question": QUESTION, "passages": "I forgot my PIN"})
    assert texts(predictor, sample)["passages"].startswith(PASSAGES[2]["text"]), "another query is possible"
    row = predictor.predict_rows([{"question": QUESTION}])[0]
    assert row["sources"] == found["sources"]


def test_the_last_question_of_a_dialogue_finds_passages(index: Path, tmp_path: Path) -> None:
    """In training rows with the reply, and in requests without it."""
    turns = [
        {"role": "user", "content": "I forgot my PIN"},
        {"role": "assistant", "content": "Reset it in the app."},
        {"role": "user", "content": QUESTION},
    ]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": "Yes, a fee."}]},
        {"messages": json.dumps(turns[:2])},
    ]
    job = make_job(tmp_path, index)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = job.model_dump(mode="json", exclude_unset=True)
    passages = {**content["inputs"]["passages"], "column": "messages"}
    passages["retrieve"]["query"] = "messages"
    content["inputs"] = {"messages": {"type": "chat", "optional": True}, "passages": passages}
    content["tasks"]["reply"] |= {"column": "messages", "prompt": "{passages}\n\n{messages}"}
    job, dataset = load_dataset(rayfuse.Job.model_validate(content))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    first, second = [preprocessor.from_row(row) for row in dataset.splits["train"]]
    assert texts(preprocessor, first)["passages"].startswith(PASSAGES[0]["text"])
    assert texts(preprocessor, second)["passages"].startswith(PASSAGES[2]["text"])
    asked = Preprocessor(job.inputs).from_values({"messages": turns})
    assert texts(preprocessor, asked) == texts(preprocessor, first)
    save_model(tmp_path / "model", job, trainable_state_dict(FusedModel(job)), {})
    predictor = Predictor(tmp_path / "model")
    replies = [
        predictor.predict([{"messages": turns}])[0],
        *predictor.predict_rows([rows[0], {"messages": json.dumps(turns)}]),
    ]
    assert {json.dumps(one) for one in replies} == {json.dumps(replies[0])}
    assert replies[0]["sources"]["passages"][0]["values"] == PASSAGES[0]


def test_an_endpoint_returns_the_sources_as_its_openapi_document_says(model: Path) -> None:
    with serve_in_thread(Predictor(model), "/faq") as url:
        reply = httpx.post(f"{url}/predict", json={"inputs": {"question": QUESTION}}, timeout=60).json()
        schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    assert [one["values"]["id"] for one in reply["sources"]["passages"]] == [1, 4]
    assert schemas["Response"]["properties"]["sources"]["properties"].keys() == {"passages"}
    assert "sources" not in schemas["Response"]["required"]


def test_a_file_of_predictions_has_a_column_of_sources(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])))
    rayfuse.predict(model, tmp_path / "rows.jsonl", tmp_path / "out.parquet", verbose=False)
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert [one["values"]["id"] for one in frame["passages_sources"][0]] == [1, 4]


def test_rows_are_others_once_the_index_is_another(tmp_path: Path) -> None:
    """Else a run would resume, or find its cached features, with passages that it was not trained on."""
    model = make_retriever(tmp_path)
    data = {"first": PASSAGES, "second": [{**row, "text": f"{row['text']} Ask us."} for row in PASSAGES]}
    digests = []
    for name, rows in data.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        rayfuse.build_index(model, tmp_path / f"{name}.jsonl", tmp_path / name, verbose=False)
        digests.append(load_dataset(make_job(tmp_path, tmp_path / name))[1].digests)
    assert digests[0] != digests[1]
    assert digests[0] == load_dataset(make_job(tmp_path, tmp_path / "first"))[1].digests


def test_cached_features_are_those_of_the_passages(index: Path, tmp_path: Path) -> None:
    encoder = {"type": "huggingface", "model": find_pretrained({})["text"], "train": "frozen"}
    content = make_job(tmp_path, index).model_dump(exclude_unset=True)
    content["inputs"]["passages"]["encoder"] = encoder
    job, dataset = load_dataset(rayfuse.Job(**content))
    found = encode_frozen_inputs(job, dataset.splits, DistributedContext(), "fp32", lambda _: None)
    cached: Any = found.modalities["passages"]
    preprocessor = Preprocessor(job.inputs, job.tasks)
    with torch.inference_mode():
        for number, place in enumerate(found.value_indices["train"]["passages"][:2]):
            features = preprocessor.from_row(dataset.splits["train"][number]).features["passages"]
            batch = preprocessor.modalities["passages"].collate(features)
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            expected, _ = build_encoder(job.inputs["passages"])(**tensors)
            tokens = torch.as_tensor(cached.gather(place)[TOKENS])
            assert torch.allclose(tokens, expected, atol=1e-5)


def test_passages_without_a_text_are_left_out(index: Path, tmp_path: Path) -> None:
    job, dataset = load_dataset(make_job(tmp_path, index, column="link", top=4))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    found = texts(preprocessor, preprocessor.from_row(dataset.splits["train"][0]))["passages"]
    assert sorted(found.split("\n\n")) == ["a", "b", "d"]


class TestErrors:
    def test_an_index_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="not an index: it has no index.json"):
            load_dataset(make_job(tmp_path, tmp_path / "nowhere"))

    def test_a_column_that_the_passages_lack(self, index: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no column body; set retrieve.column to one of: id, text, link"):
            load_dataset(make_job(tmp_path, index, column="body"))

    @pytest.mark.parametrize(
        ("query", "problem"),
        [
            (
                "questions",
                "inputs.passages.retrieve.query: no text or dialogue `questions`; one of: note, question",
            ),
            ("passages", "no text or dialogue `passages`"),
        ],
    )
    def test_a_query_that_is_no_text_input(
        self, index: Path, tmp_path: Path, query: str, problem: str
    ) -> None:
        with pytest.raises(SpecError, match=problem):
            make_job(tmp_path, index, query=query)
