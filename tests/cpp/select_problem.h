// Summaries of units with everything round them for kv_estimate, kv_mass and kv_choose: random
// data, labels appended in two parts, queries, begins, guard pages.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "guarded.h"
#include "ops/kv_select/kv_select.h"

namespace tamis::test {

inline constexpr IsaBits kLevels[] = {isa::kScalar,     isa::avx2,       isa::avx512,
                                      isa::avx512vbmi2, isa::avx512bf16, isa::neon,
                                      isa::neon_dot,    isa::neon_fhm,   isa::neon_bf16};

inline void put(void* data, DType type, size_t i, float v) {
  if (type == DType::f32) {
    static_cast<float*>(data)[i] = v;
  } else {
    static_cast<uint16_t*>(data)[i] = type == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
  }
}

struct Case {
  KvSummary kind = KvSummary::rows;
  DType dtype = DType::f32, q_dtype = DType::f32;
  int64_t batch = 2, kv_heads = 2, rows = 3, head_dim = 64, units = 70;
  int32_t channels = 16;
  KvReduce reduce = KvReduce::log_weight;
  bool begin = false;

  std::string text() const {
    return "kind " + std::to_string(static_cast<int>(kind)) + " " + name_of(dtype) + " q " +
           name_of(q_dtype) + " rows " + std::to_string(rows) + " d " + std::to_string(head_dim) +
           " units " + std::to_string(units) + (begin ? " begin" : "");
  }
};

// Every kind of summary, its dtype and that of q.
inline std::vector<Case> kinds() {
  std::vector<Case> all;
  for (const DType q : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const KvSummary kind : {KvSummary::rows, KvSummary::bounds, KvSummary::labels}) {
        Case c;
        c.kind = kind;
        c.dtype = dtype;
        c.q_dtype = q;
        all.push_back(c);
      }
    }
  }
  return all;
}

// Units, q and begins of a case.
struct Memory {
  explicit Memory(const Case& c) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const int64_t heads = c.batch * c.kv_heads;
    const int64_t width = c.kind == KvSummary::bounds ? 2 * c.head_dim : c.head_dim;
    const auto count = static_cast<size_t>(heads * c.units * width);
    data = std::make_unique<Guarded<uint8_t>>(count * static_cast<size_t>(size_of(c.dtype)));
    for (size_t i = 0; i < count; ++i) {
      const bool bounds = c.kind == KvSummary::bounds;
      const bool high = bounds && i / static_cast<size_t>(c.head_dim) % 2 == 1;
      const float x = normal(random);
      put(data->data(), c.dtype, i, high ? std::fabs(x) : bounds ? -std::fabs(x) : x);
    }
    const auto queries = static_cast<size_t>(heads * c.rows * c.head_dim);
    q = std::make_unique<Guarded<uint8_t>>(queries * static_cast<size_t>(size_of(c.q_dtype)));
    for (size_t i = 0; i < queries; ++i) put(q->data(), c.q_dtype, i, normal(random));
    for (int64_t h = 0; h < heads; ++h) begins.push_back(static_cast<int32_t>(h * 9 - 2));
    units = {.kind = c.kind,
             .dtype = c.dtype,
             .units = c.units,
             .data = data->data(),
             .batch_stride = c.kv_heads * c.units * width,
             .head_stride = c.units * width,
             .unit_stride = width};
    if (c.kind == KvSummary::labels) label(c);
  }

  void label(const Case& c) {
    const KvLabelLayout layout{.channels = c.channels};
    const int64_t stride = (c.units + kLabelTokens - 1) / kLabelTokens * layout.bytes();
    records =
        std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(c.batch * c.kv_heads * stride));
    for (int64_t i = 0; i < c.kv_heads * c.channels; ++i) {
      channels.push_back(static_cast<int32_t>((i * 7 + 3) % c.head_dim));
    }
    for (int64_t h = 0; h < c.batch * c.kv_heads; ++h) {
      const int32_t* ids = channels.data() + h % c.kv_heads * c.channels;
      const auto size = static_cast<int64_t>(size_of(c.dtype));
      const uint8_t* keys = data->data() + h * c.units * c.head_dim * size;
      const int64_t part = c.units / 3;  // appended in two parts
      pack_kv_labels(layout, c.dtype, keys, c.head_dim, ids, 0, part, records->data() + h * stride);
      pack_kv_labels(layout, c.dtype, keys + part * c.head_dim * size, c.head_dim, ids, part,
                     c.units - part, records->data() + h * stride);
    }
    units.data = records->data();
    units.batch_stride = c.kv_heads * stride;
    units.head_stride = stride;
    units.labels = layout;
    units.channels = channels.data();
  }

  std::unique_ptr<Guarded<uint8_t>> data, q, records;
  std::vector<int32_t> begins, channels;
  KvUnits units;
};

}  // namespace tamis::test
