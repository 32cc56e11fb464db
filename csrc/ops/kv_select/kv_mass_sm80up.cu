// kv_mass from sm_80 on.
#include "base/cuda/launch.h"
#include "format/matrix.h"
#include "ops/kv_select/mass.cuh"

namespace tamis {
namespace {

template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kTileThreads, 3) kv_mass_rows(const MassParams p) {
  mass_rows<Config>(p);
}
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kTileThreads, 3) kv_mass_columns(const MassParams p) {
  mass_columns<Config>(p);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kMassMergeThreads, 4) kv_mass_merge(const MassParams p) {
  mass_merge(p);
}

CudaGrid grid(int64_t blocks, int64_t heads, uint32_t threads, int32_t shared_bytes, bool early,
              void* stream) {
  return {.grid = dim3(static_cast<uint32_t>(blocks), static_cast<uint32_t>(heads)),
          .threads = threads,
          .shared_bytes = static_cast<size_t>(shared_bytes),
          .early = early,
          .stream = stream};
}

template <class Config>
Status run(const MassParams& p, bool columns, const CudaDevice& device, void* stream) {
  const int32_t all = columns ? p.tokens : p.rows;
  const int64_t blocks = ceil_div(all, Config::kKept) * (columns ? 1 : p.splits);
  const CudaGrid g = grid(blocks, p.heads, kTileThreads, mass_shared(Config::kKept, p.row_bytes),
                          device.capability >= 90, stream);
  const int32_t most = device.shared_per_block;
  return columns ? launch_wide<&kv_mass_columns<Config>>("kv_mass", device, most, g, p)
                 : launch_wide<&kv_mass_rows<Config>>("kv_mass", device, most, g, p);
}

// In the order of mass_cuda_kernels(), from the same list.
constexpr Status (*kLaunchers[])(const MassParams&, bool, const CudaDevice&, void*) = {
#define TAMIS_KV_MASS_CUDA(dtype, row_tiles) &run<MassConfig<DType::dtype, row_tiles>>,
#include "ops/kv_select/kernels_cuda.def"
#undef TAMIS_KV_MASS_CUDA
};

}  // namespace

Status kv_mass_cuda(const KvMassArgs& a, void* workspace, int64_t workspace_bytes,
                    const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_mass_cuda(a));
  if (workspace_bytes < mass_workspace(a, device) ||
      reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
    return error(Code::invalid_argument,
                 "kv_mass: workspace: got %lld bytes, wanted %lld at a multiple of 16",
                 static_cast<long long>(workspace_bytes),
                 static_cast<long long>(mass_workspace(a, device)));
  }
  const MassParams p = mass_params(a, workspace, device);
  if (int64_t{p.heads} * p.rows == 0 || p.tokens == 0) return {};
  const auto launch_pass = [&](bool columns) {
    const MassCudaRow* row = choose_mass_cuda(a, columns);
    return kLaunchers[row - mass_cuda_kernels().data()](p, columns, device, stream);
  };
  TAMIS_RETURN_IF_ERROR(launch_pass(false));
  if (p.splits > 1) {
    TAMIS_RETURN_IF_ERROR(launch("kv_mass",
                                 grid(ceil_div(int64_t{p.heads} * p.rows, kMassMergeThreads), 1,
                                      kMassMergeThreads, 0, device.capability >= 90, stream),
                                 &kv_mass_merge, p));
  }
  return launch_pass(true);
}

}  // namespace tamis
