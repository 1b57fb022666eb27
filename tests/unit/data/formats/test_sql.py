"""Rows of databases."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from reading import read_all

from rayfuse.errors import DataError
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sql") / "a shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE reviews (text TEXT, stars INTEGER, id INTEGER PRIMARY KEY, photo BLOB)"
        )
        rows = [(f"text {n}", n % 5, 1000 - n, b"\x89") for n in range(600)]
        connection.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", rows)
        connection.execute("CREATE TABLE loose (a TEXT, b REAL)")
        connection.executemany("INSERT INTO loose VALUES (?, ?)", [("b", 1.5), ("a", None)])
    connection.close()
    return f"sqlite:///{path}"


def values(url: str) -> list[dict[str, Any]]:
    rows, bad = read_all(url)
    assert not bad
    assert [row.line for row in rows] == list(range(1, len(rows) + 1))
    return [row.values for row in rows]


def test_a_table_in_the_order_of_its_key(database: str) -> None:
    found = values(f"{database}?table=reviews")
    assert [row["id"] for row in found] == list(range(401, 1001))
    assert found[-1] == {"text": "text 0", "stars": 0, "id": 1000, "photo": b"\x89"}


def test_a_table_without_a_key(database: str) -> None:
    assert values(f"{database}?table=loose") == [{"a": "a", "b": None}, {"a": "b", "b": 1.5}]


def test_a_query(database: str) -> None:
    found = values(
        f"{database}?query=SELECT text, ':x' AS c FROM reviews WHERE stars > 3 AND id <= 999 ORDER BY id DESC"
    )
    assert found[0] == {"text": "text 4", "c": ":x"}
    assert len(found) == 120


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("", "write one of .table=NAME and .query=SELECT"),
        ("?table=a&query=SELECT 1 ORDER BY 1", "write one of"),
        ("?query=SELECT * FROM reviews", "the query has no ORDER BY"),
        ("?table=review", "review"),
        ("?query=SELECT nope FROM reviews ORDER BY id", "no such column: nope"),
        ("?query=SELECT id, stars AS id FROM reviews ORDER BY 1", "2 columns have the name `id`"),
    ],
)
def test_invalid_urls(query: str, problem: str, database: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_all(database + query)


def test_a_database_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unable to open database file"):
        read_all(f"sqlite:///{tmp_path}/none.db?table=rows")
    assert not list(tmp_path.iterdir())


def test_passwords_are_rejected_and_not_shown() -> None:
    with pytest.raises(DataError, match="contains credentials; pass them") as raised:
        read_all("postgresql://me:hunter2@db.example/shop?table=rows")
    assert "hunter2" not in str(raised.value)


def test_a_relative_database_is_next_to_the_spec(tmp_path: Path) -> None:
    spec = {
        "kind": "job",
        "name": "reviews",
        "data": {"train": ["sqlite:///shop.db?table=reviews", "more/*.csv"]},
        "inputs": {"text": {"type": "text"}},
        "tasks": {"stars": {"type": "classification"}},
    }
    job = validate_spec(spec, Job, "job.yaml", base=str(tmp_path))
    assert job.data.train == (f"sqlite:///{tmp_path}/shop.db?table=reviews", f"{tmp_path}/more/*.csv")
    assert job.model_dump(mode="json")["data"]["train"] == list(job.data.train)
