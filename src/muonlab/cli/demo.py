"""`muonlab demo`: two models, Muon against AdamW, from text to a page with the answer."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from muonlab.cli.configs import with_data
from muonlab.cli.data import print_corpus
from muonlab.cli.options import RUNS_DIR, CacheDir, Data, RunsDir
from muonlab.cli.report import print_table

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.data import TokenData

PROMPT_TOKENS = 12
INTRODUCTION = (
    "Two Mixture-of-Experts language models of the same shape, trained on the same batches in the "
    "same order from the same initial weights with the same schedule. One has Muon for its hidden "
    "matrices and AdamW for the rest, the other AdamW for everything. Each has two "
    "learning rates, one for the hidden matrices and one for the rest, the best of 9 to 13 pairs "
    "tried with another seed on the validation split (results/p1-compute.small, which compares "
    "the two with five seeds). One pair of runs is an illustration, not a measurement: "
    "it has no confidence interval."
)


def demo(
    *,
    data: Data = (),
    steps: Annotated[
        int, tyro.conf.arg(help="training steps for each model, of 4,096 tokens each")
    ] = 300,
    runs_dir: RunsDir = RUNS_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Train two small MoE models, one with Muon and one with AdamW, and show which is better.

    After an interruption, give the same command again: it goes on where it stopped. Once both
    models are trained, it only writes the report again.
    """
    from muonlab.manifest import made_by_other_code
    from muonlab.recipes import small, small_adamw
    from muonlab.report import write_comparison
    from muonlab.runs import RunDirectory
    from muonlab.train import train

    console = Console()
    chosen = with_data(small(), data, cache_dir).data
    configs = [replace(_short(make(), steps), data=chosen) for make in (small, small_adamw)]
    corpus = configs[0].data.prepare(cache_dir)
    print_corpus(corpus)
    runs = [RunDirectory.place(runs_dir, config) for config in configs]
    finished = [run for run in runs if run.exists() and run.status() == "finished"]
    if other_code := made_by_other_code(run.manifest() for run in finished):
        console.print(f"note: {other_code}", markup=False, highlight=False, soft_wrap=True)
    for config, run in zip(configs, runs, strict=True):
        if run not in finished:
            train(config, run, corpus)
    directories = [run.path for run in runs]
    samples = {
        config.label: _samples(path, corpus, cache_dir)
        for config, path in zip(configs, directories, strict=True)
    }
    page = write_comparison(
        directories,
        runs_dir / "demo" / "report",
        title="Muon against AdamW",
        introduction=INTRODUCTION,
        samples=samples,
    )
    print_table(console, directories)
    for variant, texts in samples.items():
        console.rule(f"written by the {variant} model")
        for prompt, continuation in texts:
            console.print(prompt, style="bold", end="", markup=False)
            console.print(continuation, markup=False, highlight=False)
    console.rule()
    console.print(f"The page with the curves: {page}", markup=False, soft_wrap=True)


def _short(config: "RunConfig", steps: int) -> "RunConfig":
    from muonlab.config import override

    return override(config, ["name=demo", f"train.steps={steps}"])


def _samples(path: Path, corpus: "TokenData", cache_dir: Path | None) -> list[tuple[str, str]]:
    """Continuations of the openings of two validation documents."""
    from muonlab.generate import GenerateOptions, generate_text
    from muonlab.loading import load

    model = load(path, cache_dir=cache_dir).model
    documents = range(min(2, corpus.num_documents("validation")))
    openings = [corpus.document("validation", i)[:PROMPT_TOKENS].tolist() for i in documents]
    prompts = [corpus.tokenizer.decode(ids) for ids in openings]
    options = GenerateOptions(max_new_tokens=80, temperature=0.7, top_p=0.95)
    texts = [""] * len(prompts)
    for pieces in generate_text(model, corpus.tokenizer, prompts, options):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    return list(zip(prompts, texts, strict=True))
