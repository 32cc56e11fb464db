// kv_quantize from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/kv_quantize/kv_page.cuh"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kQuantizeThreads, 4)
    kv_quantize_kernel(const KvQuantizeParams p) {
  kv_quantize_page(p);
}

Status check(const KvQuantizeArgs& a, const CudaDevice& device) {
  TAMIS_RETURN_IF_ERROR(check_kv_page(a.layout));
  if (a.dtype != DType::f32 && a.dtype != DType::f16 && a.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "kv_quantize: keys: got %s, wanted f32, f16 or bf16",
                 name_of(a.dtype));
  }
  if (a.heads < 0 || a.heads > 65535 || a.pages < 0) {
    return error(Code::invalid_argument, "kv_quantize: got %lld heads, wanted 0 to 65535 on CUDA",
                 static_cast<long long>(a.heads));
  }
  if (a.heads * a.pages > 0 && (!a.keys || !a.values || !a.out)) {
    return error(Code::invalid_argument, "kv_quantize: keys, values, out: got null, wanted arrays");
  }
  if (reinterpret_cast<uintptr_t>(a.out) % 4 != 0 || a.out_stride_bytes % 4 != 0) {
    return error(Code::invalid_argument,
                 "kv_quantize: out: got records that do not start at multiples of 4 bytes");
  }
  if (quantize_shared(a.layout) > device.shared_per_block) {
    return error(Code::no_kernel,
                 "kv_quantize: layout: got pages of %d tokens of %d channels, wanted what fits %d "
                 "bytes of shared memory",
                 a.layout.tokens, a.layout.head_dim, device.shared_per_block);
  }
  return {};
}

}  // namespace

Status kv_quantize_cuda(const KvQuantizeArgs& a, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check(a, device));
  if (a.heads * a.pages == 0) return {};
  return launch_wide<&kv_quantize_kernel>(
      "kv_quantize", device, device.shared_per_block,
      {.grid = dim3(static_cast<uint32_t>(a.pages), static_cast<uint32_t>(a.heads)),
       .threads = kQuantizeThreads,
       .shared_bytes = static_cast<size_t>(quantize_shared(a.layout)),
       .early = device.capability >= 90,
       .stream = stream},
      kv_quantize_params(a));
}

}  // namespace tamis
