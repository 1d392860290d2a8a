"""Decoder-only transformers: attention kinds, dense and expert feed-forward, exact accounting."""

from muonlab.model.transformer import LanguageModel, ModelConfig, ModelOutput

__all__ = ["LanguageModel", "ModelConfig", "ModelOutput"]
