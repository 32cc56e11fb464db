// kv_choose by row on CUDA: what its second launch gets, and the memory between the two.
#pragma once

#include <cstdint>

#include "ops/kv_select/estimate_params.h"

namespace tamis {

inline constexpr int32_t kUniteFewThreads = 256;  // of a block, for few units

struct UniteParams {
  KvSelectArgs select;  // scores: [heads, rows, units]
  int32_t rows;
  int32_t words;      // of 32 units
  uint32_t* tickets;  // a head
  uint32_t* taken;    // [heads, rows, words], units from the first that is not forced on
};

// Both launches, over the workspace of choose_workspace.
EstimateParams rows_params(const KvEstimateArgs& estimate, void* workspace,
                           const CudaDevice& device);
UniteParams unite_params(const KvEstimateArgs& estimate, const KvSelectArgs& select,
                         void* workspace);

}  // namespace tamis
