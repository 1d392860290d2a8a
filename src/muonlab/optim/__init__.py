"""Muon for any PyTorch project: ``Muon(build_groups(model), lr=…)``. Imports torch only."""

from muonlab.optim.gradients import NonfiniteGradientError
from muonlab.optim.groups import build_groups, describe_groups, format_groups
from muonlab.optim.layout import MatrixSpec
from muonlab.optim.muon import Muon, SlowDtypeWarning
from muonlab.optim.polar import orthogonalise, step_flops
from muonlab.optim.processor import bf16_is_native
from muonlab.optim.schedules import polar_express

__all__ = [
    "MatrixSpec",
    "Muon",
    "NonfiniteGradientError",
    "SlowDtypeWarning",
    "bf16_is_native",
    "build_groups",
    "describe_groups",
    "format_groups",
    "orthogonalise",
    "polar_express",
    "step_flops",
]
