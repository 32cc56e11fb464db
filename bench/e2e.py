"""SmolLM2-135M, bf16: decode speed, bytes and perplexity, dense torch against tamis, in one run.

`python bench/e2e.py` prunes (cached under out/e2e), reloads, lets the models take turns, prints a
table and says what share of a token's time the linear layers take. `--profile` adds torch's own
profile of one dense and one sparse decode.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import tamis
from tamis import commands, corpus, evaluate, source
from tamis.report import Report, Variant, host_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", help="text to calibrate on")
    parser.add_argument("--text", help="text of the perplexity")
    parser.add_argument("--out", default="out/e2e", help="folder of the pruned models, kept")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--patterns", nargs="*", default=["unstructured", "2:4"])
    parser.add_argument("--w4", action="store_true", help="also 4-bit codes, the head's too")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=6, help="of the perplexity; 0 skips it")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", help="also write the report here")
    a = parser.parse_args()
    commands.quiet()
    folders = prune_all(a)
    opened = {name: source.open_model(str(folder)) for name, folder in folders.items()}
    models = {name: each.model for name, each in opened.items()}
    ids = opened["dense"].tokenizer("A sieve is a kitchen tool that")["input_ids"]
    speeds = evaluate.decode_speed(models, ids, new_tokens=a.tokens, threads=a.threads)
    text = corpus.default_text("evaluate", a.text)[1] if a.windows else ""
    variants = []
    for name, folder in folders.items():
        ppl = None
        if a.windows:
            tokenizer = opened[name].tokenizer
            ppl = evaluate.perplexity(models[name], tokenizer, text, windows=a.windows)
        variants.append(
            Variant(
                name,
                perplexity=ppl,
                tokens_per_s=speeds[name].tokens_per_s,
                speed=speeds[name].tokens_per_s / speeds["dense"].tokens_per_s,
                nbytes=sum(f.stat().st_size for f in folder.glob("*.safetensors")),
                linear_nbytes=evaluate.linear_bytes(models[name]),
            )
        )
    metrics = {f"{n}_linear_share": share(m, ids, a.threads) for n, m in models.items()}
    host = host_facts(decode_threads=a.threads)
    report = Report(f"SmolLM2 bf16, {a.method}, {a.threads} thread(s)", [], metrics, host, variants)
    report.print()
    if a.json:
        report.to_json(a.json)
    if a.profile:
        for name in list(models)[:2]:
            profile(name, models[name], ids, a.threads)


def prune_all(a: argparse.Namespace) -> dict[str, Path]:
    """Folders by name, dense first; what an earlier run left is used again."""
    out = Path(a.out)
    folders = {"dense": out / "dense"}
    if not (folders["dense"] / "config.json").is_file():
        opened = source.open_model(a.model, dtype="bf16")
        opened.model.save_pretrained(folders["dense"])
        opened.tokenizer.save_pretrained(folders["dense"])
    for pattern in a.patterns:
        name = f"{a.method} {pattern}"
        folders[name] = out / f"{a.method}-{pattern.replace(':', '-')}"
        if (folders[name] / "config.json").is_file():
            continue
        opened = source.open_model(str(folders["dense"]))
        text = corpus.default_text("calibrate", a.data)[1]
        data = evaluate.token_windows(opened.tokenizer, text, length=512, count=8)
        start = time.perf_counter()
        tamis.sparsify_(opened.model, a.method, pattern=pattern, data=data)
        print(f"pruned {name} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
        tamis.save(opened.model, folders[name], tokenizer=opened.tokenizer)
    if a.w4:
        add_w4(folders, out, a.data)
    return folders


def add_w4(folders: dict[str, Path], out: Path, data: str | None) -> None:
    """Plain W4 and gqsa at 50 %, each with an output layer of plain W4."""
    for name, method, sparsity in (("W4", "magnitude", 0.0), ("gqsa W4 50 %", "gqsa", 0.5)):
        folders[name] = out / f"w4-{method}"
        if (folders[name] / "config.json").is_file():
            continue
        opened = source.open_model(str(folders["dense"]))
        text = corpus.default_text("calibrate", data)[1]
        windows = evaluate.token_windows(opened.tokenizer, text, length=512, count=16)
        start = time.perf_counter()
        report = tamis.sparsify_(
            opened.model, method, sparsity=sparsity, format="groupq", data=windows
        )
        head = {"format": "groupq", "targets": ["lm_head"], "ignore": []}
        tamis.sparsify_(opened.model, "magnitude", sparsity=0.0, **head)
        errors = {k: v for k, v in report.metrics.items() if k.startswith("block_error")}
        print(f"pruned {name} in {time.perf_counter() - start:.1f} s {errors}", file=sys.stderr)
        tamis.save(opened.model, folders[name], tokenizer=opened.tokenizer)


def share(model: torch.nn.Module, ids: list[int], threads: int) -> float:
    """Fraction of a decoded token's time inside the linear layers, by timers around each."""
    spent = [0.0]
    starts: list[float] = []

    def before(*_: object) -> None:
        starts.append(time.perf_counter())

    def after(*_: object) -> None:
        spent[0] += time.perf_counter() - starts.pop()

    kinds = (torch.nn.Linear, tamis.nn.SparseLinear)
    hooks = []
    for module in model.modules():
        if isinstance(module, kinds):
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with evaluate.threads_set(threads), torch.inference_mode():
            out = model(input_ids=torch.tensor([ids]), use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            shares, held = [], evaluate.cache_argument(model)
            for _ in range(12):
                spent[0], start = 0.0, time.perf_counter()
                out = model(input_ids=token, use_cache=True, **{held: getattr(out, held)})
                shares.append(spent[0] / (time.perf_counter() - start))
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(shares)[len(shares) // 2]


def profile(name: str, model: torch.nn.Module, ids: list[int], threads: int) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with evaluate.threads_set(threads), torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        held = evaluate.cache_argument(model)
        with record(activities=[ProfilerActivity.CPU]) as events:
            for _ in range(8):
                out = model(input_ids=token, use_cache=True, **{held: getattr(out, held)})
    print(f"\n{name}, 8 tokens")
    print(
        events.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=34
        )
    )


if __name__ == "__main__":
    main()
