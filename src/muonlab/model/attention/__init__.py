"""Every attention kind; this union is the only registry (CLI, JSON and tests derive from it)."""

from muonlab.model.attention.mhsa import MHSA, MHSAConfig

AttentionConfig = MHSAConfig
Attention = MHSA

__all__ = ["MHSA", "Attention", "AttentionConfig", "MHSAConfig"]
