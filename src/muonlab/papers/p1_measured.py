"""P1's claims that no training settles (arXiv 2509.24406): bytes, decoding, polynomials, sizes.

P1 gives no shapes; these are those of the recipes ``p1_…``, the same at every scale.
"""

import math
from collections.abc import Callable

import pandas as pd
import torch

from muonlab.bench.decode import DENSE, LATENT, bench_decode
from muonlab.config import OptimizerConfig, RunConfig
from muonlab.lab.cost import state_bytes
from muonlab.lab.experiment import Context, Measurement, Scale, Verdict, VerdictName
from muonlab.lab.rules import CountRule, StatedRule
from muonlab.model.accounting import account
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.optim.polar import orthogonalise
from muonlab.optim.schedules import KELLER
from muonlab.recipes import p1_30m, p1_60m, p1_60m_dense, p1_125m, p1_200m

BATCH, LENGTH = 16, 1024  # of the activations and of the cache
HALF = 2  # bytes of a bf16 value
CELLS = ((1, 256), (1, 4096), (32, 256), (32, 4096))  # batch and context of decoding
SPECTRUM = (1e-3, 1e-2, 0.1, 1.0)  # singular values as shares of the largest
FIVE, TEN = (f"P1's coefficients, {count} steps" for count in (5, 10))
MEMORY_RULE = CountRule(
    what="the share of the bytes that a training step or decoding saves",
    claimed=0.66,
    nothing=0.0,
)
SPEED_RULE = CountRule(
    what="the speed-up, as the geometric mean of all batches and contexts,",
    claimed=3.2,
    nothing=1.0,
)
POLYNOMIALS_RULE = StatedRule(
    words="Judged by the singular values after five steps. Reproduced where all lie within 0.05 of "
    "1, from every smallest value; direction only where they lie between 0.5 and 1.5 from some; "
    "else refuted.",
    can_be=("reproduced", "direction only", "refuted"),
)
SIZES_RULE = StatedRule(
    words="The claim is that such models were trained. Here they are built and take one update, "
    "which tests no claim about training.",
    can_be=("not testable at this scale",),
)
BAND = 0.05  # how far from 1 a singular value may be in a matrix that is called orthogonal


def memory(scale: Scale) -> Measurement:
    """Bytes of MLA + MoE + Muon beside those of a dense MHSA model of equal size with AdamW."""

    def measure(context: Context) -> pd.DataFrame:
        return pd.DataFrame(
            [
                _bytes("mla + moe + muon", p1_60m(), MuonConfig()),
                _bytes("mla + moe + adamw", p1_60m(), AdamWConfig()),
                _bytes("mhsa + dense + muon", p1_60m_dense(), MuonConfig()),
                _bytes("mhsa + dense + adamw", p1_60m_dense(), AdamWConfig()),
            ]
        )

    def judge(rows: pd.DataFrame) -> list[Verdict]:
        models = {row["model"]: row for row in rows.to_dict("records")}
        ours, theirs = models["mla + moe + muon"], models["mhsa + dense + adamw"]

        def saving(*parts: str) -> float:
            return 1 - sum(ours[part] for part in parts) / sum(theirs[part] for part in parts)

        saved = {part: saving(part) for part in PARTS}
        totals = {
            "a training step": saving(*PARTS[:-1]),
            "decoding": saving("decoding_weight_bytes", "cache_bytes"),
        }
        parts = ", ".join(
            f"{part.removesuffix('_bytes').replace('_', ' ')} {_less(share)}"
            for part, share in saved.items()
        )
        whole = ", ".join(f"{name} {_less(share)}" for name, share in totals.items())
        return [
            Verdict(
                claim="P1-mla-moe-mem",
                verdict=MEMORY_RULE.decide(max(totals.values()), max(saved.values())),
                rule=MEMORY_RULE.words,
                sentence=f"MLA + MoE + Muon against dense MHSA + AdamW, as many parameters in all "
                f"({ours['parameters'] / 1e6:.1f}M), batch {BATCH} of {LENGTH} tokens in bf16: "
                f"{parts}; together, {whole}.",
                paper="68 % less, of what it does not say",
                ours=whole,
            )
        ]

    return Measurement(
        name="p1-memory",
        scale=scale,
        question="Which bytes do MLA, MoE and Muon save, and how many of all?",
        claims=("P1-mla-moe-mem",),
        measure=measure,
        judge=judge,
        notes=(
            "Training holds weights in fp32, decoding matrices in bf16, those of MLA absorbed. "
            "Weights, state and cache are those of the tensors; activations are counted by the "
            "model's accounting, which tests compare with measured ones.",
        ),
    )


PARTS = (
    "weight_bytes",
    "gradient_bytes",
    "optimizer_state_bytes",
    "activation_bytes",
    "cache_bytes",
)


def _bytes(name: str, config: RunConfig, optimizer_config: OptimizerConfig) -> dict:
    model = config.model.build(0)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    optimizer_state = state_bytes(model, optimizer_config)
    decoder = model.for_inference(torch.bfloat16)
    held = (*decoder.parameters(), *decoder.buffers())
    counted = account(config.model, batch=BATCH, length=LENGTH, bytes_per_value=HALF)
    return {
        "model": name,
        "parameters": counted.parameters,
        "active_parameters": counted.active_parameters,
        "weight_bytes": weights,
        "gradient_bytes": counted.gradient_bytes,
        "optimizer_state_bytes": optimizer_state,
        "activation_bytes": counted.activation_bytes,
        "decoding_weight_bytes": sum(tensor.nbytes for tensor in held),
        "cache_bytes": decoder.new_state(BATCH, LENGTH).num_bytes(),
    }


def _less(share: float) -> str:
    return f"{abs(share) * 100:.0f} % {'less' if share >= 0 else 'more'}"


def inference(scale: Scale) -> Measurement:
    """Tokens a second of MLA + MoE against a dense MHSA model of as many parameters."""

    def measure(context: Context) -> pd.DataFrame:
        rows = []
        for batch, length in CELLS:
            report = bench_decode("60m", batch=batch, context=length, dtype=torch.float32)
            row = {"batch": batch, "context": length, "speedup": report.speedup}
            for name in (LATENT, DENSE):
                row[f"{name} step_seconds"] = report.timings[name].median
            rows.append(row)
        return pd.DataFrame(rows)

    def judge(rows: pd.DataFrame) -> list[Verdict]:
        speedups = [float(value) for value in rows["speedup"]]
        cells = ", ".join(
            f"{speedup:.2f}× at batch {batch} and context {context:,}"
            for batch, context, speedup in zip(
                rows["batch"], rows["context"], speedups, strict=True
            )
        )
        middle = math.exp(sum(map(math.log, speedups)) / len(speedups))
        return [
            Verdict(
                claim="P1-mla-moe-speed",
                verdict=SPEED_RULE.decide(middle, max(speedups)),
                rule=SPEED_RULE.words,
                sentence=f"Decoding with MLA and top-2 of 8 experts against dense MHSA of as many "
                f"parameters, 60M, fp32: {cells}. Muon changes nothing here.",
                paper="3.2× faster inference, on what it does not say",
                ours=f"{min(speedups):.2f}× to {max(speedups):.2f}×",
            )
        ]

    return Measurement(
        name="p1-inference",
        scale=scale,
        question="How much faster do MLA and MoE decode than a dense model of equal size?",
        claims=("P1-mla-moe-speed",),
        measure=measure,
        judge=judge,
        notes=("Random weights, full caches, both models in turns in one process.",),
    )


def polynomials(scale: Scale) -> Measurement:
    """What Newton–Schulz with P1's coefficients, and later schedules, make of singular values."""
    schedules = {
        FIVE: (KELLER,) * 5,
        TEN: (KELLER,) * 10,
        "you5": "you5",
        "polar_express": "polar_express",
        "svd": "svd",
    }

    def measure(context: Context) -> pd.DataFrame:
        generator = torch.Generator().manual_seed(0)
        left, right = (
            torch.linalg.qr(torch.randn(256, 256, generator=generator, dtype=torch.float64))[0]
            for _ in range(2)
        )
        rows = []
        for smallest in SPECTRUM:
            spectrum = torch.logspace(math.log10(smallest), 0, 256, dtype=torch.float64)
            matrix = left * spectrum @ right.T
            for name, schedule in schedules.items():
                result = orthogonalise(matrix, schedule)
                found = torch.linalg.svdvals(result)
                rows.append(
                    {
                        "schedule": name,
                        "smallest": smallest,
                        "lowest": found.min().item(),
                        "highest": found.max().item(),
                        "rms_distance": (found - 1).square().mean().sqrt().item(),
                    }
                )
        return pd.DataFrame(rows)

    def judge(rows: pd.DataFrame) -> list[Verdict]:
        found = {(row["schedule"], row["smallest"]): row for row in rows.to_dict("records")}

        def reach(name: str, smallest: float) -> str:
            row = found[name, smallest]
            return f"{row['lowest']:.2f} to {row['highest']:.2f} from {smallest:g}"

        bands = ", ".join(reach(FIVE, smallest) for smallest in SPECTRUM)
        others = "; ".join(f"{name} {reach(name, 0.01)}" for name in schedules if name != FIVE)
        ours = [found[FIVE, smallest] for smallest in SPECTRUM]
        verdict: VerdictName = "refuted"
        if all(row["lowest"] >= 1 - BAND and row["highest"] <= 1 + BAND for row in ours):
            verdict = "reproduced"
        elif any(row["lowest"] >= 0.5 and row["highest"] <= 1.5 for row in ours):
            verdict = "direction only"
        centre = found[FIVE, 0.1]
        distance = {
            name: sum(found[name, smallest]["rms_distance"] for smallest in SPECTRUM)
            / len(SPECTRUM)
            for name in (FIVE, TEN)
        }
        return [
            Verdict(
                claim="P1-ns",
                verdict=verdict,
                rule=POLYNOMIALS_RULE.words,
                sentence="Singular values after the iteration, by the smallest one before it as a "
                f"share of the largest (256 × 256, fp64): {FIVE}, {bands}; {others}. Mean "
                f"distance from 1: {distance[FIVE]:.2f} after five steps, "
                f"{distance[TEN]:.2f} after ten.",
                paper="orthogonalises",
                ours=f"{centre['lowest']:.2f} to {centre['highest']:.2f} from 0.1",
            )
        ]

    return Measurement(
        name="p1-polynomials",
        scale=scale,
        question="How near to orthogonal does Newton–Schulz with P1's coefficients come?",
        claims=("P1-ns",),
        measure=measure,
        judge=judge,
    )


def sizes(scale: Scale) -> Measurement:
    """P1's range of models, built and trained for one update."""

    def measure(context: Context) -> pd.DataFrame:
        rows = []
        for make in (p1_30m, p1_60m, p1_125m, p1_200m):
            config = make()
            model = config.model.build(0)
            model.compute_dtype = torch.bfloat16
            optimizer = config.optimizer.build(model)
            tokens = torch.arange(129).unsqueeze(0)
            output = model(tokens[:, :-1], tokens[:, 1:])
            output.loss.backward()
            optimizer.step()
            finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
            counted = account(config.model)
            rows.append(
                {
                    "recipe": config.name,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "active_parameters": counted.active_parameters,
                    "loss": output.loss.item(),
                    "finite": finite,
                }
            )
        return pd.DataFrame(rows)

    def judge(rows: pd.DataFrame) -> list[Verdict]:
        built = ", ".join(f"{count / 1e6:.1f}M" for count in rows["parameters"])
        steps = "all take" if all(rows["finite"]) else "not all take"
        return [
            Verdict(
                claim="P1-scale",
                verdict="not testable at this scale",
                rule=SIZES_RULE.words,
                sentence=f"The recipes build models of {built} parameters, and {steps} an update "
                "with finite weights; training them needs a GPU: muonlab study run p1-compute "
                "--scale paper.",
                paper="30M to 200M parameters",
                ours=built,
            )
        ]

    return Measurement(
        name="p1-sizes",
        scale=scale,
        question="Do models of 30M to 200M parameters build and train?",
        claims=("P1-scale",),
        measure=measure,
        judge=judge,
    )


MEASUREMENTS: dict[str, Callable[[Scale], Measurement]] = {
    "p1-memory": memory,
    "p1-inference": inference,
    "p1-polynomials": polynomials,
    "p1-sizes": sizes,
}
