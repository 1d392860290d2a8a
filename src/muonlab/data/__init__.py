"""Text to token batches: sources, tokenizers, splits, a verified cache, batches by seed."""

from muonlab.data.errors import DataError
from muonlab.data.prepare import DataConfig
from muonlab.data.sources import BuiltinConfig, HubConfig, LocalConfig, MixtureConfig, Source
from muonlab.data.splits import DocumentSplit, LeakyWindowSplit, Split, SplitName
from muonlab.data.tokenizer import (
    HubTokenizer,
    TextTokenizer,
    TokenizerConfig,
    TokenizerFile,
    TrainBPE,
    parse_tokenizer,
)
from muonlab.data.tokens import IGNORED_TARGET, TokenData

__all__ = [
    "IGNORED_TARGET",
    "BuiltinConfig",
    "DataConfig",
    "DataError",
    "DocumentSplit",
    "HubConfig",
    "HubTokenizer",
    "LeakyWindowSplit",
    "LocalConfig",
    "MixtureConfig",
    "Source",
    "Split",
    "SplitName",
    "TextTokenizer",
    "TokenData",
    "TokenizerConfig",
    "TokenizerFile",
    "TrainBPE",
    "parse_tokenizer",
]
