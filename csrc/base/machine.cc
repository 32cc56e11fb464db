// Reference figures, and the times that follow from a machine's.
#include "base/machine.h"

#include <algorithm>

namespace tamis {
namespace {

// `tamis info --measure` on an AMD EPYC 9004 virtual machine with two cores, torch 2.13.
constexpr Machine kZen4{
    .threads = 2,
    .read_one = 23.0,
    .read_all = 33.0,
    .weights_one = 25.0,
    .weights_all = 42.0,
    .share = 0.96,
    .fork = 1700,
    .call = 4000,
    .unpack = 0.55,
    .dense_f32 =
        {{{{0.40, 0.55, 0.47, 0.55, 0.70, 1.65, 5.6}, {0.22, 0.44, 0.43, 0.51, 0.68, 1.7, 5.7}},
          {{0.37, 0.55, 0.45, 0.42, 0.50, 1.0, 3.1}, {0.20, 0.44, 0.42, 0.39, 0.46, 0.95, 2.9}}}},
    .dense_16 = {{{{0.29, 0.29, 0.32, 0.35, 0.43, 0.83, 2.6},
                   {0.21, 0.18, 0.22, 0.24, 0.34, 0.73, 2.4}},
                  {{0.20, 0.21, 0.19, 0.21, 0.25, 0.45, 1.35},
                   {0.12, 0.11, 0.11, 0.13, 0.17, 0.38, 1.22}}}},
    .isa = isa::avx512bf16,
};

// `tamis info --measure` on an AMD EPYC 7003 (Zen 3) virtual machine, torch 2.13, for hosts without
// AVX-512: torch multiplies 16-bit floats one by one there. Its two threads share a core; two are
// taken to be to one as on Zen 4, and to share a dense product at 0.96.
constexpr Machine kZen3{
    .threads = 2,
    .read_one = 23.1,
    .read_all = 33.0,
    .weights_one = 14.1,
    .weights_all = 23.7,
    .share = 0.96,
    .fork = 1200,
    .call = 3200,
    .unpack = 0.48,
    .dense_f32 = {{{{0.361, 0.577, 0.544, 0.655, 0.856, 2.03, 6.93},
                    {0.202, 0.403, 0.512, 0.656, 0.763, 1.86, 6.15}},
                   {{0.188, 0.301, 0.283, 0.341, 0.446, 1.06, 3.61},
                    {0.105, 0.21, 0.267, 0.342, 0.397, 0.969, 3.2}}}},
    .dense_16 = {{{{0.263, 0.491, 0.892, 1.87, 3.43, 13.7, 55.6},
                   {0.195, 0.383, 0.77, 1.52, 2.98, 11.8, 46.9}},
                  {{0.137, 0.256, 0.465, 0.974, 1.79, 7.14, 29},
                   {0.102, 0.199, 0.401, 0.792, 1.55, 6.15, 24.4}}}},
    .isa = isa::avx2,
};

// As for Zen 4, on an Intel Xeon (family 6, model 207) virtual machine with two cores that
// shows AMX; two threads are taken to share a dense product at 0.96.
constexpr Machine kEmeraldRapids{
    .threads = 2,
    .read_one = 12.4,
    .read_all = 23.5,
    .weights_one = 15.2,
    .weights_all = 29.0,
    .share = 0.97,
    .fork = 1200,
    .call = 2700,
    .unpack = 0.46,
    .dense_f32 = {{{{0.274, 0.318, 0.461, 0.607, 0.636, 1.24, 3.64},
                    {0.227, 0.229, 0.425, 0.606, 0.621, 1.2, 3.54}},
                   {{0.143, 0.165, 0.24, 0.315, 0.331, 0.645, 1.89},
                    {0.118, 0.119, 0.221, 0.315, 0.323, 0.624, 1.84}}}},
    .dense_16 = {{{{0.268, 0.28, 0.28, 0.28, 0.297, 0.386, 0.676},
                   {0.178, 0.182, 0.198, 0.198, 0.224, 0.3, 0.718}},
                  {{0.154, 0.158, 0.158, 0.159, 0.167, 0.219, 0.385},
                   {0.12, 0.12, 0.127, 0.127, 0.132, 0.17, 0.4}}}},
    .isa = isa::amx,
};

// `tamis info --measure` on such a machine, otherwise idle, whose hypervisor hides AMX and BF16;
// torch multiplies 16-bit floats as f32 there.
constexpr Machine kWithoutAmx{
    .threads = 2,
    .read_one = 13.2,
    .read_all = 25.1,
    .weights_one = 15.5,
    .weights_all = 29.5,
    .share = 0.98,
    .fork = 860,
    .call = 2300,
    .unpack = 0.38,
    .dense_f32 = {{{{0.251, 0.272, 0.407, 0.52, 0.599, 1.12, 3.25},
                    {0.239, 0.249, 0.482, 0.64, 0.64, 1.08, 3.2}},
                   {{0.129, 0.141, 0.19, 0.221, 0.281, 0.613, 1.77},
                    {0.125, 0.128, 0.241, 0.328, 0.328, 0.549, 1.61}}}},
    .dense_16 = {{{{0.257, 0.367, 0.49, 0.743, 1.24, 4.27, 16.5},
                   {0.245, 0.326, 0.451, 0.704, 1.19, 4.21, 16.2}},
                  {{0.134, 0.231, 0.334, 0.462, 0.705, 2.24, 8.21},
                   {0.126, 0.143, 0.311, 0.438, 0.689, 2.23, 8.2}}}},
    .isa = isa::avx512vbmi2,
};

// The same where the hypervisor hides AMX alone: torch multiplies pairs of bf16 by vdpbf16ps.
constexpr Machine kWithoutTiles = [] {
  Machine machine = kWithoutAmx;
  machine.dense_16 = {{{{0.25, 0.279, 0.341, 0.428, 0.614, 1.72, 6.23},
                        {0.223, 0.242, 0.291, 0.384, 0.57, 1.7, 6.17}},
                       {{0.169, 0.168, 0.196, 0.244, 0.337, 0.886, 3.16},
                        {0.137, 0.128, 0.16, 0.196, 0.301, 0.852, 3.12}}}};
  machine.isa = isa::avx512fp16;
  return machine;
}();

// Between the two timed thread counts, and beyond, time goes with 1 / threads.
double at_threads(double one, double all, int threads, int all_threads) {
  if (threads <= 1 || all_threads <= 1) return one / std::max(threads, 1);
  if (threads >= all_threads) return all * all_threads / threads;
  const double share = (1.0 - 1.0 / threads) / (1.0 - 1.0 / all_threads);
  return one + (all - one) * share;
}

double at_tokens(const double (&ns)[kDensePoints], int64_t m) {
  if (m <= kDenseTokens[0]) return ns[0];
  int i = 1;
  while (i < kDensePoints - 1 && m > kDenseTokens[i]) ++i;
  const auto low = static_cast<double>(kDenseTokens[i - 1]);
  const auto high = static_cast<double>(kDenseTokens[i]);
  const double slope = (ns[i] - ns[i - 1]) / (high - low);
  return ns[i - 1] + std::max(slope, 0.0) * (static_cast<double>(m) - low);
}

}  // namespace

bool has_intel_costs(IsaBits isa) {
  const bool bf16 = (isa & isa::avx512bf16) == isa::avx512bf16;
  return (isa & isa::kAvx512Fp16) != 0 || ((isa & isa::avx512vbmi2) == isa::avx512vbmi2 && !bf16);
}

IsaBits without_slow_bf16(IsaBits isa) {
  return has_intel_costs(isa) ? isa & ~isa::kAvx512Bf16 : isa;
}

const Machine& reference_machine(IsaBits isa) {
  if ((isa & (isa::kAvx2 | isa::kAvx512)) == isa::kAvx2) return kZen3;
  if (!has_intel_costs(isa)) return kZen4;
  if ((isa & isa::amx) == isa::amx) return kEmeraldRapids;
  return (isa & isa::avx512fp16) == isa::avx512fp16 ? kWithoutTiles : kWithoutAmx;
}

double weight_rate(const Machine& machine, int threads) {
  return 1 / at_threads(1 / machine.weights_one, 1 / machine.weights_all,
                        std::min(threads, machine.threads), machine.threads);
}

double compute_rate(const Machine& machine, int threads) {
  return 1 / at_threads(1, 1 / (machine.share * machine.threads), threads, machine.threads);
}

double dense_ns(const Machine& machine, DType dtype, int64_t m, int64_t n, int64_t k, int threads) {
  if (m <= 0 || n <= 0 || k <= 0) return machine.call;
  const DenseRate& rate = dtype == DType::f32 ? machine.dense_f32 : machine.dense_16;
  const double narrow = 1.0 / kDenseColumns[0], wide = 1.0 / kDenseColumns[1];
  const double at = std::clamp((1.0 / static_cast<double>(k) - wide) / (narrow - wide), 0.0, 2.0);
  double ns[2];
  for (const int all : {0, 1}) {
    const double w = at_tokens(rate.ns[all][1], m), s = at_tokens(rate.ns[all][0], m);
    ns[all] = std::max(w + (s - w) * at, 0.5 * w);
  }
  const double each = at_threads(ns[0], ns[1], threads, machine.threads);
  return machine.call + each * static_cast<double>(n) * static_cast<double>(k);
}

double unpack_ns(const Machine& machine, DType dtype, int64_t n, int64_t k, double bytes,
                 int threads) {
  const double weights = static_cast<double>(n) * static_cast<double>(k);
  const double moved = bytes + weights * static_cast<double>(size_of(dtype));
  return std::max(machine.unpack * weights / std::max(threads, 1),
                  moved / weight_rate(machine, threads)) +
         machine.fork;
}

}  // namespace tamis
