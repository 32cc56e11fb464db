#include "ops/sparse_attention/chosen_launch.cuh"

namespace tamis {

template Status chosen_attention_sm90<DType::f16, 128>(const ChosenAttentionArgs&,
                                                       const CudaDevice&, void*);

}  // namespace tamis
