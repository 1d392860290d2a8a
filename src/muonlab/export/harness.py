"""lm-evaluation-harness on an exported model, and tasks for it made from any text, offline.

Needs the extra ``hf`` (transformers and lm-eval).
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from muonlab.export.families import ExportError

NUM_CHOICES = 4
CONTEXT_SENTENCES = 3

NEXT_SENTENCE = """\
task: muonlab_next_sentence
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

TEXT = """\
task: muonlab_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
metadata: {{version: 1.0}}
"""


def write_text_tasks(
    documents: Sequence[str], directory: Path, *, max_bytes: int = 1024, seed: int = 0
) -> list[str]:
    """Two tasks over held-out documents, for ``evaluate_exported``; returns their names.

    ``muonlab_next_sentence``: which of four sentences follows the last three, where the wrong ones
    come from elsewhere in the documents; chance is 0.25. ``muonlab_text``: bits per byte.
    Sentences of over ``max_bytes`` are no choices: at most the model's length in tokens, since a
    token is at least a byte.
    """
    generator = random.Random(seed)
    sentences = [re.split(r"(?<=[.?!])\s+", document.strip()) for document in documents]
    everything = [s for document in sentences for s in document if len(s.encode()) <= max_bytes]
    items = []
    for document in sentences:
        for start in range(0, len(document) - CONTEXT_SENTENCES, CONTEXT_SENTENCES + 1):
            context = document[start : start + CONTEXT_SENTENCES]
            right = document[start + CONTEXT_SENTENCES]
            if len(right.encode()) > max_bytes:
                continue
            choices = [right, *generator.sample(everything, NUM_CHOICES - 1)]
            generator.shuffle(choices)
            item = {"context": " ".join(context), "choices": choices}
            items.append(item | {"answer": choices.index(right)})
    if not items:
        raise ExportError(
            f"no document has {CONTEXT_SENTENCES + 1} sentences to ask about, "
            f"the last of at most {max_bytes} bytes"
        )
    directory.mkdir(parents=True, exist_ok=True)
    texts = [{"text": document} for document in documents]
    tasks = {"muonlab_next_sentence": (NEXT_SENTENCE, items), "muonlab_text": (TEXT, texts)}
    for name, (template, rows) in tasks.items():
        data = directory.resolve() / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (directory / f"{name}.yaml").write_text(template.format(data=json.dumps(str(data))))
    return list(tasks)


def evaluate_exported(
    directory: Path,
    tasks: Sequence[str],
    *,
    task_directory: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """Metrics of each task for the model that `export_hf` wrote to ``directory``.

    ``task_directory`` holds further task files (YAML); ``limit`` takes the first examples only.
    Raises ExportError for a task that neither lm-eval nor ``task_directory`` knows.
    """
    from lm_eval.evaluator import simple_evaluate  # takes seconds, and is an optional extra
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task_directory) if task_directory else None)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise ExportError(f"task {task!r} is unknown; `lm-eval ls tasks` lists the legal ones")
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(directory), "device": "cpu"},
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        batch_size=batch_size,
        bootstrap_iters=0,
        log_samples=False,
        verbosity="ERROR",
    )
    assert results is not None  # of this process; only other ranks get none
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in metrics.items()
            if isinstance(value, float)
        }
        for task, metrics in results.get("results", {}).items()
    }
