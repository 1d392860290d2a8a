"""A small corpus of invented documents, written in every local format."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

WORDS = (
    *("the", "a", "muon", "expert", "router", "step,", "loss.", "gate\n\n", "tokens", "12"),
    *("naïve", "über", "Ω", "東京", "🙂"),
)


def invent_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 5 to 80 words, no two alike."""
    generator = random.Random(seed)
    return [
        " ".join([f"#{index}", *generator.choices(WORDS, k=generator.randint(5, 80))])
        for index in range(count)
    ]


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    rows = [json.dumps({"id": index, field: text}) for index, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    table = pyarrow.table({"id": list(range(len(texts))), field: list(texts)})
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path


def write_directory(path: Path, texts: Sequence[str]) -> Path:
    for index, text in enumerate(texts):
        file = path / f"part{index // 50}" / f"{index:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return path
