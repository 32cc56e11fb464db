// Devices that plans are tested for.
#pragma once

#include "base/cuda/device.h"

namespace tamis::test {

inline constexpr CudaDevice kH100{
    .capability = 90, .sms = 132, .shared_per_sm = 233472, .shared_per_block = 232448};
inline constexpr CudaDevice kA100{
    .capability = 80, .sms = 108, .shared_per_sm = 167936, .shared_per_block = 166912};
inline constexpr CudaDevice kL40{
    .capability = 89, .sms = 142, .shared_per_sm = 102400, .shared_per_block = 101376};

}  // namespace tamis::test
