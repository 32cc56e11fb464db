// What predictions need to know of a machine besides its instruction set: measured once, or the
// figures of the machine that the kernels' constants were fitted on.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/isa.h"

namespace tamis {

// Tokens at which a dense product is timed; between them time is a line.
inline constexpr int64_t kDenseTokens[] = {1, 2, 4, 8, 16, 64, 256};
inline constexpr int kDensePoints = 7;
// Columns of the two weights it is timed on; between them time per weight is a line in 1 / k.
inline constexpr int64_t kDenseColumns[] = {576, 4096};

// Dense product y = x * w^T of torch, w read from memory: ns per weight.
struct DenseRate {
  double ns[2][2][kDensePoints];  // [one thread, all][narrow, wide][tokens]
};

struct Machine {
  int threads;          // "all" below
  double read_one;      // bytes per ns that plain reads of memory reach on one thread
  double read_all;      // and on all
  double weights_one;   // bytes per ns of weights that kernels read from 4 KB pages, one thread
  double weights_all;   // and all: less than plain reads, as every row begins somewhere else
  double share;         // speed of a thread when all compute, of its speed alone
  double fork;          // ns to start and end a parallel region
  double call;          // ns of a dense call beside its work
  double unpack;        // ns per weight to expand to dense, one thread
  DenseRate dense_f32;  // 16-bit floats share the other
  DenseRate dense_16;
  IsaBits isa;  // says which reference machine's constants the kernels' scales multiply
};

// Whether kernels' constants are those of Emerald Rapids instead of Zen 4's: with FP16, which Zen 4
// and 5 lack, or with VBMI2 but no BF16, which on AMD never occurs (Ice Lake; later Xeons whose
// hypervisor hides both).
// The two differ in more than AMX: vdpbf16ps, expand, products per cycle.
bool has_intel_costs(IsaBits isa);

// `isa` for products of one vector: without BF16 where vdpbf16ps starts every other cycle, so that
// two f32 products are faster (Emerald Rapids, one token over 16k in bf16: 5.3 ms for 6.0).
IsaBits without_slow_bf16(IsaBits isa);

// The machine that constants were fitted on, two cores of it.
const Machine& reference_machine(IsaBits isa = isa::avx512bf16);

// Bytes per ns of weights that `threads` threads read together.
double weight_rate(const Machine& machine, int threads);

// How much faster than one thread `threads` threads compute.
double compute_rate(const Machine& machine, int threads);

// ns of x[m,k] * w[n,k]^T by torch.
double dense_ns(const Machine& machine, DType dtype, int64_t m, int64_t n, int64_t k, int threads);

// ns to expand a compressed w[n,k] of `bytes` stored bytes to dense.
double unpack_ns(const Machine& machine, DType dtype, int64_t n, int64_t k, double bytes,
                 int threads);

}  // namespace tamis
