"""The optimizers of a run as frozen configs: ``MuonConfig(...).build(model)``."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from muonlab.optim.groups import ROLES, build_groups
from muonlab.optim.muon import Muon
from muonlab.optim.options import OPTIONS, Dtype, Scale, SecondMoment, check_options
from muonlab.optim.schedules import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig:
    """Muon for ``muon_roles``, AdamW at ``adamw_lr_ratio`` × ``lr`` for the rest.

    With the default scale, updates have AdamW's RMS, so that one learning rate serves both parts.
    ``qk_clip`` is MuonClip's threshold τ of the attention logits, for the training loop.
    P2's hybrid is `P2_MUON`. The options are those of `Muon` and `build_groups`.
    """

    kind: Literal["muon"] = "muon"
    lr: float = 3e-3
    adamw_lr_ratio: float = 1.0
    weight_decay: float = 0.1
    adamw_weight_decay: float = 0.1
    decay_vectors: bool = False
    momentum: float = 0.95
    nesterov: bool = True
    schedule: str | Schedule = "keller5"
    scale: Scale = "match_rms_adamw"
    dtype: Dtype = "auto"
    cautious: bool = False
    second_moment: SecondMoment = "none"
    beta2: float = 0.95
    row_equilibration: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    muon_roles: tuple[str, ...] = ("hidden",)
    split_fused: bool = True
    per_head: bool = False
    qk_clip: float | None = None

    def __post_init__(self) -> None:
        check_options(self._options())
        _check_ratio("adamw_lr_ratio", self.adamw_lr_ratio)
        if self.qk_clip is not None and not 0 < self.qk_clip < float("inf"):
            raise ValueError(f"qk_clip {self.qk_clip!r} must be positive and finite, or null")
        for role in self.muon_roles:
            if role not in ROLES:
                raise ValueError(f"muon_roles {role!r} is unknown: legal are {', '.join(ROLES)}")
        check_options(self._adamw_options())

    def build(self, model: nn.Module) -> Muon:
        """The optimizer of ``model``'s trainable parameters."""
        groups = build_groups(
            model,
            muon_roles=self.muon_roles,
            scale=self.scale,
            decay_vectors=self.decay_vectors,
            split_fused=self.split_fused,
            per_head=self.per_head,
        )
        for group in groups:
            if group["algorithm"] == "adamw":
                group.update(self._adamw_options() | group)
        return Muon(groups, **self._options())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS if name != "algorithm"}

    def _adamw_options(self) -> dict[str, Any]:
        return {
            "lr": self.lr * self.adamw_lr_ratio,
            "weight_decay": self.adamw_weight_decay,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """AdamW for everything, in the same optimizer class.

    ``other_lr_ratio`` is the learning rate of embeddings, heads and vectors relative to that of the
    hidden matrices; at 1 and with ``decay_vectors`` all parameters form one group (P2's baseline).
    """

    qk_clip: ClassVar[None] = None  # is an option of Muon

    kind: Literal["adamw"] = "adamw"
    lr: float = 1e-3
    other_lr_ratio: float = 1.0
    weight_decay: float = 0.1
    decay_vectors: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_options(self._options())
        _check_ratio("other_lr_ratio", self.other_lr_ratio)

    def build(self, model: nn.Module) -> Muon:
        """The optimizer of ``model``'s trainable parameters."""
        groups = []
        for group in build_groups(model, decay_vectors=self.decay_vectors):
            ratio = 1.0 if group["algorithm"] == "muon" else self.other_lr_ratio
            options = {
                "algorithm": "adamw",
                "lr": self.lr * ratio,
                "weight_decay": group.get("weight_decay", self.weight_decay),
            }
            for earlier in groups:
                if all(earlier[key] == value for key, value in options.items()):
                    earlier["params"] += group["params"]
                    earlier["param_names"] += group["param_names"]
                    break
            else:
                groups.append(
                    options | {"params": group["params"], "param_names": group["param_names"]}
                )
        return Muon(groups, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "betas": self.betas,
            "eps": self.eps,
        }


def _check_ratio(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} {value!r} must be at least 0")


Optimizer = MuonConfig | AdamWConfig

P2_MUON = MuonConfig(  # the authors' published code, as replayed for their tables
    lr=0.01,
    adamw_lr_ratio=0.1,
    weight_decay=0.0,
    adamw_weight_decay=0.1,
    decay_vectors=True,
    scale="keller",
    betas=(0.9, 0.999),
    muon_roles=("hidden", "router", "latents"),
    split_fused=False,
)
P2_ADAMW = AdamWConfig(lr=0.01, weight_decay=0.1, decay_vectors=True, betas=(0.9, 0.999))
