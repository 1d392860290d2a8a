"""Text to token batches: sources, tokenizers, splits, a verified cache, batches by seed."""

from .errors import DataError
from .prepare import DataConfig
from .sources import BuiltinConfig, HubConfig, LocalConfig, Source
from .splits import DocumentSplit, LeakyWindowSplit, Split, SplitName
from .tokenizer import HubTokenizer, TextTokenizer, TokenizerConfig, TokenizerFile, TrainBPE
from .tokens import IGNORED_TARGET, TokenData

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
    "Source",
    "Split",
    "SplitName",
    "TextTokenizer",
    "TokenData",
    "TokenizerConfig",
    "TokenizerFile",
    "TrainBPE",
]
