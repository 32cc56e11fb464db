"""What each command of the command line does; `cli` has read and checked the arguments."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import TamisFileError

if TYPE_CHECKING:
    from argparse import Namespace

    from tamis.kv_tasks import Session
    from tamis.report import Report


def info(a: Namespace) -> None:
    """Host, threads, backends and kernels."""
    import tamis
    from tamis.report_text import table

    if a.measure:
        _measure()
    facts, kernels = tamis.info(), tamis.kernels()
    if a.json:
        _print_json({**facts, "kernels": kernels})
        return
    print(facts)
    print(table(_kernel_rows(kernels)))


def _measure() -> None:
    from importlib.util import find_spec

    from tamis.kv import limits
    from tamis.ops import machine

    def say(what: str) -> None:
        logging.getLogger("tamis").info("measuring %s", what)

    try:
        machine.measure(say)
        if find_spec("torch") is not None:
            limits.measure(say)
    except OSError as error:
        raise TamisFileError(
            f"info: --measure: got {machine.file()} ({error.strerror}), wanted a file that can be "
            "written; set XDG_CACHE_HOME to another folder."
        ) from error


def _kernel_rows(kernels: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each operator, format and weight type: the instruction sets of its kernels."""
    levels: dict[tuple[str, str, str], list[str]] = {}
    for kernel in kernels:
        row = levels.setdefault((kernel["op"], kernel["format"], kernel["w_dtype"]), [])
        isa = kernel["isa"] if kernel["runs_here"] else f"({kernel['isa']})"
        if isa not in row:
            row.append(isa)
    head = ["op", "format", "weights", "kernels for (in brackets: not on this machine)"]
    return [head, *([*key, " ".join(row)] for key, row in levels.items())]


def demo(a: Namespace) -> None:
    """The whole path on a packaged model."""
    from tamis.demo import Settings, demo

    quiet()
    settings = Settings(
        model=a.model,
        out=Path(a.out),
        calibration=a.data,
        text=a.text,
        samples=a.samples,
        max_length=a.max_length,
        window=a.window,
        windows=a.windows,
        threads=a.threads,
        new_tokens=a.tokens,
        prompt=a.prompt,
    )
    _show(demo(settings), a)


def prune(a: Namespace) -> None:
    """Prunes a model and saves it compressed."""
    import tamis
    from tamis.corpus import default_text
    from tamis.evaluate import token_windows
    from tamis.report import Report
    from tamis.source import find_model, open_model

    find_model(a.model)  # the cheap refusals first
    _check_out("prune: --out", a.out, force=a.force)
    source, text = default_text("calibrate", a.data)
    quiet()
    opened = open_model(a.model, dtype=a.dtype)
    report = tamis.sparsify_(
        opened.model,
        a.method,
        sparsity=a.sparsity,
        pattern=a.pattern,
        data=token_windows(opened.tokenizer, text, length=a.max_length, count=a.samples),
        targets=a.targets,
        ignore=tuple(a.ignore),
        format=a.format,
        allocate=a.allocate,
        max_length=a.max_length,
        seed=a.seed,
    )
    if report.metrics["calibration_tokens"]:
        report.metrics["calibrated_on"] = source
    parts = [report]
    if a.optimize:
        parts.append(tamis.optimize_(opened.model, a.optimize))
    tamis.save(opened.model, a.out, overwrite=a.force, tokenizer=opened.tokenizer, report=parts[-1])
    _show(report if len(parts) == 1 else Report(f"{a.model}, pruned", parts=parts), a)


def bench(a: Namespace) -> None:
    """Decode speed of models that take turns; the first named is the reference."""
    from tamis.source import find_model, open_model

    names = [*([a.dense] if a.dense else []), *a.models]
    for name in names:
        find_model(name)
    quiet()  # before tqdm is imported, which asks only then
    import tamis
    from tamis.decode import fusion
    from tamis.errors import TamisUnsupported
    from tamis.evaluate import decode_speed
    from tamis.report import Report, Variant, host_facts

    opened = {name: open_model(name, dtype=a.dtype) for name in names}
    facts: dict[str, float | int | str] = {}
    if not a.no_fuse:
        for name, each in opened.items():
            with suppress(TamisUnsupported):  # dense, or of a family that cannot be fused
                tamis.fuse_decode_(each.model)
                facts[f"{name}: fused for decoding"] = fusion(each.model)
    first = opened[names[0]]
    ids = first.tokenizer(a.prompt)["input_ids"]
    with _Bar("decode") as step:
        speeds = decode_speed(
            {name: each.model for name, each in opened.items()},
            ids,
            new_tokens=a.tokens,
            threads=a.threads,
            progress=step,
        )
    slowest = speeds[names[0]].seconds_per_token
    variants = [
        Variant(
            name=name,
            tokens_per_s=speed.tokens_per_s,
            speed=slowest / speed.seconds_per_token,
            nbytes=_weight_bytes(opened[name].path),
        )
        for name, speed in speeds.items()
    ]
    _show(
        Report(
            f"Greedy decoding, one sequence, {a.tokens} tokens each, taking turns",
            metrics=facts,
            variants=variants,
            host=host_facts(decode_threads=a.threads),
        ),
        a,
    )


def eval(a: Namespace) -> None:
    """Perplexity, and with a prompt a text and the peak memory."""
    from tamis.corpus import default_text
    from tamis.evaluate import generate_text, peak_rss, perplexity
    from tamis.report import Report, host_facts
    from tamis.source import find_model, open_model

    find_model(a.model)
    source, text = default_text("evaluate", a.text)
    quiet()
    opened = open_model(a.model, dtype=a.dtype)
    metrics: dict[str, float | int | str] = {}
    if a.generate:
        metrics["text"] = generate_text(opened.model, opened.tokenizer, a.generate, a.tokens)
        metrics["peak_rss_bytes"] = peak_rss()  # before the wide products of the perplexity
    if a.windows:
        with _Bar("perplexity") as step:
            metrics["perplexity"] = perplexity(
                opened.model,
                opened.tokenizer,
                text,
                window=a.window,
                windows=a.windows,
                progress=step,
            )
        metrics["perplexity_text"] = f"{source}, {a.windows} windows of {a.window} tokens"
    _show(Report(f"Evaluation of {a.model}", metrics=metrics, host=host_facts()), a)


def eval_kv(a: Namespace) -> None:
    """Right answers from compressed caches, and their bytes."""
    from tamis.source import find_model, open_model

    find_model(a.model)
    quiet()  # before tqdm is imported, which asks only then
    from tamis import kv_eval, kv_scores
    from tamis.evaluate import threads_set
    from tamis.report_text import table

    cases = [kv_eval.parse_case(text) for text in a.caches]
    attentions = [kv_eval.parse_attention(text) for text in a.attention]
    if a.data:
        from tamis.kv_tasks import read_sessions

        sessions = read_sessions(a.data, limit=a.sessions)
    opened = open_model(a.model, dtype=a.dtype)
    if not a.data:
        sessions = _kv_sessions(a, opened.tokenizer)
    with threads_set(a.threads), _Bar("eval-kv") as step:
        options = {"modes": a.modes, "attentions": attentions, "progress": step}
        scores = kv_eval.evaluate(opened.model, opened.tokenizer, sessions, cases, **options)
    rows = kv_scores.summary(scores)
    if a.plot:
        _write_text(a.plot, kv_scores.plot(rows))
    if a.json:
        _print_json(kv_scores.to_dict(scores))
    else:
        print(table(kv_scores.table_rows(rows)))


def _kv_sessions(a: Namespace, tokenizer: Any) -> list[Session]:
    from tamis.corpus import default_text
    from tamis.kv_tasks import make_sessions

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    text = default_text("evaluate", a.text)[1]
    options = {"tokens": a.tokens, "sessions": a.sessions, "turns": a.turns, "seed": a.seed}
    return [s for task in a.tasks for s in make_sessions(task, count, text=text, **options)]


def _write_text(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TamisFileError(
            f"eval-kv: --plot: got {path} ({error.strerror}), wanted a file that can be written."
        ) from error


def explain(a: Namespace) -> None:
    """Per layer: what it is, what it costs and why."""
    import tamis
    from tamis.evaluate import threads_set
    from tamis.source import find_model, open_model

    find_model(a.model)
    quiet()
    model = open_model(a.model, dtype=a.dtype).model
    with threads_set(a.threads):
        report = tamis.explain(model, measure=not a.predict)
    report.title = f"{a.model}: linear layers, one token, {a.threads} thread(s)"
    _show(report, a)


def convert(a: Namespace) -> None:
    """A model folder into another storage."""
    import tamis
    from tamis.source import find_model

    source = find_model(a.source)
    if source.is_file():
        raise TamisFileError(
            f"convert: SRC: got {a.source}, a GGUF file, wanted a model folder; tamis prune --method "
            "magnitude --sparsity 0 --format dense makes one of it."
        )
    _check_out("convert: DST", a.out, force=a.force)
    quiet()
    report = tamis.convert(source, a.out, format=a.format, overwrite=a.force)
    left = report.metrics.get("left_dense")
    print(f"wrote {a.out}" + (f"; left dense: {left}" if left else ""))


def _show(report: Report, a: Namespace) -> None:
    """Writes the report where asked: a file by its ending, JSON or a table on stdout."""
    if getattr(a, "report", None):
        write = report.to_json if a.report.endswith(".json") else report.to_html
        write(a.report)
    if a.json:
        _print_json(report.to_dict())
    else:
        report.print(full=a.full)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


def _check_out(where: str, out: str, *, force: bool) -> None:
    """Refuses, before minutes of work, a folder that saving would refuse after them."""
    path = Path(out)
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TamisFileError(
            f"{where}: got {out}, where {there} is no folder that can be written, wanted one; "
            "name another."
        )
    if there != path or not any(path.iterdir()):
        return
    if not force or not (path / "config.json").is_file():
        raise TamisFileError(
            f"{where}: got {out}, which is not empty, wanted a new folder; "
            "name another, or pass --force if it holds a model to replace."
        )


def _weight_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def quiet() -> None:
    """Keeps transformers' bars and advice out of our output; this process is ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # for bars that do not look themselves
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:
        return
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class _Bar:
    """A tqdm bar as a callback (done, total); off when stderr is not a terminal."""

    def __init__(self, title: str) -> None:
        from tqdm.auto import tqdm

        self.bar: Any = tqdm(desc=title, disable=None, leave=False)

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()
