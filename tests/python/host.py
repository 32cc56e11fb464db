"""What the tests' expectations depend on of the host."""

import pytest

from tamis import _C
from tamis.ops import cuda

# Whether nm has kernels that are clearly faster than a bitmap's: not on AVX2 alone.
WIDE = _C.isa()["active"] not in ("avx2", "scalar")

needs_device = pytest.mark.skipif(bool(cuda.why_off()), reason=f"CUDA is off: {cuda.why_off()}")
