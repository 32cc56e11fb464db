"""SmolLM2-135M, bf16: decode speed, bytes and perplexity, dense torch against tamis, in one run.

`python bench/e2e.py` prunes (cached under out/e2e), reloads, lets the models take turns, prints a
table and says what share of a token's time the linear layers take. `--prefill 512` times a prompt of
that many tokens, `--llama FILE.gguf` llama.cpp on a file where llama-cpp-python is installed, both in
turns as well. `--profile` adds torch's own profile of one dense and one sparse decode.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import tamis
from tamis import commands, corpus, evaluate, source
from tamis.report import Report, Variant, host_facts

Speeds = dict[str, evaluate.DecodeSpeed]


def main() -> None:
    a = arguments()
    commands.quiet()
    folders = prune_all(a)
    opened = {name: source.open_model(str(folder)) for name, folder in folders.items()}
    if a.fuse:
        add_fused(folders, opened)
    models = {name: each.model for name, each in opened.items()}
    ids = opened["dense"].tokenizer("A sieve is a kitchen tool that")["input_ids"]
    speeds = decode(models, ids, a)
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
    # A fused model would leave its one call to the hooks of these timers.
    whole = {n: m for n, m in models.items() if not n.endswith(", fused")}
    metrics = {f"{n}_linear_share": share(m, ids, a.threads) for n, m in whole.items()}
    host = host_facts(decode_threads=a.threads)
    report = Report(f"SmolLM2 bf16, {a.method}, {a.threads} thread(s)", [], metrics, host, variants)
    report.print()
    if a.json:
        report.to_json(a.json)
    if a.prefill:
        print_prefill(models, a.prefill, a.threads)
    if a.profile:
        for name in list(models)[:2]:
            profile(name, models[name], ids, a.threads)


def arguments() -> argparse.Namespace:
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
    parser.add_argument("--prefill", type=int, default=0, help="tokens of a prompt to time")
    parser.add_argument("--llama", nargs="*", default=[], help="GGUF files for llama.cpp")
    parser.add_argument("--fuse", action="store_true", help="also the models after fuse_decode_")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", help="also write the report here")
    return parser.parse_args()


def decode(models: dict[str, torch.nn.Module], ids: list[int], a: argparse.Namespace) -> Speeds:
    """Speeds of the models; those of llama.cpp, timed before and after them, are printed."""
    others = [Llama(path, ids, a.threads) for path in a.llama]
    for other in others:
        other.step(a.tokens)
    speeds = evaluate.decode_speed(models, ids, new_tokens=a.tokens, threads=a.threads)
    for other in others:
        other.step(a.tokens)
        rate = 1 / sorted(other.times)[len(other.times) // 2]
        of_dense = rate / speeds["dense"].tokens_per_s
        print(f"llama.cpp {other.name}: {rate:.1f} tokens/s, {of_dense:.2f}x")
    return speeds


class Llama:
    """llama.cpp on one file, a token at a time; which token it reads does not matter to its speed."""

    def __init__(self, path: str, ids: list[int], threads: int) -> None:
        from llama_cpp import Llama as Model

        self.name, self.token, self.times = Path(path).name, ids[-1], list[float]()
        self.model = Model(path, n_ctx=1024, n_threads=threads, n_batch=512, verbose=False)
        self.model.eval(ids)

    def step(self, count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            self.model.eval([self.token])
            self.times.append(time.perf_counter() - start)


def print_prefill(models: dict[str, torch.nn.Module], tokens: int, threads: int) -> None:
    """What a prompt takes each model, median of three turns after one that warms up."""
    ids = torch.arange(tokens).unsqueeze(0) + 100
    times: dict[str, list[float]] = {name: [] for name in models}
    with evaluate.threads_set(threads), torch.inference_mode():
        for _ in range(4):
            for name, model in models.items():
                start = time.perf_counter()
                model(input_ids=ids, use_cache=True, logits_to_keep=1)
                times[name].append(time.perf_counter() - start)
    for name, found in times.items():
        print(f"{tokens} tokens of prompt, {name}: {sorted(found[1:])[1] * 1e3:.0f} ms")


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


def add_fused(folders: dict[str, Path], opened: dict[str, source.Opened]) -> None:
    """Every compressed model once more, after fuse_decode_."""
    for name, folder in list(folders.items())[1:]:
        fused = f"{name}, fused"
        folders[fused], opened[fused] = folder, source.open_model(str(folder))
        tamis.fuse_decode_(opened[fused].model)


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
