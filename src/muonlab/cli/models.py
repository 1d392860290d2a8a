"""`muonlab eval | generate | export`: what a trained model can do."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from muonlab import machine
from muonlab.cli.options import CACHE_DIR, CacheDir, RunPath
from muonlab.data import TokenData
from muonlab.data.splits import SplitName
from muonlab.evaluate import evaluate
from muonlab.export import export_hf
from muonlab.generate import GenerateOptions, generate_text
from muonlab.model import LanguageModel
from muonlab.runs import RunDirectory, RunError, load_weights

Step = Annotated[int | None, tyro.conf.arg(help="a checkpoint's step; default: the newest")]


def load_run(
    path: Path, step: int | None, cache_dir: Path
) -> tuple[LanguageModel, TokenData, RunDirectory]:
    """The model of a run at a checkpoint, and its data; raises RunError."""
    run = RunDirectory(path)
    config = run.config()
    checkpoint = run.load_checkpoint(step)
    device = machine.default_device()
    model = config.model.build(0, device)
    load_weights(model, checkpoint.model, path)
    model.compute_dtype = machine.resolve_dtype(checkpoint.state.dtype, device)
    model.eval()
    data = config.data.prepare(cache_dir)
    if data.data_hash != run.manifest()["data_hash"]:
        raise RunError(f"{path} was trained on other data than the corpus now holds")
    return model, data, run


def evaluate_run(
    run_path: RunPath,
    *,
    split: Literal["validation", "test"] = "validation",
    step: Step = None,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Loss, bits per byte, perplexity, accuracy and routing over a whole split."""
    model, data, run = load_run(run_path, step, cache_dir)
    settings = run.config().train
    name: SplitName = split
    metrics = evaluate(
        model,
        data,
        name,
        batch_size=settings.micro_batch_size or settings.batch_size,
        sequence_length=settings.sequence_length,
    )
    units = {"loss": "nats/token", "bits_per_byte": "bits/byte", "router_entropy": "nats"}
    for key, value in metrics.items():
        print(f"{key:22} {value:10.4f} {units.get(key.split('/')[1], '')}".rstrip())


def generate_from_run(
    run_path: RunPath,
    *,
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(help="one or several texts to continue")],
    max_new_tokens: int = 200,
    temperature: Annotated[float, tyro.conf.arg(help="0: always the likeliest token")] = 0.8,
    top_k: Annotated[int | None, tyro.conf.arg(help="choose among this many tokens")] = None,
    top_p: Annotated[float, tyro.conf.arg(help="choose among this much probability")] = 1.0,
    seed: int = 0,
    extend: Annotated[bool, tyro.conf.arg(help="go beyond the trained length")] = False,
    step: Step = None,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Continue texts with a trained model; a single one streams to the terminal."""
    options = GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        extend=extend,
    )
    model, data, _ = load_run(run_path, step, cache_dir)
    pieces = generate_text(model, data.tokenizer, list(prompt), options)
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
    to: Annotated[Path | None, tyro.conf.arg(help="a new directory; default: RUN/hf")] = None,
    format: Literal["hf"] = "hf",  # noqa: A002 (the flag's name)
    step: Step = None,
    cache_dir: CacheDir = CACHE_DIR,
) -> None:
    """Write a finished run for Hugging Face transformers: weights, config, tokenizer."""
    status = RunDirectory(run_path).status()
    if status != "finished" and step is None:
        raise RunError(f"{run_path} is {status}, not finished; name a checkpoint with --step")
    model, data, _ = load_run(run_path, step, cache_dir)
    directory = to or run_path / "hf"
    family = export_hf(model, data.tokenizer, directory)
    print(f"{directory}: {family}, for transformers.AutoModelForCausalLM.from_pretrained")
