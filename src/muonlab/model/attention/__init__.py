"""Every attention kind; this union is the only registry (CLI, JSON and tests derive from it)."""

from typing import Annotated

from pydantic import Field

from muonlab.model.attention.causal_mhla import CausalMHLAConfig
from muonlab.model.attention.mhla import MHLAConfig
from muonlab.model.attention.mhsa import MHSAConfig
from muonlab.model.attention.mla import MLAConfig
from muonlab.model.attention.prefix_mhla import PrefixMHLAConfig

AttentionConfig = Annotated[
    MHSAConfig | MLAConfig | MHLAConfig | CausalMHLAConfig | PrefixMHLAConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "AttentionConfig",
    "CausalMHLAConfig",
    "MHLAConfig",
    "MHSAConfig",
    "MLAConfig",
    "PrefixMHLAConfig",
]
