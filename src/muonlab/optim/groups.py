"""Which parameter goes to which algorithm, and why.

Modules decide for their own parameters, by type and by identity, never by the parameter's name:

1. a module with ``muon_layout()`` says it itself: ``{"weight": {"role": "hidden", …}}``;
2. known module types (torch's, and transformers' by class name) have a fixed answer;
3. the rest goes to AdamW, or is an error with ``strict=True``.

A parameter that an embedding shares with another module (a tied head) is an embedding.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from muonlab.optim.gradients import refuse_sharded
from muonlab.optim.layout import MatrixSpec

ROLES = ("hidden", "router", "latents", "embedding", "head", "vector", "unknown")
_HOOK_KEYS = {"role", "row_blocks", "heads"}
# transformers' classes that hold bare parameters: attribute -> (role, number of fused row blocks)
_TRANSFORMERS: dict[str, dict[str, tuple[str, int]]] = {
    **{
        name: {"gate_up_proj": ("hidden", 2), "down_proj": ("hidden", 1)}
        for name in ("MixtralExperts", "DeepseekV3Experts", "Qwen3MoeExperts", "OlmoeExperts")
    },
    **{
        name: {"weight": ("router", 1)}
        for name in (
            "MixtralTopKRouter",
            "DeepseekV3TopkRouter",
            "Qwen3MoeTopKRouter",
            "OlmoeTopKRouter",
        )
    },
}
_RNN_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where one parameter belongs: its role, its layout, and the reason in words."""

    name: str
    parameter: Tensor
    role: str
    reason: str
    layout: dict[str, Any] | None = None


def build_groups(
    model: nn.Module,
    *,
    muon_roles: Collection[str] = ("hidden",),
    scale: str = "match_rms_adamw",
    decay_vectors: bool = False,
    split_fused: bool = True,
    per_head: bool = False,
    roles: Mapping[str, str] | None = None,
    strict: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for `Muon`: hidden matrices to Muon, everything else to AdamW.

    The default ``scale`` gives Muon's updates the RMS of AdamW's, so that one learning rate and
    weight decay serve both. Frozen parameters are left out; each other one is in exactly one group.

    Args:
        muon_roles: the roles under Muon; P2 adds ``"router"`` and ``"latents"``.
        decay_vectors: whether AdamW decays biases, norms and other vectors too.
        split_fused: orthogonalise the parts of a fused matrix (QKV, gate and up) separately.
        per_head: orthogonalise each head of a projection that declares its heads by itself.
        roles: the role of a parameter by its full name, over what its module says.
        strict: raise ValueError on a parameter that no rule places.
    """
    groups: dict[str, dict[str, Any]] = {}
    for place in place_parameters(model, roles=roles):
        if place.role == "unknown" and strict:
            raise ValueError(f"{place.name} {tuple(place.parameter.shape)}: {place.reason}")
        muon = place.role in muon_roles
        vector = place.role == "vector" and not decay_vectors
        options: dict[str, Any] = {"algorithm": "muon" if muon else "adamw"}
        if muon:
            layout = _effective_layout(place.layout, split_fused, per_head)
            options |= {"scale": scale, "layout": layout}
        elif vector:
            options["weight_decay"] = 0.0
        group = groups.setdefault(repr(options), {"params": [], "param_names": []} | options)
        group["params"].append(place.parameter)
        group["param_names"].append(place.name)
    return sorted(
        groups.values(), key=lambda group: (group["algorithm"] != "muon", "weight_decay" in group)
    )


def place_parameters(
    model: nn.Module, *, roles: Mapping[str, str] | None = None
) -> list[Placement]:
    """One `Placement` for each trainable parameter, in the model's order."""
    for name, parameter in model.named_parameters():
        refuse_sharded(name, parameter)
    head = _untied_head(model)
    declared = _declarations(model)
    found: dict[Tensor, Placement] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{attribute}" if module_name else attribute
            if parameter in declared:
                place = declared[parameter]
            elif parameter.ndim < 2:
                place = ("vector", f"{parameter.ndim}-D", None)
            else:
                place = _by_type(module, attribute, parameter, head)
            earlier = found.get(parameter)
            if earlier is None:
                found[parameter] = _named(place, name, parameter)
            elif "embedding" in (place[0], earlier.role):
                reason = "embedding, shared with another module (tied)"
                found[parameter] = _named(("embedding", reason, None), earlier.name, parameter)
    overrides = dict(roles or {})
    placements = []
    for place in found.values():
        role = overrides.pop(place.name, None)
        if role is not None:
            if role not in ROLES:
                raise ValueError(f"roles[{place.name!r}] {role!r}: legal are {', '.join(ROLES)}")
            reason = f"{role}: declared by the caller"
            place = _named((role, reason, place.layout), place.name, place.parameter)
        elif place.role in ("hidden", "router", "latents") and not _is_matrix(place):
            vector = ("vector", f"vector: {place.role}, but with a single row or column", None)
            place = _named(vector, place.name, place.parameter)
        if place.parameter.requires_grad:
            placements.append(place)
    if overrides:
        raise ValueError(
            f"roles names {sorted(overrides)[0]!r}, which is no parameter of the model"
        )
    return placements


def describe_groups(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a parameter: name, shape, parameters, algorithm, matrices, reason."""
    reasons = {place.parameter: place.reason for place in place_parameters(model)}
    rows = []
    for group in groups:
        params = group["params"]
        names = group.get("param_names") or [str(index) for index in range(len(params))]
        for name, parameter in zip(names, params, strict=True):
            matrices = ""
            if group["algorithm"] == "muon":
                blocks = MatrixSpec.from_layout(parameter.shape, group["layout"]).block_shapes
                matrices = " + ".join(
                    f"{m}×{n}" if batch == 1 else f"{batch} of {m}×{n}" for batch, m, n in blocks
                )
            rows.append(
                {
                    "name": name,
                    "shape": tuple(parameter.shape),
                    "parameters": parameter.numel(),
                    "algorithm": group["algorithm"],
                    "matrices": matrices,
                    "reason": reasons.get(parameter, "not a parameter of this model"),
                }
            )
    return rows


def format_groups(rows: list[dict[str, Any]]) -> str:
    """`describe_groups` as a plain-text table with totals."""
    columns = ("name", "shape", "algorithm", "matrices", "reason")
    cells = [columns, *[tuple(str(row[column]) for column in columns) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    for algorithm in ("muon", "adamw"):
        chosen = [row["parameters"] for row in rows if row["algorithm"] == algorithm]
        lines.append(f"{algorithm}: {sum(chosen):,} parameters in {len(chosen)} tensors")
    return "\n".join(lines)


_Place = tuple[str, str, dict[str, Any] | None]  # role, reason, layout


def _declarations(model: nn.Module) -> dict[Tensor, _Place]:
    """What the modules' own ``muon_layout`` hooks say of their parameters and their children's."""
    declared: dict[Tensor, _Place] = {}
    for module in model.modules():
        hook: Any = getattr(module, "muon_layout", None)
        if hook is not None:
            declared |= _declared(module, hook())
    return declared


def _declared(module: nn.Module, layout: dict[str, dict[str, Any]]) -> dict[Tensor, _Place]:
    kind = type(module).__name__
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places: dict[Tensor, _Place] = {}
    for attribute, entry in layout.items():
        if attribute not in parameters:
            raise ValueError(
                f"{kind}.muon_layout names {attribute!r}, which it has no parameter of"
            )
        unknown = set(entry) - _HOOK_KEYS
        if unknown:
            raise ValueError(
                f"{kind}.muon_layout[{attribute!r}] has {sorted(unknown)[0]!r}: legal are "
                f"{', '.join(sorted(_HOOK_KEYS))}"
            )
        role = entry.get("role")
        if role not in ROLES:
            raise ValueError(
                f"{kind}.muon_layout[{attribute!r}] role {role!r}: legal are {', '.join(ROLES)}"
            )
        parts = {key: entry[key] for key in ("row_blocks", "heads") if entry.get(key)}
        places[parameters[attribute]] = (role, f"{role}: declared by {kind}", parts or None)
    return places


def _by_type(
    module: nn.Module, attribute: str, parameter: Tensor, head: nn.Module | None
) -> _Place:
    kind = type(module).__name__
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding", f"embedding: {kind}", None
    if module is head:
        return "head", "head: the last Linear, as wide as the vocabulary", None
    if isinstance(module, nn.Linear):
        return "hidden", f"hidden: {kind}", None
    if isinstance(module, nn.MultiheadAttention):
        if attribute == "in_proj_weight":
            rows = parameter.shape[0] // 3
            return "hidden", "hidden: fused QKV of MultiheadAttention", _rows(rows, 3)
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
        return "hidden", f"hidden: {kind}", _rows(parameter.shape[0] // gates, gates)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return "vector", f"vector: {kind}", None
    if attribute in _TRANSFORMERS.get(kind, {}):
        role, blocks = _TRANSFORMERS[kind][attribute]
        return role, f"{role}: {kind}", _rows(parameter.shape[-2] // blocks, blocks)
    reason = f"unknown: {kind} has no rule and no muon_layout() for {attribute!r}"
    return "unknown", reason, None


def _rows(rows: int, count: int) -> dict[str, Any] | None:
    return {"row_blocks": (rows,) * count} if count > 1 else None


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


def _named(place: _Place, name: str, parameter: Tensor) -> Placement:
    role, reason, layout = place
    return Placement(name=name, parameter=parameter, role=role, reason=reason, layout=layout)


def _effective_layout(
    layout: dict[str, Any] | None, split_fused: bool, per_head: bool
) -> dict[str, Any] | None:
    kept = dict(layout or {})
    if not split_fused:
        kept.pop("row_blocks", None)
    if not per_head and not kept.get("flatten"):
        kept.pop("heads", None)
    return kept or None


def _is_matrix(place: Placement) -> bool:
    """Whether every logical matrix has at least two rows and two columns."""
    spec = MatrixSpec.from_layout(place.parameter.shape, place.layout)
    return all(m > 1 and n > 1 for _, m, n in spec.block_shapes)
