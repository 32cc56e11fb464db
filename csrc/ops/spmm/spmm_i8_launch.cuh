// Launches of the products of 8-bit codes. Each .cu file includes this once and names its rows.
#pragma once

#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/spmm_i8.cuh"

namespace tamis {

template <class Config>
Status launch_byte_config(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                          void* stream) {
  const bool early = device.capability == 90 && a.w.settled;  // PTX of sm_80 does not wait
  const SpmmI8Params p = spmm_i8_params(a, plan);
  if (p.codes != nullptr) {
    const QuantizeXParams x = quantize_x_params(a, plan);
    TAMIS_RETURN_IF_ERROR(
        launch("spmm",
               {.grid = dim3(static_cast<uint32_t>(ceil_div(int64_t{x.m} * x.chunks, kBlockWarps))),
                .threads = kBlockThreads,
                .shared_bytes = 0,
                .early = early,
                .stream = stream},
               &quantize_x<Config::kType>, x));
  }
  return launch_wide<&spmm_i8<Config>>("spmm", device, device.shared_per_block,
                                       {.grid = dim3(plan.blocks_n, plan.splits),
                                        .threads = kBlockThreads,
                                        .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                                        .early = early,
                                        .stream = stream},
                                       p);
}

template <PackedFormat kFormat, DType kType, bool kGrouped>
Status launch_bytes(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                    void* stream) {
  const auto start = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    return launch_byte_config<ByteConfig<kFormat, kType, kTiles, kGrouped>>(a, plan, device,
                                                                            stream);
  };
  return with_constant<1, 2, 4, 8>(plan.token_tiles, start);
}

template <PackedFormat kFormat, DType kType>
Status launch_spmm_i8(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                      void* stream) {
  return a.w.group_size == 0 ? launch_bytes<kFormat, kType, false>(a, plan, device, stream)
                             : launch_bytes<kFormat, kType, true>(a, plan, device, stream);
}

}  // namespace tamis
