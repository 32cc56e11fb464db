// kv_quantize: keys and values of whole pages to kv_page records (format/kv_page.h), bit for bit
// the same on every backend.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "format/kv_page.h"

namespace tamis {

// keys, values: [heads, pages * layout.tokens, d] with d contiguous; strides in elements between
// heads (a batch and KV head each) and tokens. pages: records of head h from h * out_stride_bytes.
struct KvQuantizeArgs {
  KvPageLayout layout;
  DType dtype = DType::f32;  // f32, f16 or bf16
  int64_t heads = 0, pages = 0;
  const void* keys = nullptr;
  const void* values = nullptr;
  int64_t key_head_stride = 0, key_token_stride = 0;
  int64_t value_head_stride = 0, value_token_stride = 0;
  void* out = nullptr;
  int64_t out_stride_bytes = 0;
};

// One page: keys and values at their first token, record to write.
using KvQuantizeKernel = void (*)(const KvQuantizeArgs&, const void* keys, const void* values,
                                  void* record);

// One line of kernels.def.
struct KvQuantizeRow {
  const char* name;  // kv_quantize_<dtype>_<isa>
  DType dtype;
  IsaBits isa;
  KvQuantizeKernel run;
};

// All kernels, best first within a dtype.
std::span<const KvQuantizeRow> kv_quantize_kernels();

// First row that fits; null if none. Pure.
const KvQuantizeRow* choose_kv_quantize(DType dtype, IsaBits isa);

// Checks, chooses for this host, runs on the pool.
Status kv_quantize(const KvQuantizeArgs& args);
Status kv_quantize_with(const KvQuantizeRow& row, const KvQuantizeArgs& args);

// Straight from the formula, one group at a time.
Status kv_quantize_reference(const KvQuantizeArgs& args);

}  // namespace tamis
