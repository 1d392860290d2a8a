"""A short text from the model while it trains (``train.sample_every``)."""

from collections.abc import Callable

from muonlab.config import ConfigError, RunConfig
from muonlab.data import TextTokenizer
from muonlab.errors import UserError
from muonlab.generate import GenerateOptions, generate
from muonlab.model import LanguageModel

SAMPLE_TOKENS = 40


def printable(text: str) -> str:
    """The text on one line, with newlines and control characters spelt out: ``\\n``, ``\\x1b``."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def make_sampler(
    config: RunConfig, model: LanguageModel, tokenizer: TextTokenizer
) -> Callable[[], str]:
    """A function that continues ``train.sample_prompt``; an empty one begins a new text.

    It draws from a generator of its own, so that training is the same with it and without.
    Raises ConfigError at once where the model cannot continue this prompt.
    """
    prompt = config.train.sample_prompt
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.eot_id]
    room = config.model.max_length - len(ids) + 1
    options = GenerateOptions(max_new_tokens=max(1, min(SAMPLE_TOKENS, room)), seed=config.seed)

    def sample() -> str:
        steps = generate(model, [ids], options, tokenizer.eot_id)
        written = [token for (token,) in steps if token is not None]
        whole = tokenizer.decode([*ids, *written] if prompt else written)
        return whole.removeprefix(prompt)

    if not ids:
        raise ConfigError(f"train.sample_prompt is {prompt!r}; the tokenizer makes no token of it")
    try:
        generate(model, [ids], options)
    except UserError as error:
        raise ConfigError(f"train.sample_prompt is {prompt!r}: {error}") from None
    return sample
