"""Text from a trained model: batches of prompts of any lengths, streamed token by token.

Shapes: B prompts (rows), S tokens of a prefill chunk, V vocabulary.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from muonlab.data import TextTokenizer
from muonlab.errors import UserError
from muonlab.model import LanguageModel
from muonlab.model.cache import DecodingState

PREFILL_CHUNK = 256  # prompt tokens read at a time: bounds the memory of long prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """How to continue a prompt; ``temperature`` 0 always takes the likeliest token.

    ``top_k`` keeps that many tokens, ``top_p`` the likeliest ones that together reach that mass.
    Row i draws from the stream of ``seed + i``, whatever the other rows do. ``extend`` allows
    positions that the model was not trained on.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    extend: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or None for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")


def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    options: GenerateOptions,
    eot_id: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue every prompt: one list per step, with each row's next token or None once it ended.

    A row ends at ``eot_id``, which is not yielded, or after ``max_new_tokens``.
    Raises UserError for prompts that are empty, too long or hold ids outside the vocabulary, and
    for a model that cannot generate; before the first step.
    """
    _check_prompts(prompts, model.config.vocab_size)
    capacity = max(map(len, prompts)) + options.max_new_tokens - 1  # the last token is not read
    _make_room(model, max(map(len, prompts)), capacity, options.extend)
    state = model.new_state(len(prompts), capacity)

    def steps() -> Iterator[list[int | None]]:
        generators = [
            torch.Generator().manual_seed(options.seed + row) for row in range(len(prompts))
        ]
        running = [True] * len(prompts)
        was_training = model.training
        model.eval()
        try:
            logits = prefill(model, prompts, state)
            for remaining in reversed(range(options.max_new_tokens)):
                tokens = _choose(logits, options, generators)  # (B,)
                chosen = tokens.tolist()
                running = [on and new != eot_id for on, new in zip(running, chosen, strict=True)]
                if not any(running):
                    return
                yield [new if on else None for on, new in zip(running, chosen, strict=True)]
                if remaining:
                    logits = model.decode(tokens.unsqueeze(1), state)
        finally:
            model.train(was_training)

    return steps()


def generate_text(
    model: LanguageModel, tokenizer: TextTokenizer, prompts: list[str], options: GenerateOptions
) -> Iterator[list[str]]:
    """Continue every prompt: one list per step, with the text that each row has grown by.

    An empty prompt starts from the end-of-text token, as a new document does.
    A piece is empty while a character's bytes are incomplete, and once its row has ended.
    Errors as in `generate`.
    """
    token_ids = [tokenizer.encode(prompt) or [tokenizer.eot_id] for prompt in prompts]
    steps = generate(model, token_ids, options, tokenizer.eot_id)
    streams = [DecodeStream(ids=ids, skip_special_tokens=False) for ids in token_ids]

    def pieces() -> Iterator[list[str]]:
        for tokens in steps:
            yield [
                "" if token is None else stream.step(tokenizer.backend, token) or ""
                for stream, token in zip(streams, tokens, strict=True)
            ]

    return pieces()


def prefill(model: LanguageModel, prompts: list[list[int]], state: DecodingState) -> Tensor:
    """Read prompts of any lengths into ``state``; logits (B, V) after the last token of each."""
    device = model.embedding.weight.device
    longest = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    logits = torch.empty(len(prompts), model.config.vocab_size, device=device)
    for start in range(0, longest, PREFILL_CHUNK):
        chunk = padded[:, start : start + PREFILL_CHUNK]
        num_valid = [min(max(len(prompt) - start, 0), chunk.shape[1]) for prompt in prompts]
        new_logits = model.decode(chunk.to(device), state, num_valid)
        ends_here = [row for row, valid in enumerate(num_valid) if valid]
        logits[ends_here] = new_logits[ends_here]
    return logits


def _check_prompts(prompts: list[list[int]], vocab_size: int) -> None:
    if not prompts:
        raise UserError("there are no prompts; give at least one")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty; it must have at least one token")
        for token in prompt:
            if not 0 <= token < vocab_size:
                raise UserError(
                    f"prompt {number} has token {token}; the vocabulary is 0 to {vocab_size - 1}"
                )


def _make_room(model: LanguageModel, longest: int, capacity: int, extend: bool) -> None:
    limit = model.config.max_length
    if capacity <= limit:
        return
    if not extend:
        raise UserError(
            f"a prompt of {longest} and {capacity + 1 - longest} new tokens need {capacity} "
            f"positions; the model was trained for {limit} (--extend, or extend=True, goes beyond)"
        )
    warnings.warn(
        f"generating up to position {capacity}; the model was trained for {limit}", stacklevel=3
    )
    model.extend_positions(capacity)


def _choose(logits: Tensor, options: GenerateOptions, generators: list[torch.Generator]) -> Tensor:
    """The next token of every row, (B, V) -> (B,)."""
    if options.temperature == 0:
        return logits.argmax(-1)
    scores, candidates = logits / options.temperature, None
    if options.top_k is not None and options.top_k < scores.shape[-1]:
        scores, candidates = scores.topk(options.top_k)
    elif options.top_p < 1:
        scores, candidates = scores.sort(descending=True)
    probabilities = scores.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    if options.top_p < 1:
        # the mass before a token decides, so that the likeliest one always stays
        probabilities = probabilities * (cumulative - probabilities < options.top_p)
        cumulative = probabilities.cumsum(-1)
    uniform = torch.cat([torch.rand(1, 1, generator=generator) for generator in generators])
    drawn = uniform.to(cumulative) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, drawn, right=True).clamp_max(scores.shape[-1] - 1)
    return (picked if candidates is None else candidates.gather(-1, picked)).squeeze(-1)
