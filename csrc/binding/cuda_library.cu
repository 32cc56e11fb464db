// The table of tamis_cuda. The CUDA runtime is linked statically and touches nothing before a call.
#include <cuda_runtime.h>

#include <cstdio>

#include "binding/cuda_abi.h"

namespace tamis {
namespace {

Status failed(const char* what, cudaError_t result) {
  (void)cudaGetLastError();  // forget it
  return error(Code::no_kernel, "%s: %s", what, cudaGetErrorString(result));
}

Status count(int32_t* devices) {
  int n = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&n); result != cudaSuccess) {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
      return error(Code::no_kernel, "no NVIDIA driver");
    }
    return failed("no device", result);
  }
  *devices = n;
  return {};
}

Status describe(int32_t device, CudaDevice* facts, char* text, int64_t size) {
  int major = 0, minor = 0;
  *facts = {.index = device};
  const struct {
    cudaDeviceAttr attribute;
    int* value;
  } wanted[] = {{cudaDevAttrComputeCapabilityMajor, &major},
                {cudaDevAttrComputeCapabilityMinor, &minor},
                {cudaDevAttrMultiProcessorCount, &facts->sms},
                {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &facts->shared_per_sm},
                {cudaDevAttrMaxSharedMemoryPerBlockOptin, &facts->shared_per_block}};
  for (const auto& [attribute, value] : wanted) {
    const cudaError_t result = cudaDeviceGetAttribute(value, attribute, device);
    if (result != cudaSuccess) return failed("device attribute", result);
  }
  facts->capability = 10 * major + minor;
  cudaDeviceProp properties;
  if (const cudaError_t result = cudaGetDeviceProperties(&properties, device);
      result != cudaSuccess) {
    return failed("device properties", result);
  }
  std::snprintf(text, static_cast<size_t>(size), "%s", properties.name);
  return {};
}

constexpr CudaLibrary kLibrary{.abi = kCudaAbi,
                               .count = &count,
                               .describe = &describe,
                               .graph_workspace = &graph_workspace,
                               .spmm_kernels = &spmm_cuda_kernels,
                               .choose_spmm = &choose_spmm_cuda,
                               .spmm = &spmm_cuda,
                               .expand = &expand_cuda,
                               .kv_quantize = &kv_quantize_cuda,
                               .kv_gather = &kv_gather_cuda,
                               .merge_kernels = &merge_cuda_kernels,
                               .kv_merge = &kv_merge_cuda,
                               .kv_fetch = &kv_fetch_cuda,
                               .rebuild_kernels = &rebuild_cuda_kernels,
                               .kv_rebuild = &kv_rebuild_cuda,
                               .kv_append_labels = &kv_append_labels_cuda,
                               .estimate_workspace = &estimate_workspace,
                               .kv_estimate = &kv_estimate_cuda,
                               .mass_kernels = &mass_cuda_kernels,
                               .mass_workspace = &mass_workspace,
                               .kv_mass = &kv_mass_cuda,
                               .kv_select = &kv_select_cuda,
                               .choose_fits = &kv_choose_fits,
                               .choose_workspace = &choose_workspace,
                               .kv_choose = &kv_choose_cuda,
                               .attention_kernels = &attention_cuda_kernels,
                               .attention_workspace = &attention_workspace,
                               .attention = &sparse_attention_cuda,
                               .chosen_fits = &chosen_attention_fits,
                               .chosen_attention = &chosen_attention_cuda,
                               .sparse_input_kernels = &sparse_input_cuda_kernels,
                               .sparse_input_workspace = &sparse_input_workspace,
                               .sparse_input = &sparse_input_cuda,
                               .sparse_mlp_kernels = &sparse_mlp_cuda_kernels,
                               .sparse_mlp_workspace = &sparse_mlp_workspace,
                               .sparse_mlp = &sparse_mlp_cuda,
                               .prefill_kernels = &prefill_cuda_kernels,
                               .prefill = &prefill_attention_cuda,
                               .prefill_workspace = &prefill_workspace_cuda,
                               .spmm_grad_kernels = &spmm_grad_cuda_kernels,
                               .unpack_mask = &unpack_mask_cuda,
                               .gather_mask = &gather_mask_cuda,
                               .spgemm_kernels = &spgemm_cuda_kernels,
                               .spgemm_workspace = &spgemm_workspace,
                               .spgemm_count = &spgemm_count_cuda,
                               .spgemm_fill = &spgemm_fill_cuda};

}  // namespace
}  // namespace tamis

extern "C" __attribute__((visibility("default"))) const tamis::CudaLibrary* tamis_cuda_library() {
  return &tamis::kLibrary;
}
