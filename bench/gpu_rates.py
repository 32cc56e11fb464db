"""Rates of a CUDA device that decoding is bound by: POPC, SHFL and LDS a clock and SM (with CuPy)."""

from __future__ import annotations

from typing import Any

SOURCE = r"""
extern "C" __global__ void rate(unsigned* out, long long* clocks, int which) {
  __shared__ unsigned short s[2048];
  unsigned a = threadIdx.x, b = a * 7, c = a * 13, d = a * 29;
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) s[i] = i;
  __syncthreads();
  const long long start = clock64();
  if (which == 0) {
#pragma unroll 8
    for (int i = 0; i < 256; ++i) { a = __popc(a) + i; b = __popc(b) + i; c = __popc(c) + i; d = __popc(d) + i; }
  } else if (which == 1) {
#pragma unroll 8
    for (int i = 0; i < 256; ++i) {
      a = __shfl_xor_sync(~0u, a, 1); b = __shfl_xor_sync(~0u, b, 2);
      c = __shfl_xor_sync(~0u, c, 4); d = __shfl_xor_sync(~0u, d, 8);
    }
  } else if (which == 2) {
#pragma unroll 8
    for (int i = 0; i < 256; ++i) { a = s[a & 2047]; b = s[b & 2047]; c = s[c & 2047]; d = s[d & 2047]; }
  } else {
#pragma unroll 8
    for (int i = 0; i < 256; ++i) { a = a * 3 + b; b = b * 5 + c; c = c * 7 + d; d = d * 9 + a; }
  }
  const long long end = clock64();
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - start;
  out[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d;
}
"""


def rates() -> dict[str, Any]:
    """Lane operations a clock of one SM, from a block of 1024 threads."""
    try:
        import cupy
    except ImportError:
        return {"skipped": "no cupy"}
    kernel = cupy.RawKernel(SOURCE, "rate")
    out = cupy.zeros(1024, cupy.uint32)
    clocks = cupy.zeros(1, cupy.int64)
    found = {}
    for which, name in enumerate(("popc", "shfl", "lds_u16", "imad")):
        best = 1 << 62
        for _ in range(5):
            kernel((1,), (1024,), (out, clocks, which))
            best = min(best, int(clocks.get()[0]))
        found[name] = 1024 * 256 * 4 / best
    print("  lane operations a clock and SM:", {k: round(v, 1) for k, v in found.items()})
    return found
