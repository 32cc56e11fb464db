"""Times tamis beside every CPU peer that this machine has: one run, taking turns, medians.

    python bench/peers.py --setup      # once: the peers' own environments, wheels from PyPI
    python bench/peers.py --quick      # few shapes, minutes
    python bench/peers.py --json out/peers.json --plots out
    python bench/peers.py --json out/peers.json --resume    # what an interrupted run left out
    python bench/peers.py --read out/peers.json --plots out
    python bench/peers.py --shapes llama3-qo 2048x1024 --densities 0.5 --batch 1 16 --threads 1
    python bench/peers.py --only "torch f32" "tamis f32"

Every candidate multiplies copies of its weight that together exceed the caches (--cold-mb), so a
call reads its weight from memory. onnxruntime and DeepSparse, which hold weights inside a model, get
a model of several layers, evicted before each call. A candidate's result is compared with the dense
product first; a wrong one is marked and not timed. Rounds of all candidates take turns; the median
of 7 counts (of 3, for a sparse candidate over 4 times slower than the best of its dtype, or one
that has computed for half a second). One thread is timed by the CPU time
of its process, several by the wall. Plain
stream reads are timed in the same rounds, and shares of their speed are per round. A peer that is
absent costs one line; ggml (llama.cpp) takes part where llama-cpp-python is installed beside torch.
Peers get the layout they like best: x [k,m] for w @ x products, int32
indices, prepacked weights. Two threads need a quiet machine: a parallel region waits for its last
thread, so on a busy one it measures the scheduler.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from peerlib.cases import (
    BATCHES,
    CANDIDATES,
    DENSITIES,
    PEERS,
    PIXELS,
    SHAPES,
    Candidate,
)
from peerlib.compare import ROUNDS, Comparison, Plan, Row
from peerlib.process import Absent, Worker, default_folder, set_up
from peerlib.table import loss_lines, notes, tables

Candidates = Sequence[Candidate]
NAMES = tuple(c.name for c in CANDIDATES)
QUICK: dict[str, Any] = {
    "shapes": ["smollm2-up", "llama3-kv"],
    "densities": [0.5, 0.2],
    "batch": [1, 8, 64],
}


def main() -> int:
    """Runs the command line."""
    args = _arguments()
    if args.setup:
        set_up(args.environments)
        return 0
    host, rows = read(args.read) if args.read else measure(args)
    if args.json:
        save(args.json, host, rows)
    report(host, rows)
    if args.plots:
        from plot import draw

        for path in draw(rows, args.plots):
            print(path)
    return 0


def measure(args: argparse.Namespace) -> tuple[dict[str, str], list[Row]]:
    """Facts about the host, and every row."""
    host = host_facts()
    host["command"] = "bench/peers.py " + " ".join(sys.argv[1:])
    chosen = [c for c in CANDIDATES if c.peer in args.peers and c.name in (args.only or NAMES)]
    workers = _start(dict.fromkeys(["main", *(c.worker for c in chosen)]), args, host)
    present = [c for c in chosen if c.worker in workers]
    rows = read([args.json])[1] if args.resume and args.json and args.json.exists() else []
    start = time.monotonic()

    def say(what: str) -> None:
        if not args.quiet:
            print(f"\r{time.monotonic() - start:6.0f} s  {what:70}", end="", file=sys.stderr)

    for name, density in ((name, d) for name in args.shapes for d in args.densities):
        points = missing(rows, name, density, args, present)
        if not points:
            continue
        plan = Plan(points, present, args.cold_mb << 20, args.seed, args.rounds)
        for point in Comparison(workers, plan, (name, *_size(name)), density).run(say):
            new = {key_of(row) for row in point}
            rows = [row for row in rows if key_of(row) not in new] + point
            if args.json:
                save(args.json, host, rows)  # what is done outlives an interruption
    say(f"done, {len(rows)} results\n")
    for worker in workers.values():
        worker.close()
    return host, rows


def key_of(row: Row) -> tuple[str, float, int, int, str]:
    """What no two rows of a report share."""
    return row.shape, row.density, row.threads, row.m, row.candidate


def missing(
    rows: Sequence[Row], shape: str, density: float, args: argparse.Namespace, wanted: Candidates
) -> list[tuple[int, int]]:
    """Threads and m of the points where a candidate that takes part has no row."""
    there = {key_of(row) for row in rows}
    return [
        (threads, m)
        for threads in args.threads
        for m in args.batch or PIXELS.get(shape, BATCHES)
        if any(
            (shape, density, threads, m, c.name) not in there
            for c in wanted
            if c.fits(density, threads)
        )
    ]


def save(path: Path, host: dict[str, str], rows: list[Row]) -> None:
    """What --read reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"host": host, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(data, indent=1))


def _start(
    kinds: Iterable[str], args: argparse.Namespace, host: dict[str, str]
) -> dict[str, Worker]:
    """Every worker that this machine can run; their versions go to ``host``."""
    workers: dict[str, Worker] = {}
    for kind in kinds:
        try:
            workers[kind] = Worker(kind, args.environments, Path(args.log))
            host.update(workers[kind].ask("hello"))
        except Absent as err:
            if kind == "main":
                raise SystemExit(f"tamis and torch: {err}") from err
            print(f"{kind}: left out: {err}")
    return workers


def report(host: dict[str, str], rows: list[Row]) -> None:
    """Prints everything."""
    print(" · ".join(f"{name} {value}" for name, value in host.items()), end="\n\n")
    print(tables(rows), end="\n\n")
    print(*notes(rows), sep="\n")
    lines = loss_lines(rows)
    print(f"tamis more than 3 % slower than the best dense peer of its dtype: {len(lines)} points")
    print(*lines, sep="\n")


def read(paths: Sequence[Path]) -> tuple[dict[str, str], list[Row]]:
    """What --json wrote, one run or more; of a point measured twice, and of facts, the last."""
    host: dict[str, str] = {}
    rows: dict[tuple[str, float, int, int, str], Row] = {}
    names = {field.name for field in fields(Row)}
    for path in paths:
        data = json.loads(path.read_text())
        host.update(data["host"])
        for row in data["rows"]:
            found = Row(**{name: value for name, value in row.items() if name in names})
            rows[key_of(found)] = found
    return host, list(rows.values())


def host_facts() -> dict[str, str]:
    """CPU and versions."""
    facts = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu family", "model"):
            facts.setdefault("cpu " + key.strip().removeprefix("cpu "), value.strip())
    return facts


def _size(name: str) -> tuple[int, int]:
    if name in SHAPES:
        return SHAPES[name]
    n, _, k = name.partition("x")
    if n.isdigit() and k.isdigit():
        return int(n), int(k)
    raise SystemExit(f"--shapes: got {name}, wanted NxK or one of {', '.join(SHAPES)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--setup", action="store_true", help="make the peers' environments and stop")
    add("--quick", action="store_true", help="two shapes, two densities, three batches")
    add("--shapes", nargs="+", help=f"NxK or of {', '.join(SHAPES)}")
    add("--densities", nargs="+", type=float)
    add("--batch", nargs="+", type=int, help="rows of x; default 1 to 256, pixels for MobileNet")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--peers", nargs="+", default=PEERS, choices=PEERS)
    add("--only", nargs="+", choices=NAMES, metavar="NAME", help='like "torch f32", of --peers')
    add("--json", type=Path, help="write the results")
    add("--resume", action="store_true", help="keep what --json holds, measure what it lacks")
    add("--read", nargs="+", type=Path, help="show what --json wrote instead of measuring")
    add("--plots", type=Path, help="folder for PNG files")
    add("--cold-mb", type=int, default=480, help="copies of a weight together exceed this")
    add("--environments", type=Path, default=default_folder(), help="folder of --setup")
    add("--log", type=Path, default="/dev/null", help="file for what the peers print")
    add("--seed", type=int, default=0)
    add("--rounds", type=int, default=ROUNDS, help="at most, 2 or more; three of what takes long")
    add("--quiet", action="store_true", help="no progress line")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(
            f"--rounds: got {args.rounds}, wanted at least 2, for medians and their spread"
        )
    defaults: dict[str, Any] = QUICK if args.quick else {}
    args.shapes = args.shapes or defaults.get("shapes", list(SHAPES))
    args.densities = args.densities or defaults.get("densities", DENSITIES)
    args.batch = args.batch or defaults.get("batch")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
