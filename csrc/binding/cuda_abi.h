// What tamis_cuda, the library with the GPU code, gives to the extension: one C symbol that returns
// a table of functions. Both are built from one source; kCudaAbi catches files that were mixed.
#pragma once

#include <cstdint>

#include "base/cuda/graph_memory.h"
#include "base/status.h"
#include "ops/kv_edit/kv_edit_cuda.h"
#include "ops/kv_fetch/kv_fetch_cuda.h"
#include "ops/kv_quantize/kv_quantize_cuda.h"
#include "ops/kv_rebuild/kv_rebuild_cuda.h"
#include "ops/kv_select/kv_select_cuda.h"
#include "ops/prefill_attention/prefill_cuda.h"
#include "ops/sparse_attention/attention_cuda.h"
#include "ops/sparse_input/sparse_input_cuda.h"
#include "ops/sparse_mlp/sparse_mlp_cuda.h"
#include "ops/spgemm/spgemm_cuda.h"
#include "ops/spmm/spmm_cuda.h"
#include "ops/spmm_grad/spmm_grad_cuda.h"

namespace tamis {

inline constexpr int32_t kCudaAbi = 21;  // raise with any change to the table or a struct in it

struct CudaLibrary {
  int32_t abi;
  // Number of devices; a Status that says why there are none, such as a missing driver.
  Status (*count)(int32_t* devices);
  // Facts of a device, and its name into text[size].
  Status (*describe)(int32_t device, CudaDevice* facts, char* text, int64_t size);
  Status (*graph_workspace)(int32_t device, void* stream, int64_t bytes, void** data, int64_t* got);
  std::span<const SpmmCudaRow> (*spmm_kernels)();
  const SpmmCudaRow* (*choose_spmm)(PackedFormat format, DType dtype, int32_t capability);
  Status (*spmm)(const SpmmCudaArgs&, const SpmmCudaPlan&, const CudaDevice&, void* stream);
  Status (*expand)(const PackedView&, void* out, int64_t out_stride, const CudaDevice&,
                   void* stream);
  Status (*kv_quantize)(const KvQuantizeArgs&, const CudaDevice&, void* stream);
  Status (*kv_gather)(const KvGatherArgs&, const CudaDevice&, void* stream);
  std::span<const MergeCudaRow> (*merge_kernels)();
  Status (*kv_merge)(const KvMergeArgs&, void* workspace, int64_t workspace_bytes,
                     const CudaDevice&, void* stream);
  Status (*kv_fetch)(const KvFetchArgs&, const CudaDevice&, void* stream);
  std::span<const RebuildCudaRow> (*rebuild_kernels)();
  Status (*kv_rebuild)(const KvRebuildArgs&, const CudaDevice&, void* stream);
  Status (*kv_append_labels)(const KvAppendLabelsArgs&, const CudaDevice&, void* stream);
  int64_t (*estimate_workspace)(const KvEstimateArgs&);
  Status (*kv_estimate)(const KvEstimateArgs&, void* workspace, int64_t workspace_bytes,
                        const CudaDevice&, void* stream);
  std::span<const MassCudaRow> (*mass_kernels)();
  int64_t (*mass_workspace)(const KvMassArgs&, const CudaDevice&);
  Status (*kv_mass)(const KvMassArgs&, void* workspace, int64_t workspace_bytes, const CudaDevice&,
                    void* stream);
  Status (*kv_select)(const KvSelectArgs&, const CudaDevice&, void* stream);
  bool (*choose_fits)(const KvChooseArgs&, const CudaDevice&);
  int64_t (*choose_workspace)(const KvChooseArgs&);
  Status (*kv_choose)(const KvChooseArgs&, void* workspace, int64_t workspace_bytes,
                      const CudaDevice&, void* stream);
  std::span<const AttentionCudaRow> (*attention_kernels)();
  Status (*attention_workspace)(const SparseAttentionArgs&, const CudaDevice&, int64_t* bytes);
  Status (*attention)(const SparseAttentionCudaArgs&, const CudaDevice&, void* stream);
  bool (*chosen_fits)(const ChosenAttentionArgs&, const CudaDevice&);
  Status (*chosen_attention)(const ChosenAttentionArgs&, const CudaDevice&, void* stream);
  std::span<const SparseInputCudaRow> (*sparse_input_kernels)();
  Status (*sparse_input_workspace)(const SparseInputArgs&, const CudaDevice&, int64_t* bytes);
  Status (*sparse_input)(const SparseInputArgs&, void* workspace, int64_t workspace_bytes,
                         const CudaDevice&, void* stream);
  std::span<const SparseMlpCudaRow> (*sparse_mlp_kernels)();
  Status (*sparse_mlp_workspace)(const SparseMlpArgs&, const CudaDevice&, int64_t* bytes);
  Status (*sparse_mlp)(const SparseMlpArgs&, void* workspace, int64_t workspace_bytes,
                       const CudaDevice&, void* stream);
  std::span<const PrefillCudaRow> (*prefill_kernels)();
  Status (*prefill)(const PrefillArgs&, const CudaDevice&, void* stream);
  int64_t (*prefill_workspace)(const PrefillArgs&, const CudaDevice&);
  std::span<const SpmmGradCudaRow> (*spmm_grad_kernels)();
  Status (*unpack_mask)(const MatrixView& w, void* dense, void* stream);
  Status (*gather_mask)(const MatrixView& w, const void* dense, void* values, void* stream);
  std::span<const SpgemmCudaRow> (*spgemm_kernels)();
  Status (*spgemm_workspace)(const SpgemmArgs&, const CudaDevice&, int64_t* bytes);
  Status (*spgemm_count)(const SpgemmArgs&, int64_t* counts, void* workspace,
                         int64_t workspace_bytes, const CudaDevice&, void* stream);
  Status (*spgemm_fill)(const SpgemmArgs&, const int64_t* row_offsets, int32_t* col_indices,
                        float* values, void* workspace, int64_t workspace_bytes, const CudaDevice&,
                        void* stream);
};

inline constexpr const char* kCudaSymbol = "tamis_cuda_library";

}  // namespace tamis
