"""Which parameter goes to which algorithm, and why.

Modules decide for their own parameters, by type and by identity, never by the parameter's name:

1. a module with ``muon_layout()`` says it itself: ``{"weight": {"role": "hidden", …}}``;
2. known module types (torch's, and transformers' by class name) have a fixed answer (`Rules`);
3. the rest goes to AdamW, with a warning if it is much, or is an error with ``strict=True``.

A parameter that an embedding shares with another module (a tied head) is an embedding.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from muonlab.optim.gradients import refuse_sharded
from muonlab.optim.layout import MatrixSpec
from muonlab.optim.rules import Place, Rules

ROLES = ("hidden", "router", "latents", "embedding", "head", "vector", "unknown")
_HOOK_KEYS = {"role", "row_blocks", "heads"}
# A warning says when more than this share of the elements of all matrices has no rule.
_MUCH = 0.05


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
    rates: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    strict: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups for `Muon`: hidden matrices to Muon, everything else to AdamW.

    The default ``scale`` gives Muon's updates the RMS of AdamW's, so that one learning rate and
    weight decay serve both. Frozen parameters are left out; each other one is in exactly one group.

    Args:
        muon_roles: the roles under Muon; P2 adds ``"router"`` and ``"latents"``.
        rates: learning rates by role, for those that are not to have the optimizer's ``lr``:
            ``{"embedding": 5e-3, "vector": 1e-3}``; ``"adamw"`` stands for every role under AdamW
            that is not named itself.
        decays: weight decays by role, in the same way.
        decay_vectors: whether AdamW decays biases, norms and other vectors too.
        split_fused: orthogonalise the parts of a fused matrix (QKV, gate and up) separately.
        per_head: orthogonalise each head of a projection that declares its heads by itself.
        roles: the role of a parameter by its full name, over what its module says.
        strict: raise ValueError on a parameter that no rule places; otherwise it goes to AdamW,
            with a warning where such parameters are more than 5 % of the matrices' elements.
    """
    rates, decays = dict(rates or {}), dict(decays or {})
    _check_by_role("rates", rates)
    _check_by_role("decays", decays)
    groups: dict[str, dict[str, Any]] = {}
    places = place_parameters(model, roles=roles)
    _report_unknown(places, strict=strict)
    for place in places:
        muon = place.role in muon_roles
        vector = place.role == "vector" and not decay_vectors
        options: dict[str, Any] = {"algorithm": "muon" if muon else "adamw"}
        if muon:
            layout = _effective_layout(place.layout, split_fused, per_head)
            options |= {"scale": scale, "layout": layout}
        elif vector:
            options["weight_decay"] = 0.0
        for option, by_role in (("lr", rates), ("weight_decay", decays)):
            key = place.role if place.role in by_role else options["algorithm"]
            if key in by_role:
                options[option] = by_role[key]
        group = groups.setdefault(repr(options), {"params": [], "param_names": []} | options)
        group["params"].append(place.parameter)
        group["param_names"].append(place.name)
    return sorted(
        groups.values(), key=lambda group: (group["algorithm"] != "muon", "weight_decay" in group)
    )


def _check_by_role(option: str, values: Mapping[str, float]) -> None:
    legal = (*ROLES, "muon", "adamw")
    for role, value in values.items():
        if role not in legal:
            raise ValueError(f"{option} {role!r} is no role: legal are {', '.join(legal)}")
        if not value >= 0:
            raise ValueError(f"{option}[{role!r}] {value!r} must be at least 0")


def _report_unknown(places: list[Placement], *, strict: bool) -> None:
    unknown = [place for place in places if place.role == "unknown"]
    if unknown and strict:
        first = unknown[0]
        raise ValueError(f"{first.name} {tuple(first.parameter.shape)}: {first.reason}")
    matrices = [place for place in places if place.parameter.ndim > 1]
    share = sum(p.parameter.numel() for p in unknown) / max(
        1, sum(p.parameter.numel() for p in matrices)
    )
    if share > _MUCH:
        warnings.warn(
            f"build_groups has no rule for {len(unknown)} parameters with {share:.0%} of the "
            f"matrices' elements, such as {unknown[0].name}; AdamW will move them. Say what they "
            f'are: a muon_layout() in their module, or roles={{"{unknown[0].name}": "hidden"}}',
            stacklevel=3,
        )


def place_parameters(
    model: nn.Module, *, roles: Mapping[str, str] | None = None
) -> list[Placement]:
    """One `Placement` for each trainable parameter, in the model's order."""
    for name, parameter in model.named_parameters():
        refuse_sharded(name, parameter)
    rules = Rules(model)
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
                place = rules.place(module, attribute, parameter)
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


def describe_groups(
    model: nn.Module, groups: list[dict[str, Any]], *, roles: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row a parameter: name, shape, parameters, algorithm, matrices, reason.

    ``roles``: those that `build_groups` was given.
    """
    reasons = {place.parameter: place.reason for place in place_parameters(model, roles=roles)}
    rows = []
    for group in groups:
        params = group["params"]
        names = group.get("param_names") or [str(index) for index in range(len(params))]
        for name, parameter in zip(names, params, strict=True):
            matrices = ""
            if group["algorithm"] == "muon":
                spec = MatrixSpec.from_layout(parameter.shape, group.get("layout"))
                matrices = " + ".join(
                    f"{m}×{n}" if batch == 1 else f"{batch} of {m}×{n}"
                    for batch, m, n in spec.block_shapes
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


def _declarations(model: nn.Module) -> dict[Tensor, Place]:
    """What the modules' own ``muon_layout`` hooks say of their parameters and their children's."""
    declared: dict[Tensor, Place] = {}
    for module in model.modules():
        hook: Any = getattr(module, "muon_layout", None)
        if hook is not None:
            declared |= _declared(module, hook())
    return declared


def _declared(module: nn.Module, layout: dict[str, dict[str, Any]]) -> dict[Tensor, Place]:
    kind = type(module).__name__
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places: dict[Tensor, Place] = {}
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


def _named(place: Place, name: str, parameter: Tensor) -> Placement:
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
