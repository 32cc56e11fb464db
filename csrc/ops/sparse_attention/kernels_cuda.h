// Declares every kernel of kernels_cuda.def.
#pragma once

#include "ops/sparse_attention/attention_params.h"

namespace tamis {
#define TAMIS_ATTENTION_PAGES(name, bits, d, tokens, group)                                        \
  Status sparse_attention_##name##_d##d##_sm80up(const AttentionCudaParams&, const AttentionPlan&, \
                                                 int32_t heads, const CudaDevice&, void*);
#define TAMIS_ATTENTION_ROWS(dtype, d)             \
  Status sparse_attention_##dtype##_d##d##_sm80up( \
      const AttentionCudaParams&, const AttentionPlan&, int32_t heads, const CudaDevice&, void*);
#include "ops/sparse_attention/kernels_cuda.def"
#undef TAMIS_ATTENTION_PAGES
#undef TAMIS_ATTENTION_ROWS
// chosen_attention_cuda of one dtype and d: f16 and bf16, 64 and 128.
template <DType kType, int kDim>
Status chosen_attention_sm90(const ChosenAttentionArgs& args, const CudaDevice& device,
                             void* stream);

}  // namespace tamis
