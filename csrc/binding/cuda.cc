// The CUDA library, opened by path on request: its devices, its kernels, and memory of graphs,
// which is all that it allocates.
#include "binding/cuda.h"

#include <dlfcn.h>

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "binding/address.h"
#include "binding/array.h"
#include "binding/cuda_abi.h"
#include "binding/kernel_row.h"
#include "format/gap.h"
#include "ops/kv_rebuild/rebuild_params.h"
#include "ops/kv_select/row_tiles.h"
#include "ops/spmm/bitmap_f32_params.h"
#include "ops/spmm/gap_params.h"
#include "ops/spmm/p24_params.h"
#include "ops/spmm/r24_params.h"
#include "ops/spmm/sell4_params.h"
#include "ops/spmm/t16_params.h"
#include "ops/spmm_grad/grad_params.h"

namespace tamis::binding {
namespace {

std::atomic<const CudaLibrary*> loaded{nullptr};

// Why the library at `path` cannot be used, empty if it can.
std::string load(const std::string& path) {
  if (loaded.load() != nullptr) return {};
  void* file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) return dlerror();
  using Table = const CudaLibrary* (*)();
  const auto table = reinterpret_cast<Table>(dlsym(file, kCudaSymbol));
  if (table == nullptr) return path + " has no symbol " + kCudaSymbol;
  const CudaLibrary* library = table();
  if (library->abi != kCudaAbi) {
    return path + " has ABI " + std::to_string(library->abi) + ", wanted " +
           std::to_string(kCudaAbi) + "; install both files from one build";
  }
  int32_t devices = 0;
  if (const Status status = library->count(&devices); !status.ok()) return status.text;
  if (devices == 0) return "no device";
  loaded.store(library);
  return {};
}

py::list devices() {
  py::list all;
  int32_t count = 0;
  raise_if_error(cuda_library().count(&count));
  for (int32_t i = 0; i < count; ++i) {
    CudaDevice facts;
    char name[256];
    raise_if_error(cuda_library().describe(i, &facts, name, sizeof name));
    py::dict entry;
    entry["name"] = name;
    entry["capability"] = facts.capability;
    entry["sms"] = facts.sms;
    all.append(entry);
  }
  return all;
}

// Address and bytes.
std::pair<uintptr_t, int64_t> graph_memory(int32_t device, uintptr_t stream, int64_t bytes) {
  void* data = nullptr;
  int64_t got = 0;
  raise_if_error(cuda_library().graph_workspace(device, address<void>(stream), bytes, &data, &got));
  return {reinterpret_cast<uintptr_t>(data), got};
}

py::list kernels(int32_t capability) {
  const CudaLibrary& library = cuda_library();
  py::list rows;
  for (const SpmmCudaRow& row : library.spmm_kernels()) {
    const bool gap = row.format == PackedFormat::gap, sell4 = row.format == PackedFormat::sell4;
    const bool f32 = row.w_dtype == DType::f32;
    const bool p24 = row.format == PackedFormat::p24, r24 = row.format == PackedFormat::r24;
    rows.append(
        dict_of({.name = row.name,
                 .op = "spmm",
                 .format = name_of(row.format),
                 .w_dtype = name_of(row.w_dtype),
                 .x_dtype = name_of(row.x_dtype),
                 .isa = "sm" + std::to_string(row.capability),
                 .tile_m = f32     ? kMaxBitmapF32Tokens
                           : gap   ? kMaxGapTokens
                           : p24   ? kMaxP24Tokens
                           : r24   ? kMaxR24Tokens
                           : sell4 ? kSell4Tokens
                                   : kMaxTokens,
                 .tile_n = f32     ? bitmap_f32_rows(1)
                           : gap   ? gap::kLanes
                           : sell4 ? sell4::kLanes
                                   : t16::kTileRows,
                 .runs_here = library.choose_spmm(row.format, row.x_dtype, capability) == &row}));
  }
  // The others have one kernel for everything from sm_80 on.
  const auto add = [&](const char* name, const char* op, const char* format, const char* w,
                       const char* x, int64_t tile_m, int64_t tile_n) {
    rows.append(dict_of({name, op, format, w, x, "sm80", tile_m, tile_n, capability >= 80}));
  };
  for (const AttentionCudaRow& row : library.attention_kernels()) {
    const bool pages = row.storage == KvStorage::pages;
    const char* dtype = name_of(row.storage);
    add(row.name, "sparse_attention", pages ? "kv_page" : "dense", pages ? "codes" : dtype,
        pages ? "f16" : dtype, 8, row.unit);
  }
  const auto add_dense = [&](const auto& row, const char* op, const char* format, int64_t tile_m,
                             int64_t tile_n) {
    add(row.name, op, format, name_of(row.dtype), name_of(row.dtype), tile_m, tile_n);
  };
  for (const auto& row : library.mass_kernels()) add_dense(row, "kv_mass", "dense", row.rows, 64);
  for (const auto& row : library.rebuild_kernels()) {
    add_dense(row, "kv_rebuild", "lowrank", kRebuildTokens, row.head_dim);
  }
  for (const auto& row : library.merge_kernels()) {
    add_dense(row, "kv_merge", "dense", 16 * kTileWarps, kTileStream);
  }
  for (const auto& row : library.prefill_kernels()) {
    add_dense(row, "prefill_attention", "dense", row.queries, kPrefillKeys);
  }
  for (const auto& row : library.sparse_input_kernels()) {
    add_dense(row, "sparse_input", "dense", 8, 1);
  }
  for (const auto& row : library.sparse_mlp_kernels()) add_dense(row, "sparse_mlp", "dense", 8, 1);
  for (const auto& row : library.spgemm_kernels()) add_dense(row, "spgemm", "csr", 1, 1);
  for (const auto& row : library.spmm_grad_kernels()) {
    add_dense(row, "spmm_grad", "bitmap", kUnpackWarps, 64 * kUnpackWords);
  }
  return rows;
}

}  // namespace

const CudaLibrary& cuda_library() {
  const CudaLibrary* found = loaded.load(std::memory_order_relaxed);
  if (found == nullptr) {
    raise_if_error(error(Code::no_kernel, "cuda: the library is not loaded; call cuda_load"));
  }
  return *found;
}

const CudaDevice& cuda_device(int32_t index) {
  static const std::vector<CudaDevice> all = [] {
    int32_t count = 0;
    raise_if_error(cuda_library().count(&count));
    std::vector<CudaDevice> facts(static_cast<size_t>(count));
    char name[256];
    for (int32_t i = 0; i < count; ++i) {
      raise_if_error(cuda_library().describe(i, &facts[static_cast<size_t>(i)], name, sizeof name));
    }
    return facts;
  }();
  if (index < 0 || index >= static_cast<int32_t>(all.size())) {
    raise_if_error(error(Code::invalid_argument, "cuda: device: got %d, wanted 0 to %d", index,
                         static_cast<int>(all.size()) - 1));
  }
  return all[static_cast<size_t>(index)];
}

void bind_cuda(py::module_& m) {
  using namespace py::literals;
  m.def("cuda_load", &load, "path"_a);
  m.def("cuda_devices", &devices);
  m.def("cuda_kernels", &kernels, "capability"_a);
  m.def("cuda_graph_workspace", &graph_memory, "device"_a, "stream"_a, "nbytes"_a);
}

}  // namespace tamis::binding
