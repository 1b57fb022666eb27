"""Rows of the quality benchmarks, from the public data sets in their own layouts.

Media files stay in place; only rows are written, with absolute paths to images, clips and videos.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_SENTENCES = 14
"""Sentences in a video of more than a minute."""
Row = dict[str, Any]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Row]:
    """Read rows from jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def entities(source: Path, target: Path) -> None:
    """Write WNUT 2017: a sentence per row, `words` and their IOB2 `tags`."""
    files = {
        "train": "wnut17train.conll",
        "validation": "emerging.dev.conll",
        "test": "emerging.test.annotated",
    }
    for split, name in files.items():
        write(target / f"{split}.jsonl", _sentences(source / "wnut17" / name))


def _sentences(path: Path) -> Iterator[Row]:
    """Parse sentences separated by blank lines, with words and tags separated by a tab."""
    for block in path.read_text(encoding="utf-8").replace("\n\t\n", "\n\n").split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            yield {"words": [pair[0] for pair in pairs], "tags": [pair[1] for pair in pairs]}


def motions(source: Path, target: Path) -> None:
    """Write BasicMotions of the UEA archive: six channels × 100 steps per row, and the activity."""
    for split in ("train", "test"):
        text = (source / "sensors_uea" / f"BasicMotions_{split.upper()}.ts").read_text()
        lines = text.partition("@data\n")[2].splitlines()
        write(target / f"{split}.jsonl", map(_series, lines))


def _series(line: str) -> Row:
    *channels, label = line.split(":")
    return {
        "readings": [[float(number) for number in channel.split(",")] for channel in channels],
        "label": label,
    }


def captions(source: Path, target: Path) -> None:
    """Write OpenMoji: an image and its caption per row; for training also a row with the image's tags as caption.

    train.jsonl is to choose by validation.jsonl with, all.jsonl holds the rows of both.
    """
    folder = source / "openmoji_captions"
    splits = {
        split: [{**row, "image": str(folder / row["image"])} for row in read(folder / f"{name}.jsonl")]
        for split, name in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    for split in ("validation", "test"):
        write(target / f"{split}.jsonl", splits[split])
    for name, rows in {"train": splits["train"], "all": splits["train"] + splits["validation"]}.items():
        tagged = [{**row, "caption": ", ".join(row["tags"])} for row in rows if row["tags"]]
        write(target / f"{name}.jsonl", rows + tagged)


def sounds(source: Path, target: Path) -> None:
    """Write ESC-10: for each of the four folds, its clips for testing and those of the others for training."""
    folder = source / "esc10_16k"
    rows = [{**row, "audio": str(folder / row["audio"])} for row in read(folder / "all.jsonl")]
    for fold in sorted({row["fold"] for row in rows}):
        write(target / f"test{fold}.jsonl", (row for row in rows if row["fold"] == fold))
        write(target / f"train{fold}.jsonl", (row for row in rows if row["fold"] != fold))


def speech(source: Path, target: Path) -> None:
    """Write spoken captions of Flickr8k in three splits, and ten real utterances of pocketsphinx as real.jsonl."""
    folder = source / "captions"
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        write(target / f"{split}.jsonl", _clips(folder, read(folder / f"{name}.jsonl")))
    folder = source / "asr_pocketsphinx"
    write(target / "real.jsonl", _clips(folder, json.loads((folder / "all.json").read_text())))


def _clips(folder: Path, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield {"audio": str(folder / row["audio"]), "text": row["text"]}


def subtitles(source: Path, target: Path) -> None:
    """Write ten spoken captions per split, and all others of the test part as sentences in videos: videos.jsonl."""
    from quality_subtitles import write_video

    folder = source / "captions"
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        write(target / f"{split}.jsonl", _clips(folder, read(folder / f"{name}.jsonl")[:10]))
    rows = [
        {**row, "audio": str(folder / row["audio"]), "image": str(folder / row["image"])}
        for row in read(folder / "test.jsonl")[10:]
    ]
    videos = []
    for number, start in enumerate(range(0, len(rows), _SENTENCES)):
        path = target / f"{number}.mp4"
        videos.append({"video": str(path), "cues": write_video(path, rows[start : start + _SENTENCES])})
    write(target / "videos.jsonl", videos)


def faq(source: Path, target: Path) -> None:
    """Write questions and the entry of the knowledge base that answers each; entries.jsonl has all entries."""
    entries = {row["faq"]: row for row in read(source / "faq" / "faq.jsonl")}
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = read(source / "faq" / f"{name}.jsonl")
        write(target / f"{split}.jsonl", ({**entries[row["faq"]], "query": row["query"]} for row in rows))
    write(target / "entries.jsonl", entries.values())


VERDICTS = (
    (4.75, "Correct."),
    (3.75, "Mostly correct, but something is missing."),
    (2.25, "Partly correct, important points are missing."),
    (0.0, "Not correct."),
)
"""Feedback on an answer, by the lowest score of 0 to 5 that it is given for."""


def verdict(score: float) -> str:
    """Return a score in words."""
    return next((text for lowest, text in VERDICTS if score >= lowest), VERDICTS[-1][1])


def grading(source: Path, target: Path) -> None:
    """Write a question, its reference answer and a student's answer per row, with the score, and the score in words."""
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = [
            {
                **{key: row[key] for key in ("question", "reference", "answer", "score")},
                "feedback": verdict(row["score"]),
            }
            for row in read(source / "grading" / f"{name}.jsonl")
        ]
        write(target / f"{split}.jsonl", rows)


def travel(source: Path, target: Path) -> None:
    """Write dialogues about hotels, flights and trains: whole ones for training, and a row for each reply otherwise."""
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        dialogues = [
            {**row, "messages": [{key: one[key] for key in ("role", "content")} for one in row["messages"]]}
            for row in read(source / "travel" / f"{name}.jsonl")
        ]
        rows = dialogues if split == "train" else [turn for row in dialogues for turn in _replies(row)]
        write(target / f"{split}.jsonl", rows)


def _replies(row: Row) -> Iterator[Row]:
    """Return a row for each reply of a dialogue, which is its last message."""
    for end, message in enumerate(row["messages"], 1):
        if message["role"] == "assistant":
            yield {**row, "messages": row["messages"][:end]}


def travel_acts(source: Path, target: Path) -> None:
    """Write what an assistant does in each of its turns, as one label for a set of acts, and what it knows before.

    Raises ValueError for a set that no training row has: such a row would not be evaluated.
    """
    known: set[str] = set()
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        dialogues = read(source / "travel" / f"{name}.jsonl")
        rows = [row for dialogue in dialogues for row in _acts(dialogue["messages"])]
        known = known or {row["acts"] for row in rows}
        if unknown := {row["acts"] for row in rows} - known:
            raise ValueError(f"{split}: no training row has {', '.join(sorted(unknown))}")
        write(target / f"{split}.jsonl", rows)


def _acts(messages: list[Row]) -> Iterator[Row]:
    before: Row | None = None
    for user, assistant in zip(messages[::2], messages[1::2], strict=True):
        known = [
            f"{service.partition('_')[0]} {state['intent']} {' '.join(state['slots'])}"
            for service, state in user["state"].items()
        ]
        yield {
            "user": user["content"],
            "assistant": before["content"] if before else None,
            "state": " ".join(known),
            "acts": " ".join(sorted({act["act"] for act in assistant["acts"]})),
        }
        before = assistant


def smart_home(source: Path, target: Path) -> None:
    """Write commands to a home: the request, motion in its rooms, the devices' states as a text, and the command as JSON.

    Slots are in the order of jobs/smart_home.schema.json. blind.jsonl has the test rows without motion and states.
    """
    folder = source / "smart_home"
    schema = json.loads((ROOT / "jobs" / "smart_home.schema.json").read_text())
    order = list(schema["properties"]["slots"]["properties"])
    home = (
        read(folder / "entities.jsonl"),
        {row["area"]: row["floor"] for row in read(folder / "rooms.jsonl")},
    )
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = [
            {
                "request": row["text"],
                "motion": row["motion"],
                "home": _describe_home(row["state"], *home),
                "speaker_in": row["speaker_in"],
                "command": {
                    "intent": row["intent"],
                    "slots": _slots(row["slots"], order),
                    "action": row["action"],
                },
            }
            for row in read(folder / f"{name}.jsonl")
        ]
        write(target / f"{split}.jsonl", rows)
    blind = ("request", "command", "speaker_in")
    write(target / "blind.jsonl", [{name: row[name] for name in blind} for row in rows])


def _slots(slots: Row, order: list[str]) -> Row:
    """Return slots in an order; of alternatives, which differ in white space, the first."""
    first = {name: value[0] if isinstance(value, list) else value for name, value in slots.items()}
    return {
        name: first[name].strip() if isinstance(first[name], str) else first[name]
        for name in sorted(first, key=order.index)
    }


def _describe_home(state: dict[str, str], entities: list[Row], floors: dict[str, str]) -> str:
    """Return the lights and fans by state, with rooms and floors of several lights, and what is on, open or unlocked.

    Hall partly, Ground Floor partly, all partly, Hall ceiling on, Hall lamp off, Bedroom Lamp off, Fan on. Front Door.
    """
    states = {entity["name"]: state[entity["id"]] for entity in entities}
    lights = [entity for entity in entities if _kind(entity) == "light"]
    rooms: dict[str, list[str]] = {}
    for light in lights:
        rooms.setdefault(light["area"], []).append(light["name"])
    by_floor: dict[str, list[str]] = {}
    for room, names in rooms.items():
        by_floor.setdefault(floors[room].replace("_", " ").title(), []).extend(names)
    groups = [(name, names) for name, names in (*rooms.items(), *by_floor.items()) if len(names) > 1]
    groups.append(("all", [light["name"] for light in lights]))
    groups += [(one["name"], [one["name"]]) for one in entities if _kind(one) in ("light", "fan")]
    others = [
        entity["name"]
        for entity in entities
        if _kind(entity) not in ("light", "fan") and state[entity["id"]] in ("on", "open", "unlocked")
    ]
    parts = [f"{name} {_common([states[one] for one in members])}" for name, members in groups]
    return f"{', '.join(parts)}. {', '.join(others) or 'nothing'}."


def _kind(entity: Row) -> str:
    return str(entity["id"].partition(".")[0])


def _common(states: list[str]) -> str:
    return states[0] if len(set(states)) == 1 else "partly"


def photos(source: Path, target: Path) -> None:
    """Write photos of Flickr8k, a row for each of their captions."""
    folder = source / "captions"
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = read(folder / f"{name}.jsonl")
        write(
            target / f"{split}.jsonl",
            [
                {"image": str(folder / row["image"]), "caption": caption.removesuffix(".").strip()}
                for row in rows
                for caption in row["captions"]
            ],
        )
