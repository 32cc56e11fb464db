// Devices and shapes that plans are tested for.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "base/cuda/device.h"

namespace tamis::test {

inline constexpr CudaDevice kH100{
    .capability = 90, .sms = 132, .shared_per_sm = 233472, .shared_per_block = 232448};
inline constexpr CudaDevice kA100{
    .capability = 80, .sms = 108, .shared_per_sm = 167936, .shared_per_block = 166912};
inline constexpr CudaDevice kL40{
    .capability = 89, .sms = 142, .shared_per_sm = 102400, .shared_per_block = 101376};

// Shapes [n, k]: the least that a format takes, few and many rows, and those of Llama-3-8B.
constexpr std::array<std::pair<int64_t, int64_t>, 8> plan_shapes(int64_t least_n, int64_t least_k) {
  return {{{least_n, least_k},
           {16, 131072},
           {1024, 4096},
           {4096, 4096},
           {14336, 4096},
           {4096, 14336},
           {128256, 4096},
           {1 << 20, 64}}};
}

}  // namespace tamis::test
