// kv_quantize: checks, choice of a kernel and its run on the threads of this process.
#include "ops/kv_quantize/kv_quantize.h"

#include <algorithm>

#include "base/parallel.h"
#include "ops/kv_quantize/kernels.h"

namespace tamis {
namespace {

constexpr KvQuantizeRow kKernels[] = {
#define TAMIS_KV_QUANTIZE(dtype, level) \
  {"kv_quantize_" #dtype "_" #level, DType::dtype, isa::level, &kv_quantize_##dtype##_##level},
#include "ops/kv_quantize/kernels.def"
#undef TAMIS_KV_QUANTIZE
};

Status check(const KvQuantizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_page(a.layout));
  if (a.dtype != DType::f32 && a.dtype != DType::f16 && a.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "kv_quantize: keys: got %s, wanted f32, f16 or bf16",
                 name_of(a.dtype));
  }
  if (a.heads < 0 || a.pages < 0) {
    return error(Code::invalid_argument,
                 "kv_quantize: heads, pages: got %lld and %lld, wanted none below 0",
                 static_cast<long long>(a.heads), static_cast<long long>(a.pages));
  }
  if (a.heads > 0 && a.pages > 0 && (!a.keys || !a.values || !a.out)) {
    return error(Code::invalid_argument,
                 "kv_quantize: keys, values, out: got null, wanted an array");
  }
  if (a.heads > 1 && a.out_stride_bytes < a.pages * a.layout.bytes()) {
    return error(Code::invalid_argument,
                 "kv_quantize: out_stride_bytes: got %lld, wanted at least %lld",
                 static_cast<long long>(a.out_stride_bytes),
                 static_cast<long long>(a.pages * a.layout.bytes()));
  }
  return {};
}

// Calls fn(keys, values, record) for page `at` of all pages of all heads.
template <class Fn>
void with_page(const KvQuantizeArgs& a, int64_t at, const Fn& fn) {
  const int64_t head = at / a.pages, page = at % a.pages, first = page * a.layout.tokens;
  const int64_t size = size_of(a.dtype);
  fn(static_cast<const uint8_t*>(a.keys) +
         (head * a.key_head_stride + first * a.key_token_stride) * size,
     static_cast<const uint8_t*>(a.values) +
         (head * a.value_head_stride + first * a.value_token_stride) * size,
     static_cast<uint8_t*>(a.out) + head * a.out_stride_bytes + page * a.layout.bytes());
}

}  // namespace

std::span<const KvQuantizeRow> kv_quantize_kernels() {
  return kKernels;
}

const KvQuantizeRow* choose_kv_quantize(DType dtype, IsaBits isa) {
  for (const KvQuantizeRow& row : kKernels) {
    if (row.dtype == dtype && (row.isa & isa) == row.isa) return &row;
  }
  return nullptr;
}

Status kv_quantize(const KvQuantizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check(a));
  return kv_quantize_with(*choose_kv_quantize(a.dtype, active_isa()), a);
}

Status kv_quantize_with(const KvQuantizeRow& row, const KvQuantizeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check(a));
  const int64_t all = a.heads * a.pages;
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), all));
  const auto run = [&](int thread, int count) {
    for (int64_t i = all * thread / count; i < all * (thread + 1) / count; ++i) {
      with_page(a, i, [&](const void* keys, const void* values, void* record) {
        row.run(a, keys, values, record);
      });
    }
  };
  if (threads > 1) {
    parallel(threads, run);
  } else if (all > 0) {
    run(0, 1);
  }
  return {};
}

}  // namespace tamis
