"""What the tests' expectations depend on of the host."""

from tamis import _C

# Whether nm has kernels that are clearly faster than a bitmap's: not on AVX2 alone.
WIDE = _C.isa()["active"] not in ("avx2", "scalar")
