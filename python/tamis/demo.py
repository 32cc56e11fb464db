"""The whole path on a real model: prune three ways, store, reload in a new process, compare."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tamis.atomic import check_target, replaced_folder
from tamis.errors import TamisError, TamisUnsupported
from tamis.report import Report, Variant, host_facts


@dataclass(frozen=True)
class Run:
    """One way to prune: what the table calls it, the method, sparsity and pattern."""

    name: str
    method: str
    sparsity: float
    pattern: str

    @property
    def folder(self) -> str:
        """Name of the folder it is saved in."""
        return re.sub(r"\W+", "-", self.name).strip("-")


RUNS = (
    Run("wanda 50 %", "wanda", 0.5, "unstructured"),
    Run("sparsegpt 50 %", "sparsegpt", 0.5, "unstructured"),
    Run("sparsegpt 2:4", "sparsegpt", 0.5, "2:4"),
)


@dataclass(frozen=True)
class Settings:
    """What the demo works on; the defaults are the packaged model and text found offline.

    Attributes:
        model: As on the command line: folder, .gguf file or "smollm2".
        out: Folder for the models, report.html and report.json.
        calibration: Text file to calibrate on, or None.
        text: Text file of the perplexity, or None.
        samples: Calibration sequences.
        max_length: Tokens of each.
        window: Tokens of a perplexity window.
        windows: Perplexity windows.
        threads: While decoding; pruning uses all.
        new_tokens: Decoded tokens a model.
        prompt: What the models continue.
        log: Receives one line of progress at a time.
    """

    model: str = "smollm2"
    out: Path = Path("out")
    calibration: str | None = None
    text: str | None = None
    samples: int = 8
    max_length: int = 512
    window: int = 512
    windows: int = 6
    threads: int = 1
    new_tokens: int = 48
    prompt: str = "A sieve is a kitchen tool that"
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: T201


def demo(settings: Settings, runs: tuple[Run, ...] = RUNS) -> Report:
    """Dense against each run: perplexity, tokens/s, bytes, peak memory; also written to `out`.

    Raises:
        TamisError: A step failed; what was written so far stays in `out`.
    """
    start = time.perf_counter()
    steps = _Steps(settings.log, total=3 + 2 * len(runs))
    folders = {"dense": settings.out / "dense"}
    folders |= {run.name: settings.out / run.folder for run in runs}
    for folder in folders.values():
        check_target(folder, overwrite=True, caller="demo")
    with steps.next(f"open {settings.model} and store it dense, bf16"):
        windows, source = _prepare(settings, folders["dense"])
    parts = []
    for run in runs:
        with steps.next(f"prune: {run.name}, and store it"):
            parts.append(_prune(run, folders["dense"], folders[run.name], windows, settings))
    apart = {}
    for name, folder in folders.items():
        with steps.next(f"load in a new process, generate, perplexity: {name}"):
            apart[name] = _evaluate_apart(folder, settings)
    with steps.next(f"decode, taking turns, {settings.threads} thread(s); time every layer"):
        together = _measure(folders, settings, parts)
    report = Report(
        title=f"{settings.model}, bf16, dense against pruned by tamis",
        metrics={
            "calibrated on": f"{source}, {len(windows)} x {settings.max_length} tokens",
            "perplexity on": apart["dense"].get("perplexity_text", "not measured"),
            "decoding": f"one sequence, {settings.new_tokens} tokens, {settings.threads} thread(s)",
            "seconds in all": round(time.perf_counter() - start, 1),
        },
        host=host_facts(seed=0),
        variants=_variants(folders, apart, together),
        parts=parts,
    )
    report.to_html(settings.out / "report.html")
    report.to_json(settings.out / "report.json")
    settings.log(f"wrote {settings.out / 'report.html'} and report.json")
    return report


class _Steps:
    """Numbered steps, each a line when it starts and its seconds when it ends."""

    def __init__(self, log: Callable[[str], None], total: int) -> None:
        self.log, self.total, self.done = log, total + 1, 0

    @contextmanager
    def next(self, what: str) -> Iterator[None]:
        self.done += 1
        self.log(f"[{self.done}/{self.total - 1}] {what} ...")
        start = time.perf_counter()
        yield
        self.log(f"[{self.done}/{self.total - 1}] done in {time.perf_counter() - start:.1f} s")


def _prepare(settings: Settings, folder: Path) -> tuple[list[list[int]], str]:
    """Stores the dense model; returns the calibration windows and the name of their source."""
    from tamis.corpus import default_text
    from tamis.evaluate import token_windows
    from tamis.source import open_model

    source, text = default_text("calibrate", settings.calibration)
    opened = open_model(settings.model, dtype="bf16")
    with replaced_folder(folder, overwrite=True, caller="demo") as work:
        opened.model.save_pretrained(work)  # type: ignore[operator]
        opened.tokenizer.save_pretrained(work)
    windows = token_windows(
        opened.tokenizer, text, length=settings.max_length, count=settings.samples
    )
    return windows, source


def _prune(
    run: Run, dense: Path, folder: Path, windows: list[list[int]], settings: Settings
) -> Report:
    import tamis
    from tamis.source import open_model

    opened = open_model(str(dense), dtype="bf16")
    report = tamis.sparsify_(
        opened.model,
        run.method,
        sparsity=run.sparsity,
        pattern=run.pattern,
        data=windows,
        max_length=settings.max_length,
    )
    tamis.save(opened.model, folder, overwrite=True, tokenizer=opened.tokenizer, report=report)
    report.title = f"{run.name}: what was done to each layer"
    return report


def _evaluate_apart(folder: Path, settings: Settings) -> dict[str, Any]:
    """Metrics of `tamis eval` in a process of its own, so that memory and reload are honest."""
    command = [sys.executable, "-m", "tamis", "eval", str(folder), "--json"]
    command += ["--generate", settings.prompt, "--tokens", "32"]
    command += ["--window", str(settings.window), "--windows", str(settings.windows)]
    if settings.text:
        command += ["--text", settings.text]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise TamisError(f"demo: reload of {folder} failed: {run.stderr.strip()}")
    metrics = json.loads(run.stdout)["metrics"]
    if not isinstance(metrics, dict):
        raise TamisError(f"demo: reload of {folder} gave no metrics; run tamis eval {folder}.")
    return metrics


def _measure(
    folders: dict[str, Path], settings: Settings, parts: list[Report]
) -> dict[str, tuple[float, int]]:
    """(tokens a second, bytes of the linear layers) by model; adds measured times to the parts."""
    import tamis
    from tamis.evaluate import decode_speed, linear_bytes, threads_set
    from tamis.source import open_model

    opened = {name: open_model(str(folder)) for name, folder in folders.items()}
    models = {name: each.model for name, each in opened.items()}
    for model in list(models.values())[1:]:
        with suppress(TamisUnsupported):  # a family that cannot be fused decodes as it is
            tamis.fuse_decode_(model)
    speeds = decode_speed(
        models,
        opened["dense"].tokenizer(settings.prompt)["input_ids"],
        new_tokens=settings.new_tokens,
        threads=settings.threads,
    )
    with threads_set(settings.threads):
        for name, part in zip(list(models)[1:], parts, strict=True):
            found = tamis.explain(models[name], measure=True)
            timed = {row.name: row for row in found.layers}
            part.metrics |= {k: v for k, v in found.metrics.items() if k.startswith("fused")}
            part.layers = [replace(timed[row.name], reason=row.reason) for row in part.layers]
    return {
        name: (speeds[name].tokens_per_s, linear_bytes(model)) for name, model in models.items()
    }


def _variants(
    folders: dict[str, Path],
    apart: dict[str, dict[str, Any]],
    together: dict[str, tuple[float, int]],
) -> list[Variant]:
    return [
        Variant(
            name=name,
            perplexity=apart[name].get("perplexity"),
            tokens_per_s=together[name][0],
            speed=together[name][0] / together["dense"][0],
            nbytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            linear_nbytes=together[name][1],
            peak_rss=apart[name].get("peak_rss_bytes"),
            text=str(apart[name].get("text", "")),
        )
        for name, folder in folders.items()
    ]
