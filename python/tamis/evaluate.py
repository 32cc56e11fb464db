"""Perplexity, decode speed and peak memory of a language model."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tamis.errors import TamisValueError

if TYPE_CHECKING:
    import torch


def perplexity(
    model: torch.nn.Module,
    tokenizer_or_ids: Any,
    text: str | None = None,
    *,
    window: int = 512,
    windows: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """exp(mean next-token cross-entropy) over non-overlapping windows, each read without context.

    Args:
        model: A causal language model of transformers, or any module whose output has `.logits`.
        tokenizer_or_ids: The tokenizer of `text`, or the token ids themselves ([tokens]).
        text: What to read; only with a tokenizer.
        window: Tokens a window; window - 1 of them are predicted.
        windows: How many windows; fewer are read where the text is shorter.
        progress: Called with (windows done, windows).

    Raises:
        TamisValueError: The text has less than one window, or a size is not positive.
    """
    import torch

    if window < 2 or windows < 1:
        raise TamisValueError(
            f"perplexity: window, windows: got {window}, {windows}, wanted at least 2 and 1; "
            "pass larger ones."
        )
    ids = _token_ids(tokenizer_or_ids, text, window * windows)
    count = min(windows, ids.numel() // window)
    if count == 0:
        raise TamisValueError(
            f"perplexity: text: got {ids.numel()} tokens, wanted at least one window of {window}; "
            "pass a longer text or a smaller window."
        )
    total, device = 0.0, next(model.parameters()).device
    with torch.inference_mode(), _evaluating(model):
        for i in range(count):
            row = ids[i * window : (i + 1) * window].unsqueeze(0).to(device)
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, row[0, 1:]).item()
            if progress is not None:
                progress(i + 1, count)
    return math.exp(total / count) if total / count < 700 else math.inf


def token_windows(tokenizer: Any, text: str, *, length: int, count: int) -> list[list[int]]:
    """The first `count` windows of `length` token ids, non-overlapping, for calibration.

    Raises:
        TamisValueError: The text has less than one window.
    """
    ids = _token_ids(tokenizer, text, length * count).tolist()
    windows = [ids[i * length : (i + 1) * length] for i in range(min(count, len(ids) // length))]
    if not windows:
        raise TamisValueError(
            f"token_windows: text: got {len(ids)} tokens, wanted at least {length}; "
            "pass a longer text or a smaller length."
        )
    return windows


@dataclass(frozen=True)
class DecodeSpeed:
    """Greedy decoding of one sequence: median time a token, and what came out."""

    seconds_per_token: float
    ids: tuple[int, ...]

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second at the median time."""
        return 1.0 / self.seconds_per_token


def decode_speed(
    models: Mapping[str, torch.nn.Module],
    prompt: Sequence[int],
    *,
    new_tokens: int = 48,
    threads: int | None = None,
    burst: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, DecodeSpeed]:
    """Median time a token of each model, one sequence, key-value cache, greedy choice.

    The models take turns, `burst` tokens each with the order reversed every round, so that a slow
    phase of the machine hits all of them and the quotient of two medians holds. The first token of
    a turn, which finds another model's weights in the caches, is not counted.

    Args:
        models: By name; all must fit into memory together.
        prompt: Token ids to continue.
        new_tokens: Counted tokens a model.
        threads: For torch and tamis during the measurement; None leaves them.
        burst: Counted tokens a turn.
        progress: Called with (turns done, turns).

    Raises:
        TamisValueError: No prompt, or a count that is not positive.
    """
    if not prompt or new_tokens < 1 or burst < 1:
        raise TamisValueError(
            f"decode_speed: prompt, new_tokens, burst: got {len(prompt)} ids, {new_tokens}, "
            f"{burst}, wanted at least one each; pass a prompt and positive counts."
        )
    rounds = math.ceil(new_tokens / burst)
    done = 0
    with threads_set(threads):
        runs = {name: _Decoder(model, prompt) for name, model in models.items()}
        for turn in range(rounds):
            order = list(runs.values())
            for run in order if turn % 2 == 0 else reversed(order):
                run.step(timed=False)
                for _ in range(burst):
                    run.step(timed=True)
                done += 1
                if progress is not None:
                    progress(done, rounds * len(runs))
    return {name: DecodeSpeed(median(run.times), tuple(run.ids)) for name, run in runs.items()}


class _Decoder:
    """One model with its cache, stepped a token at a time."""

    def __init__(self, model: torch.nn.Module, prompt: Sequence[int]) -> None:
        import torch

        self.model, self.argument = model, cache_argument(model)
        self.times: list[float] = []
        self.ids: list[int] = []
        self.next = torch.tensor([list(prompt)], device=next(model.parameters()).device)
        self.cache: Any = None
        self.step(timed=False)

    def step(self, *, timed: bool) -> None:
        import torch

        with torch.inference_mode(), _evaluating(self.model):
            start = time.perf_counter()
            out = self.model(input_ids=self.next, use_cache=True, **{self.argument: self.cache})
            self.next = out.logits[:, -1:].argmax(-1)
            elapsed = time.perf_counter() - start
        self.cache = getattr(out, self.argument)
        self.ids.append(int(self.next))
        if timed:
            self.times.append(elapsed)


def cache_argument(model: Any) -> str:
    """Name by which the model takes a cache: ``past_key_values`` until transformers 5.24, now ``cache``."""
    taken = inspect.signature(model.forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


def generate_text(model: torch.nn.Module, tokenizer: Any, prompt: str, new_tokens: int = 32) -> str:
    """What the model writes after `prompt`, greedy; the prompt itself is left out."""
    import torch

    device = next(model.parameters()).device
    batch = {k: x.to(device) for k, x in tokenizer(prompt, return_tensors="pt").items()}
    with torch.inference_mode(), _evaluating(model):
        ids = model.generate(  # type: ignore[operator]
            **batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    return str(tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def linear_bytes(model: torch.nn.Module) -> int:
    """Bytes of all linear layers, dense or compressed, but for the output layer."""
    import torch

    from tamis.nn import SparseExperts, SparseLinear
    from tamis.transposed import is_conv1d

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    tensors = (
        tensor
        for module in model.modules()
        if isinstance(module, (torch.nn.Linear, SparseLinear))
        or is_conv1d(module)
        or SparseExperts.takes(module)
        if module is not head
        for tensor in (*module.parameters(), *module.buffers())
    )
    return sum(tensor.nbytes for tensor in tensors)


def peak_rss() -> int:
    """Largest resident set of this process so far, in bytes.

    Read from /proc where there is one: `getrusage` also counts the parent's pages at the fork.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _token_ids(tokenizer_or_ids: Any, text: str | None, wanted: int) -> torch.Tensor:
    import torch

    if text is None:
        return torch.as_tensor(tokenizer_or_ids, dtype=torch.long).flatten()
    # Ten characters a token is more than prose needs, and all of WikiText-2 would take seconds;
    # asked again with the whole text where that guess is wrong.
    for length in (wanted * 10, len(text)):
        ids = tokenizer_or_ids(text[:length], add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) > wanted or length >= len(text):
            break
    return torch.tensor(ids[: wanted + 1], dtype=torch.long)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Sets torch's and tamis's thread count for a while; None leaves them."""
    import torch

    from tamis import _C

    before = torch.get_num_threads(), _C.num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
            _C.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before[0])
        _C.set_num_threads(before[1])
