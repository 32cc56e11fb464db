"""Whether CUDA is on, and why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tamis
from tamis import _C
from tamis.ops import cuda


def output_of(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_info_says_why_cuda_is_off() -> None:
    said = tamis.info()["backends"]["cuda"]
    reason = cuda.why_off()
    assert said == f"off, {reason}" if reason else said.startswith("on, ")
    assert output_of("import tamis; print(tamis.info()['backends']['cuda'])", TAMIS_CUDA="0") == (
        "off, TAMIS_CUDA=0"
    )


def test_importing_loads_no_cuda_library() -> None:
    code = "import tamis.ops.cuda; print('libtamis_cuda' in open('/proc/self/maps').read())"
    assert output_of(code) == "False"


def test_a_file_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "libtamis_cuda.so"
    broken.write_bytes(b"not a library")
    code = f"from tamis import _C; print(_C.cuda_load({str(broken)!r}))"
    assert str(broken) in output_of(code)


@pytest.mark.skipif(not cuda.why_off(), reason="CUDA is on")
def test_without_cuda_nothing_is_listed_and_handles_refuse() -> None:
    assert cuda.kernel_rows() == []
    with pytest.raises(NotImplementedError, match="not loaded"):
        _C.CudaMatrix(0, 0, 0, 0, 16, 64, "bf16", 0, "t16")
