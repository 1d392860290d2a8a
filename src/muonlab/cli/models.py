"""`muonlab eval | generate | export`: what a trained model can do."""

import json as json_format
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from muonlab.cli.configs import read_source
from muonlab.cli.options import CacheDir, Native, RunPath
from muonlab.errors import UserError

if TYPE_CHECKING:
    from muonlab.data import TokenData
    from muonlab.data.splits import SplitName
    from muonlab.loading import LoadedRun
    from muonlab.model import LanguageModel

OtherText = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="TEXT",
        help="measure on this text: a file (.txt .md .jsonl .parquet), a directory of such files, "
        "or - for standard input",
        help_behavior_hint="(default: the run's own split)",
    ),
]
Step = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help="take the checkpoint of step N",
        help_behavior_hint="(default: the newest)",
    ),
]


def evaluate_run(
    run_path: RunPath,
    *,
    split: Annotated[
        Literal["validation", "test"], tyro.conf.arg(help="which held-out documents to measure on")
    ] = "validation",
    data: OtherText = (),
    json: Annotated[bool, tyro.conf.arg(help="print the numbers as JSON instead")] = False,
    tasks: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="TASK [TASK ...]",
            help="run these tasks of lm-evaluation-harness instead (needs the extra hf)",
            help_behavior_hint="",
        ),
    ] = (),
    limit: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="at most N examples for each task",
            help_behavior_hint="(default: all)",
        ),
    ] = None,
    step: Step = None,
    cache_dir: CacheDir = None,
) -> None:
    """Measure a run: loss, bits per byte, perplexity, accuracy and expert load.

    It measures on the whole validation or test split, or, with --data, on another text; the run's
    own corpus is then not needed. The tasks muonlab_text and muonlab_next_sentence are made from
    those documents and need no network.
    """
    from muonlab.evaluate import evaluate
    from muonlab.loading import load, open_corpus

    loaded = load(run_path, step=step, cache_dir=cache_dir)
    model, settings = loaded.model, loaded.config.train
    if data:
        corpus, name = _whole_text(loaded, data, cache_dir), "train"
    else:
        corpus, name = open_corpus(loaded.run, cache_dir), split
    if tasks:
        _evaluate_tasks(model, corpus, name, tasks, limit)
        return
    metrics = evaluate(
        model,
        corpus,
        name,
        batch_size=settings.micro_batch_size or settings.batch_size,
        sequence_length=settings.sequence_length,
    )
    metrics = {key.replace("train/", "text/"): value for key, value in metrics.items()}
    if json:
        print(json_format.dumps(metrics, indent=2))
        return
    units = {"loss": "nats/token", "bits_per_byte": "bits/byte", "router_entropy": "nats"}
    for key, value in metrics.items():
        print(f"{key:22} {value:10.4f} {units.get(key.split('/')[1], '')}".rstrip())


def _whole_text(loaded: "LoadedRun", data: tuple[str, ...], cache_dir: Path | None) -> "TokenData":
    """Texts that are not split, in the tokens of a run."""
    from muonlab.data import DataConfig, DocumentSplit, TokenizerFile

    tokenizer = loaded.run.path / "tokenizer.json"
    if not tokenizer.exists():
        raise UserError(
            f"{loaded.run.path} was made before runs kept their tokenizer; --data needs it"
        )
    if len(data) > 1:
        raise UserError(f"--data {' '.join(data)}: eval measures one text at a time")
    config = DataConfig(
        source=read_source(data, cache_dir),
        tokenizer=TokenizerFile(path=tokenizer, end_of_text=loaded.tokenizer.end_of_text),
        split=DocumentSplit(validation_fraction=0, test_fraction=0),
    )
    return config.prepare(cache_dir)


def _evaluate_tasks(
    model: "LanguageModel",
    data: "TokenData",
    split: "SplitName",
    tasks: tuple[str, ...],
    limit: int | None,
) -> None:
    from muonlab.export import export_hf
    from muonlab.export.harness import evaluate_exported, write_text_tasks

    numbers = range(data.num_documents(split))
    ids = (data.document(split, number).tolist() for number in numbers)
    documents = [data.tokenizer.decode([i for i in each if i != data.eot_id]) for each in ids]
    with tempfile.TemporaryDirectory() as scratch:
        exported, task_directory = Path(scratch, "model"), Path(scratch, "tasks")
        export_hf(model, data.tokenizer, exported)
        write_text_tasks(documents, task_directory, max_bytes=model.config.max_length)
        results = evaluate_exported(exported, tasks, task_directory=task_directory, limit=limit)
    for task, metrics in results.items():
        for name, value in metrics.items():
            print(f"{task}/{name:20} {value:10.4f}")


def generate_from_run(
    run_path: RunPath,
    *,
    prompt: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="TEXT [TEXT ...]",
            help="one or several texts to continue",
            help_behavior_hint="(default: begin a new document)",
        ),
    ] = (),
    max_new_tokens: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="how many tokens to write at most",
            help_behavior_hint="(default: 200, or fewer if the model was trained for less)",
        ),
    ] = None,
    temperature: Annotated[
        float, tyro.conf.arg(help="0 always takes the likeliest token, higher values vary more")
    ] = 0.8,
    top_k: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="choose among the N likeliest tokens",
            help_behavior_hint="(default: all)",
        ),
    ] = None,
    top_p: Annotated[
        float,
        tyro.conf.arg(help="choose among the likeliest tokens that together have this probability"),
    ] = 1.0,
    seed: Annotated[int, tyro.conf.arg(help="another seed gives another text")] = 0,
    extend: Annotated[
        bool, tyro.conf.arg(help="allow more tokens than the model was trained for")
    ] = False,
    native_kernels: Native = False,
    step: Step = None,
    cache_dir: CacheDir = None,
) -> None:
    """Continue texts with a trained model. A single text appears token by token."""
    from muonlab.generate import GenerateOptions, generate_text
    from muonlab.loading import load
    from muonlab.model import native

    loaded = load(run_path, step=step, cache_dir=cache_dir)
    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = prompt or ("",)
    if "" in prompt and not loaded.config.data.split.end_of_text:
        raise UserError(f"{run_path} was trained without end-of-text tokens; give it a --prompt")
    if max_new_tokens is None:
        longest = max(len(tokenizer.encode(text)) or 1 for text in prompt)  # "": end of text
        max_new_tokens = max(1, min(200, model.config.max_length - longest + 1))
    options = GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        extend=extend,
    )
    if native_kernels:
        native.enable()
    model = model.for_inference(model.compute_dtype)
    pieces = generate_text(model, tokenizer, list(prompt), options)
    if len(prompt) == 1:
        print(prompt[0], end="", flush=True)
        for (piece,) in pieces:
            print(piece, end="", flush=True)
        print()
        return
    texts = list(prompt)
    for step_pieces in pieces:
        texts = [text + piece for text, piece in zip(texts, step_pieces, strict=True)]
    for text in texts:
        print(f"{text}\n{'-' * 40}")


def export_run(
    run_path: RunPath,
    *,
    to: Annotated[
        Path | None,
        tyro.conf.arg(help="a new directory for the model", help_behavior_hint="(default: RUN/hf)"),
    ] = None,
    format: Annotated[  # noqa: A002 (the flag's name)
        Literal["hf"], tyro.conf.arg(help="the only format")
    ] = "hf",
    step: Step = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write a run as a model for Hugging Face transformers: weights, config, tokenizer.

    An unfinished run needs --step.
    """
    from muonlab.export import export_hf
    from muonlab.loading import load
    from muonlab.runs import RunDirectory, RunError

    run = RunDirectory(run_path)
    run.config()  # no run: nothing is asked of its status
    status = run.status()
    if status != "finished" and step is None:
        raise RunError(f"{run_path} is {status}, not finished; name a checkpoint with --step")
    loaded = load(run_path, step=step, cache_dir=cache_dir)
    directory = to or run_path / "hf"
    family = export_hf(loaded.model, loaded.tokenizer, directory)
    print(f"{directory}: {family}, for transformers.AutoModelForCausalLM.from_pretrained")
