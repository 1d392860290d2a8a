"""Our tensors and theirs: one table that splits fused and stacked weights, and joins them again.

Shapes: E experts, F expert hidden width, D model width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muonlab.export.families import DEEPSEEK, Family
from muonlab.model import ModelConfig
from muonlab.model.attention import MHSAConfig, MLAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig


@dataclass(frozen=True, slots=True)
class Entry:
    """One of our tensors and the tensors of theirs that hold its rows, top to bottom.

    ``rows`` are the heights of the parts. A stacked tensor (E, …) has a list of parts an expert.
    ``heads``: ours holds all heads' keys, then all values; theirs each head's keys and values.
    """

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...] = ()
    stacked: bool = False
    heads: int = 0

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if self.heads:
            tensor = tensor.unflatten(0, (2, self.heads, -1)).transpose(0, 1).flatten(0, 2)
        matrices = tensor.unbind(0) if self.stacked else (tensor,)
        for names, matrix in zip(self.theirs, matrices, strict=True):
            parts = matrix.split(self.rows) if self.rows else (matrix,)
            yield from zip(names, (part.contiguous() for part in parts), strict=True)

    def join(self, theirs: Mapping[str, Tensor]) -> Tensor:
        matrices = [torch.cat([theirs[name] for name in names]) for names in self.theirs]
        tensor = torch.stack(matrices) if self.stacked else matrices[0]
        if self.heads:
            tensor = tensor.unflatten(0, (self.heads, 2, -1)).transpose(0, 1).flatten(0, 2)
        return tensor


def entries(config: ModelConfig, family: Family) -> Iterator[Entry]:
    """Every tensor that leaves, in order of use; the tied head has none of its own."""
    yield _same("embedding.weight", "model.embed_tokens.weight")
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        yield _same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
        yield from _attention(config, f"{ours}.attention", f"{theirs}.self_attn")
        yield _same(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        yield from _feed_forward(config, family, layer, f"{ours}.ffn", theirs)
    yield _same("norm.weight", "model.norm.weight")
    if not config.tie_head:
        yield _same("head.weight", "lm_head.weight")


def absent(config: ModelConfig, family: Family) -> Iterator[tuple[str, Tensor]]:
    """What our state has and theirs does not: selection biases, zero in the models that leave."""
    if isinstance(config.ffn, MoEConfig) and family is not DEEPSEEK:
        for layer in range(config.num_layers):
            if config.ffn.is_moe_layer(layer):
                yield f"blocks.{layer}.ffn.selection_bias", torch.zeros(config.ffn.num_experts)


def _same(ours: str, theirs: str) -> Entry:
    return Entry(ours, ((theirs,),))


def _attention(config: ModelConfig, ours: str, theirs: str) -> Iterator[Entry]:
    attention = config.attention
    if isinstance(attention, MLAConfig):
        yield from _latent_attention(attention, ours, theirs)
        return
    assert isinstance(attention, MHSAConfig)  # family_of refuses the others
    width = attention.width_of_head(config.dim)
    kv_rows = width * attention.kv_heads()
    parts = tuple(f"{theirs}.{part}_proj.weight" for part in "qkv")
    rows = (width * attention.num_heads, kv_rows, kv_rows)
    yield Entry(f"{ours}.qkv.weight", (parts,), rows)
    yield _same(f"{ours}.out.weight", f"{theirs}.o_proj.weight")
    if attention.qk_norm:
        yield _same(f"{ours}.query_norm.weight", f"{theirs}.q_norm.weight")
        yield _same(f"{ours}.key_norm.weight", f"{theirs}.k_norm.weight")


def _latent_attention(attention: MLAConfig, ours: str, theirs: str) -> Iterator[Entry]:
    if attention.query_rank is None:
        yield _same(f"{ours}.query.weight", f"{theirs}.q_proj.weight")
    else:
        yield _same(f"{ours}.query.0.weight", f"{theirs}.q_a_proj.weight")
        yield _same(f"{ours}.query.1.weight", f"{theirs}.q_a_layernorm.weight")
        yield _same(f"{ours}.query.2.weight", f"{theirs}.q_b_proj.weight")
    yield _same(f"{ours}.kv_down.weight", f"{theirs}.kv_a_proj_with_mqa.weight")
    yield _same(f"{ours}.latent_norm.weight", f"{theirs}.kv_a_layernorm.weight")
    up = ((f"{theirs}.kv_b_proj.weight",),)
    yield Entry(f"{ours}.kv_up.weight", up, heads=attention.num_heads)
    yield _same(f"{ours}.out.weight", f"{theirs}.o_proj.weight")


def _feed_forward(
    config: ModelConfig, family: Family, layer: int, ours: str, theirs: str
) -> Iterator[Entry]:
    ffn = config.ffn
    if isinstance(ffn, DenseConfig):
        yield from _dense(ours, f"{theirs}.mlp", ffn.hidden_dim, ffn.gated)
    elif not ffn.is_moe_layer(layer):
        yield from _dense(ours, f"{theirs}.mlp", ffn.dense_hidden_dim(), ffn.gated)
    else:
        module = f"{theirs}.{family.moe_module}"
        gate, up, down = (
            tuple(f"{module}.experts.{expert}.{name}.weight" for expert in range(ffn.num_experts))
            for name in family.expert_matrices
        )
        expand = tuple(zip(gate, up, strict=True))
        yield _same(f"{ours}.router.weight", f"{module}.gate.weight")
        yield Entry(f"{ours}.expand", expand, (ffn.hidden_dim, ffn.hidden_dim), stacked=True)
        yield Entry(f"{ours}.out", tuple((name,) for name in down), stacked=True)
        if family is DEEPSEEK:
            yield _same(f"{ours}.selection_bias", f"{module}.gate.e_score_correction_bias")
            width = ffn.num_shared_experts * ffn.hidden_dim
            yield from _dense(f"{ours}.shared", f"{module}.shared_experts", width, ffn.gated)


def _dense(ours: str, theirs: str, hidden_dim: int, gated: bool) -> Iterator[Entry]:
    if gated:
        parts = (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight")
        yield Entry(f"{ours}.expand.weight", (parts,), (hidden_dim, hidden_dim))
    else:
        yield _same(f"{ours}.expand.weight", f"{theirs}.up_proj.weight")
    yield _same(f"{ours}.out.weight", f"{theirs}.down_proj.weight")
