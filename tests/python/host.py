"""What the tests' expectations depend on of the host."""

from tamis import _C

# Whether csr8 and nm have kernels that are faster than a bitmap's: not on AVX2 alone.
WIDE = _C.isa()["active"] not in ("avx2", "scalar")
