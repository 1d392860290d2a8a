"""What each known type of module keeps in its parameters: a role, a reason, a layout.

Types decide, and what a module is part of; never the name of a whole parameter. Classes of
transformers, which this package does not import, are known by the endings of their names.
"""

import re
from typing import Any

from torch import Tensor, nn

Place = tuple[str, str, dict[str, Any] | None]  # role, reason, layout

_ROUTER = re.compile(r"Router$|Mo[eE]\w*Gate$")  # MixtralTopKRouter, HunYuanMoEV1Gate
_RNN_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Rules:
    """The rules, with what must be known of the whole ``model`` to apply them."""

    def __init__(self, model: nn.Module) -> None:
        self._head = _untied_head(model)
        self._in_routers: set[nn.Module] = set()
        self._fused_qkv: set[nn.Module] = set()
        self._owners: dict[nn.Module, tuple[nn.Module, str]] = {}
        for module in model.modules():
            if _ROUTER.search(type(module).__name__):
                self._in_routers.update(module.modules())
            fused = getattr(module, "c_attn", None)  # of GPT2Attention and its relatives
            if isinstance(fused, nn.Module):
                self._fused_qkv.add(fused)
            parametrized = getattr(module, "parametrizations", None)
            if isinstance(parametrized, nn.ModuleDict):
                for attribute, holder in parametrized.items():
                    self._owners[holder] = (module, attribute)

    def place(self, module: nn.Module, attribute: str, parameter: Tensor) -> Place:
        """Of a ``parameter`` with at least two dimensions, ``module.attribute``."""
        if module in self._owners:  # weight_norm, orthogonal: the part stands for the whole weight
            owner, owned = self._owners[module]
            role, reason, layout = self.place(owner, owned, parameter)
            return role, f"{reason}, parametrized", layout
        kind = type(module).__name__
        if attribute.endswith("bias"):
            return "vector", "vector: a bias", None
        if module in self._in_routers:
            return "router", f"router: {kind}", None
        if module is self._head:
            return "head", "head: the last Linear, as wide as the vocabulary", None
        return (
            self._of_torch(module, attribute, parameter, kind)
            or self._of_transformers(module, attribute, parameter, kind)
            or ("unknown", f"unknown: no rule, no muon_layout(): {kind}.{attribute}", None)
        )

    def _of_torch(
        self, module: nn.Module, attribute: str, parameter: Tensor, kind: str
    ) -> Place | None:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return "embedding", f"embedding: {kind}", None
        if isinstance(module, nn.Linear):
            return "hidden", f"hidden: {kind}", None
        if isinstance(module, nn.MultiheadAttention):
            if attribute == "in_proj_weight":
                return (
                    "hidden",
                    "hidden: fused QKV of MultiheadAttention",
                    _equal_rows(parameter.shape[0], 3),
                )
            if attribute in ("bias_k", "bias_v"):
                return "vector", "vector: a bias", None
            return "hidden", f"hidden: {kind}", None
        if isinstance(module, nn.modules.conv._ConvNd):
            layout: dict[str, Any] = {"flatten": True}
            if module.groups > 1 and not module.transposed:
                layout["heads"] = module.groups  # each group of channels has its own matrix
            return "hidden", f"hidden: {kind}, flattened", layout
        if isinstance(module, nn.RNNBase):
            gates = _RNN_GATES.get(module.mode.split("_")[0], 1)
            return "hidden", f"hidden: {kind}", _equal_rows(parameter.shape[0], gates)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return "vector", f"vector: {kind}", None
        return None

    def _of_transformers(
        self, module: nn.Module, attribute: str, parameter: Tensor, kind: str
    ) -> Place | None:
        if kind == "Conv1D" and attribute == "weight":  # GPT-2's Linear, stored [in, out]
            layout: dict[str, Any] = {"transpose": True}
            parts = 1
            if module in self._fused_qkv:
                parts = parameter.shape[1] // parameter.shape[0]
                layout |= _equal_rows(parameter.shape[1], parts) or {}
            return "hidden", f"hidden: {kind}{', fused QKV' if parts > 1 else ''}", layout
        if kind.endswith("Experts") and parameter.ndim == 3:
            return _of_experts(module, attribute, kind)
        if attribute == "A_log":  # of state-space mixers: rates of decay, one a channel and state
            return "vector", f"vector: decay rates of {kind}", None
        return None


def _of_experts(module: nn.Module, attribute: str, kind: str) -> Place | None:
    """Stacks ``gate_up_proj`` [E, 2·inner, dim], ``down_proj`` [E, dim, inner]; or transposed."""
    fused, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if not isinstance(fused, Tensor) or not isinstance(down, Tensor) or fused.ndim != 3:
        return None
    if fused.shape[1] == 2 * down.shape[2] and fused.shape[2] == down.shape[1]:
        layout = {}
    elif fused.shape[2] == 2 * down.shape[1] and fused.shape[1] == down.shape[2]:
        layout = {"transpose": True}
    else:
        return None
    reason = f"hidden: {kind}"
    if attribute == "gate_up_proj":
        rows = fused.shape[2 if layout else 1]
        if getattr(module, "is_concatenated", True):
            layout |= _equal_rows(rows, 2) or {}
        else:
            reason += ", gate and up interleaved: not split"
    elif attribute != "down_proj":
        return None
    return "hidden", reason, layout or None


def _equal_rows(rows: int, count: int) -> dict[str, Any] | None:
    return {"row_blocks": (rows // count,) * count} if count > 1 else None


def _untied_head(model: nn.Module) -> nn.Module | None:
    """transformers' own answer, or the last Linear if its width is a vocabulary's size."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    if getter is not None:
        return getter()
    sizes = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linears and linears[-1].out_features in sizes:
        return linears[-1]
    return None
