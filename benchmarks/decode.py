"""Time decoding: MLA + MoE against a dense twin and against transformers on the same weights.

python -m benchmarks.decode 60m --batches 1 32 --contexts 256 4096
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from muonlab.bench.decode import SIZES, TOKENS, bench_decode
from muonlab.data import TrainBPE
from muonlab.export import export_hf
from muonlab.machine import describe, keep_freed_memory, resolve_dtype
from muonlab.model import LanguageModel


def transformers_generate(model: LanguageModel, batch: int, context: int) -> Callable[[], object]:
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
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        cache.crop(context - cache.get_seq_length())  # as many tokens off the end

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--transformers", action="store_true", help="also transformers.generate")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(describe())
    peers = {"transformers.generate": transformers_generate} if arguments.transformers else {}
    for size in arguments.sizes:
        for batch in arguments.batches:
            for context in arguments.contexts:
                for dtype in arguments.dtypes:
                    report = bench_decode(
                        size,
                        batch=batch,
                        context=context,
                        dtype=resolve_dtype(dtype, torch.device("cpu")),
                        rounds=arguments.rounds,
                        peers=peers,
                    )
                    print(report.text(), flush=True)


if __name__ == "__main__":
    main()
