"""Starts the worker processes, each with the interpreter that has its packages."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]

# Packages of the peers that do not live beside torch, and the newest Python that has wheels.
ENVIRONMENTS = {
    "engines": (("onnxruntime", "sparse_dot_mkl", "mkl", "scipy", "numpy"), ""),
    "deepsparse": (("deepsparse==1.8.0",), "python3.11"),
}
HOME_OF = {"mkl": "engines", "onnxruntime": "engines", "deepsparse": "deepsparse"}


def default_folder() -> Path:
    """Where the peers' environments are, unless --environments says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tamis" / "peers"


def set_up(folder: Path) -> None:
    """Makes the peers' environments from wheels; one that fails is reported and left out."""
    for name, (packages, python) in ENVIRONMENTS.items():
        found = shutil.which(python) if python else sys.executable
        if not found:
            print(f"{name}: left out, it needs {python}")
            continue
        pip = folder / name / "bin" / "pip"
        steps = (
            [found, "-m", "venv", str(folder / name)],
            [str(pip), "install", "--quiet", "--only-binary", ":all:", *packages],
        )
        done = all(subprocess.run(step, check=False).returncode == 0 for step in steps)
        print(f"{name}: {'ready' if done else 'failed'}")


class Absent(Exception):
    """A worker cannot run here; the text says why."""


class Worker:
    """One process; ``ask`` blocks, so only one computes at a time.

    Between two requests the process is stopped: idle threads of most libraries spin for a while,
    OpenMP's of GCC for 13 ms where a pause takes 140 cycles, on the cores that the next peer uses.
    """

    def __init__(self, kind: str, folder: Path, log: Path) -> None:
        python = Path(sys.executable)
        if kind in HOME_OF:
            python = folder / HOME_OF[kind] / "bin" / "python"
        if not python.exists():
            raise Absent(f"no environment {python.parent.parent}, make it with --setup")
        package = BENCH.parent / "python"
        path = [str(BENCH), str(package)] if kind == "main" else [str(BENCH)]
        path += filter(None, [os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        self._process = subprocess.Popen(
            [str(python), "-m", "peerlib.worker", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            env=environment,
            text=True,
        )
        self._alive = True
        hello = self._read()
        if "failed" in hello:
            raise Absent(str(hello["failed"]))

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Answer of the worker; {"failed": sentence} if it could not."""
        if not self._alive or self._process.stdin is None:
            return {"failed": "its process has died"}
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._alive = False
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.send_signal(signal.SIGCONT)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._alive = False
            return {"failed": "its process has died"}
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer
