"""Time decoding: MLA + MoE against a dense twin and against transformers on the same weights.

python -m benchmarks.decode 60m --batches 1 32 --contexts 256 4096
With --csv FILE every result is added to the file, and what it has already is not measured again.
"""

import argparse
import csv
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from muonlab.allocator import keep_freed_memory
from muonlab.bench.decode import DENSE, LATENT, LATENT_TORCH, SIZES, DecodeReport, bench_decode
from muonlab.bench.interleave import paired_ratio
from muonlab.data import TrainBPE
from muonlab.export import export_hf
from muonlab.machine import describe, resolve_dtype
from muonlab.model import LanguageModel, native


def transformers_generate(
    model: LanguageModel, batch: int, context: int, num_tokens: int
) -> Callable[[], object]:
    """Greedy `generate` of the exported weights over a full cache.

    The cache is of the same kind as ours: DeepseekV3's holds latents and rotary keys.
    """
    with tempfile.TemporaryDirectory() as directory:
        export_hf(model, TrainBPE(vocab_size=300).build(["text"]), Path(directory) / "model")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(Path(directory) / "model")
    config = theirs.config
    cache = transformers.DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        shapes = (config.kv_lora_rank, config.qk_rope_head_dim)
        tensors = [torch.randn(batch, 1, context, width).to(theirs.dtype) for width in shapes]
        cache.update(tensors[0], tensors[1], layer)
    tokens = torch.randint(model.config.vocab_size, (batch, context + 1))

    def call() -> None:
        theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        cache.crop(context - cache.get_seq_length())  # as many tokens off the end

    return call


GENERATE = "transformers.generate"


def row_of(report: DecodeReport) -> dict[str, str | float]:
    """One line of the table; ratios are medians over paired rounds."""

    def slower(name: str) -> str:
        if name not in report.timings:
            return ""
        return f"{paired_ratio(report.timings[name], report.timings[LATENT]):.3f}"

    return {
        "size": report.size,
        "dtype": report.dtype,
        "batch": report.batch,
        "context": report.context,
        "native": native.enabled(),
        "tokens_per_second": f"{report.tokens_per_second(LATENT):.1f}",
        "dense_tokens_per_second": f"{report.tokens_per_second(DENSE):.1f}",
        "faster_than_dense": f"{report.speedup:.3f}",
        "floor_ratio": f"{report.floor_ratio:.2f}",
        "floor_share": f"{report.floor_share(LATENT):.3f}",
        "dense_floor_share": f"{report.floor_share(DENSE):.3f}",
        "faster_than_torch_kernels": slower(LATENT_TORCH),
        "faster_than_generate": slower(GENERATE),
        "state_saving": f"{report.state_saving:.4f}",
        "bandwidth_gb_per_second": f"{report.bandwidth / 1e9:.1f}",
        "spread": f"{report.timings[LATENT].spread:.3f}",
        "tokens_per_call": report.tokens,
        "rounds": len(report.timings[LATENT].seconds),
    }


def add_to(table: Path, report: DecodeReport) -> None:
    row = row_of(report)
    is_new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def measured(table: Path) -> set[tuple[str, ...]]:
    """The (size, dtype, batch, context) that a table has."""
    if not table.exists():
        return set()
    with table.open(newline="") as file:
        return {(r["size"], r["dtype"], r["batch"], r["context"]) for r in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=4, help="of every row, a call")
    parser.add_argument("--transformers", action="store_true", help=f"also {GENERATE}")
    parser.add_argument("--native", action="store_true", help="use the native kernels")
    parser.add_argument("--csv", type=Path, help="the table to add to")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.native:
        native.enable()
    print(describe())
    peers = {GENERATE: transformers_generate} if arguments.transformers else {}
    done = measured(arguments.csv) if arguments.csv else set()
    for size, batch, context, name in itertools.product(
        arguments.sizes, arguments.batches, arguments.contexts, arguments.dtypes
    ):
        dtype = resolve_dtype(name, torch.device("cpu"))
        if (size, str(dtype).removeprefix("torch."), str(batch), str(context)) in done:
            continue
        report = bench_decode(
            size,
            batch=batch,
            context=context,
            dtype=dtype,
            tokens=arguments.tokens,
            rounds=arguments.rounds,
            peers=peers,
        )
        print(report.text(), flush=True)
        if arguments.csv:
            add_to(arguments.csv, report)


if __name__ == "__main__":
    main()
