"""All checks by name."""

from muonlab.errors import UserError
from muonlab.theory import ntk, rate, spectral, steepest, stiefel
from muonlab.theory.check import Check

CHECKS: dict[str, Check] = {
    module.CHECK.name: module.CHECK for module in (rate, spectral, stiefel, steepest, ntk)
}


def find_check(name: str) -> Check:
    """The check of that name; raises UserError with the legal ones."""
    if name not in CHECKS:
        raise UserError(f"check {name!r} is unknown; legal: {', '.join(CHECKS)}")
    return CHECKS[name]
