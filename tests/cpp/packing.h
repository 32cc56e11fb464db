// What the round-trip tests share: random weights in guarded memory, packing, and a reference that
// knows only the law, not the formats.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "format/format.h"
#include "guarded.h"

namespace tamis::test {

struct Sample {
  std::string name;
  PackSpec spec;
};
inline void PrintTo(const Sample& sample, std::ostream* out) {
  *out << sample.name;
}

// Every format, nm with groups that divide a word and groups that cross one.
inline std::vector<Sample> samples() {
  std::vector<Sample> all = {{"bitmap", {.format = Format::bitmap}},
                             {"csr", {.format = Format::csr}},
                             {"csr8", {.format = Format::csr8}}};
  for (const auto& [keep, of] : {std::pair{1, 1},
                                 {1, 2},
                                 {2, 4},
                                 {4, 4},
                                 {3, 5},
                                 {1, 13},
                                 {5, 16},
                                 {7, 26},
                                 {13, 32},
                                 {32, 32}}) {
    all.push_back({"nm_" + std::to_string(keep) + "of" + std::to_string(of),
                   {.format = Format::nm, .keep = keep, .of = of}});
  }
  for (const auto& [r, c] : {std::pair{1, 1}, {1, 5}, {2, 3}, {4, 16}, {3, 65}, {16, 130}}) {
    all.push_back({"block_" + std::to_string(r) + "x" + std::to_string(c),
                   {.format = Format::block, .block_rows = r, .block_cols = c}});
  }
  return all;
}

// groupq, whose values are codes whatever the weights are.
inline std::vector<Sample> group_samples() {
  std::vector<Sample> all;
  for (const DType dtype : {DType::u4, DType::u8}) {
    for (const int64_t size : {16, 32}) {
      all.push_back({std::string("groupq_") + name_of(dtype) + "_" + std::to_string(size),
                     {.format = Format::groupq, .dtype = dtype, .group_size = size}});
    }
  }
  return all;
}
inline std::vector<Sample> all_samples() {
  std::vector<Sample> all = samples();
  for (const Sample& sample : group_samples()) all.push_back(sample);
  return all;
}

inline bool fits(const PackSpec& s, int64_t rows, int64_t cols) {
  if (s.format == Format::nm) return cols % s.of == 0;
  if (s.format == Format::groupq) return cols % s.group_size == 0;
  if (s.format == Format::block) return rows % s.block_rows == 0 && cols % s.block_cols == 0;
  return true;
}

// Bit pattern of element i of an array of 2- or 4-byte floats.
inline uint32_t bits_of(const void* data, DType dtype, int64_t i) {
  return dtype == DType::f32 ? static_cast<const uint32_t*>(data)[i]
                             : static_cast<const uint16_t*>(data)[i];
}

inline bool is_float_zero(uint32_t bits, DType dtype) {
  return (bits & (dtype == DType::f32 ? 0x7fffffffu : 0x7fffu)) == 0;
}

enum class Keep { none, half, few, one, all, null };

// Weights [rows, cols] whose rows lie `stride` apart, in memory that ends with the last weight.
// What lies between the rows is NaN.
struct Weights {
  std::unique_ptr<Guarded<uint8_t>> bytes, keep_bytes;
  DenseView view;

  uint32_t bits(int64_t r, int64_t c) const {
    return bits_of(view.data, view.dtype, r * view.stride + c);
  }
  // The law's w * mask: which elements survive.
  bool kept(int64_t r, int64_t c) const {
    return view.keep != nullptr ? view.keep[r * view.cols + c] != 0
                                : !is_float_zero(bits(r, c), view.dtype);
  }
};

struct Shape {
  int64_t rows, cols, padding = 0;
};

// `finite`: no Inf or NaN. Signed zeros and denormals are frequent either way.
inline Weights make_weights(std::mt19937_64& random, Shape shape, DType dtype, const PackSpec& spec,
                            Keep keep, bool finite) {
  Weights w;
  const int64_t stride = shape.cols + shape.padding;
  const int64_t count = shape.rows == 0 ? 0 : (shape.rows - 1) * stride + shape.cols;
  w.bytes = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(count * size_of(dtype)));
  w.view = {.data = w.bytes->data(),
            .dtype = dtype,
            .rows = shape.rows,
            .cols = shape.cols,
            .stride = stride};
  std::fill_n(w.bytes->data(), count * size_of(dtype), uint8_t{0xff});  // NaN in every dtype
  const auto set = [&](int64_t r, int64_t c, uint32_t bits) {
    if (dtype == DType::f32) {
      reinterpret_cast<uint32_t*>(w.bytes->data())[r * stride + c] = bits;
    } else {
      reinterpret_cast<uint16_t*>(w.bytes->data())[r * stride + c] = static_cast<uint16_t>(bits);
    }
  };
  const int width = dtype == DType::f32 ? 32 : 16;
  const int mantissa = dtype == DType::f32 ? 23 : dtype == DType::f16 ? 10 : 7;
  const uint32_t exponents = ((1u << (width - 1)) - 1) >> mantissa << mantissa;
  for (int64_t r = 0; r < shape.rows; ++r) {
    const bool zero_row = keep == Keep::null && r % 3 == 2;
    for (int64_t c = 0; c < shape.cols; ++c) {
      auto bits = static_cast<uint32_t>(random() >> (64 - width));
      if (finite && (bits & exponents) == exponents) bits &= ~(1u << mantissa);
      const uint64_t kind = random() % 8;
      if (kind == 0) bits &= ~exponents;        // denormal
      if (kind == 1) bits = 0;                  // +0
      if (kind == 2) bits = 1u << (width - 1);  // -0
      set(r, c, zero_row ? 0 : bits);
    }
  }
  if (keep == Keep::null) {
    if (spec.format != Format::nm) return w;
    for (int64_t r = 0; r < shape.rows; ++r) {  // at most spec.keep nonzeros in a group
      for (int64_t g = 0; g < shape.cols; g += spec.of) {
        int left = spec.keep;
        for (int64_t c = g; c < g + spec.of; ++c) {
          if (!is_float_zero(w.bits(r, c), dtype) && left-- <= 0) set(r, c, 0);
        }
      }
    }
    return w;
  }
  w.keep_bytes = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(shape.rows * shape.cols));
  w.view.keep = w.keep_bytes->data();
  const int64_t one =
      shape.rows * shape.cols == 0
          ? 0
          : static_cast<int64_t>(random() % static_cast<uint64_t>(shape.rows * shape.cols));
  for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
    bool kept = false;
    switch (keep) {
      case Keep::none:
        break;
      case Keep::half:
        kept = random() % 2 == 0;
        break;
      case Keep::few:
        kept = random() % 10 == 0;
        break;
      case Keep::one:
        kept = i == one;
        break;
      case Keep::all:
        kept = true;
        break;
      case Keep::null:
        break;
    }
    // Any nonzero byte means kept.
    (*w.keep_bytes)[static_cast<size_t>(i)] = kept ? static_cast<uint8_t>(1 + random() % 255) : 0;
  }
  if (spec.format == Format::nm) {
    for (int64_t g = 0; g < shape.rows * shape.cols; g += spec.of) {
      uint8_t* group = w.keep_bytes->data() + g;
      for (int i = 0; i < spec.of; ++i) group[i] = i < spec.keep ? 1 : 0;
      std::shuffle(group, group + spec.of, random);
    }
  }
  return w;
}

// A packed matrix in guarded arrays.
struct Packed {
  PackSizes sizes;
  std::unique_ptr<Guarded<uint8_t>> values;
  std::unique_ptr<Guarded<uint64_t>> mask;
  std::unique_ptr<Guarded<int64_t>> row_offsets;
  std::unique_ptr<Guarded<int32_t>> col_indices;
  std::unique_ptr<Guarded<uint8_t>> col_bytes;
  std::unique_ptr<Guarded<float>> scales;
  std::unique_ptr<Guarded<uint16_t>> group_scales;
  MatrixView view;

  int64_t nbytes() const {
    return static_cast<int64_t>(values->size()) + 8 * sizes.mask + 8 * sizes.row_offsets +
           4 * sizes.col_indices + sizes.col_bytes + 4 * sizes.scales + 2 * sizes.group_scales;
  }
};

inline Status pack_guarded(const DenseView& w, const PackSpec& spec, Packed* p) {
  TAMIS_RETURN_IF_ERROR(pack_sizes(w, spec, &p->sizes));
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  p->values = std::make_unique<Guarded<uint8_t>>(count(p->sizes.values * size_of(spec.dtype)));
  p->mask = std::make_unique<Guarded<uint64_t>>(count(p->sizes.mask));
  p->row_offsets = std::make_unique<Guarded<int64_t>>(count(p->sizes.row_offsets));
  p->col_indices = std::make_unique<Guarded<int32_t>>(count(p->sizes.col_indices));
  p->col_bytes = std::make_unique<Guarded<uint8_t>>(count(p->sizes.col_bytes));
  p->scales = std::make_unique<Guarded<float>>(count(p->sizes.scales));
  p->group_scales = std::make_unique<Guarded<uint16_t>>(count(p->sizes.group_scales));
  TAMIS_RETURN_IF_ERROR(pack(w, spec,
                             {.values = p->values->data(),
                              .mask = p->mask->data(),
                              .row_offsets = p->row_offsets->data(),
                              .col_indices = p->col_indices->data(),
                              .col_bytes = p->col_bytes->data(),
                              .scales = p->scales->data(),
                              .group_scales = p->group_scales->data()}));
  p->view = {.format = spec.format,
             .rows = w.rows,
             .cols = w.cols,
             .dtype = spec.dtype,
             .values = p->values->data(),
             .nnz = spec.dtype == DType::u4 ? 2 * p->sizes.values : p->sizes.values,
             .mask = p->mask->data(),
             .row_offsets = p->row_offsets->data(),
             .col_indices = p->col_indices->data(),
             .col_bytes = p->col_bytes->data(),
             .keep = spec.keep,
             .of = spec.of,
             .block_rows = spec.block_rows,
             .block_cols = spec.block_cols,
             .scales = p->scales->data(),
             .group_scales = p->group_scales->data(),
             .group_size = spec.group_size};
  return {};
}

}  // namespace tamis::test
