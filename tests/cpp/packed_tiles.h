// A weight in any of the forms packed for CUDA, in guarded memory of exactly the stated bytes, and
// the weights that the round trips of those forms try.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "format/g4.h"
#include "format/gap.h"
#include "format/m24.h"
#include "format/m24i4.h"
#include "format/m24i8.h"
#include "format/p24.h"
#include "format/r24.h"
#include "format/sell4.h"
#include "format/t16.h"
#include "format/t16i8.h"
#include "packing.h"

namespace tamis::test {

inline void must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text);
}

struct PackedTiles {
  struct alignas(16) Unit {
    uint8_t bytes[t16::kUnit];
  };
  t16::Sizes sizes;
  std::unique_ptr<Guarded<Unit>> records;
  std::unique_ptr<Guarded<uint32_t>> offsets;
  PackedView view;

  // parts: of gap; of p24 panels.
  PackedTiles(PackedFormat format, const MatrixView& a, int32_t parts = 0) {
    must(find_sizes(format, a, parts));
    records = std::make_unique<Guarded<Unit>>(static_cast<size_t>(sizes.record_bytes / t16::kUnit));
    offsets = std::make_unique<Guarded<uint32_t>>(static_cast<size_t>(sizes.offsets));
    must(pack(format, a, parts));
    view = {.format = format,
            .rows = a.rows,
            .cols = a.cols,
            .dtype = a.dtype,
            .records = records->data(),
            .offsets = has_offsets(format) ? offsets->data() : nullptr,
            .parts = parts,
            .mask = a.mask,
            .row_offsets = a.format == Format::nm ? nullptr : a.row_offsets,
            .row_values = a.format == Format::nm ? a.cols / a.of * a.keep : 0,
            .record_bytes = sizes.record_bytes,
            .max_record_bytes = sizes.max_record_bytes};
    if (format == PackedFormat::bitmap) view.record_bytes = 2 * a.nnz;
  }

 private:
  p24::Packed groups;

  Status find_sizes(PackedFormat format, const MatrixView& a, int32_t parts) {
    const int64_t tiles = t16::row_tiles(a.rows) * t16::col_tiles(a.cols);
    const auto alike = [&](int64_t bytes) {
      sizes = {.record_bytes = tiles * bytes, .max_record_bytes = bytes};
      return Status{};
    };
    switch (format) {
      case PackedFormat::t16:
        return t16::pack_sizes(a, &sizes);
      case PackedFormat::g4:
        return g4::pack_sizes(a, &sizes);
      case PackedFormat::sell4:
        return sell4::pack_sizes(a, &sizes);
      case PackedFormat::t16i8:
        return t16i8::pack_sizes(a, &sizes);
      case PackedFormat::r24:
        return r24::pack_sizes(a, &sizes);
      case PackedFormat::gap:
        return gap::pack_sizes(a, parts, &sizes);
      case PackedFormat::p24:
        TAMIS_RETURN_IF_ERROR(p24::pack(a, parts, &groups));
        sizes = {.offsets = static_cast<int64_t>(groups.offsets.size()),
                 .record_bytes = static_cast<int64_t>(groups.records.size()),
                 .max_record_bytes = groups.record_bytes};
        return {};
      case PackedFormat::m24:
        return alike(m24::kRecordBytes);
      case PackedFormat::m24i8:
        return alike(m24i8::kRecordBytes);
      case PackedFormat::m24i4:
        return alike(m24i4::kRecordBytes);
      case PackedFormat::bitmap:
        sizes = {.record_bytes = ceil_div(2 * a.nnz, t16::kUnit) * t16::kUnit};
        return {};
    }
    return {};
  }

  Status pack(PackedFormat format, const MatrixView& a, int32_t parts) {
    switch (format) {
      case PackedFormat::t16:
        return t16::pack(a, offsets->data(), records->data());
      case PackedFormat::g4:
        return g4::pack(a, offsets->data(), records->data());
      case PackedFormat::sell4:
        return sell4::pack(a, offsets->data(), records->data());
      case PackedFormat::t16i8:
        return t16i8::pack(a, offsets->data(), records->data());
      case PackedFormat::gap:
        return gap::pack(a, parts, offsets->data(), records->data());
      case PackedFormat::r24:
        return r24::pack(a, offsets->data(), records->data());
      case PackedFormat::p24:
        std::copy(groups.offsets.begin(), groups.offsets.end(), offsets->data());
        std::copy(groups.records.begin(), groups.records.end(),
                  reinterpret_cast<uint8_t*>(records->data()));
        return {};
      case PackedFormat::m24:
        return m24::pack(a, records->data());
      case PackedFormat::m24i8:
        return m24i8::pack(a, records->data());
      case PackedFormat::m24i4:
        return m24i4::pack(a, records->data());
      case PackedFormat::bitmap:  // whose other arrays are the canonical ones
        std::memset(records->data(), 0xff, static_cast<size_t>(sizes.record_bytes));
        std::memcpy(records->data(), a.values, static_cast<size_t>(2 * a.nnz));
        return {};
    }
    return {};
  }
};

// Calls fn(weights, canonical matrix) for bitmap and every nm of 16-bit weights, for these shapes
// and every way to keep some.
template <class Fn>
void for_masks(std::span<const Shape> shapes, const Fn& fn) {
  for (const Sample& sample : samples()) {
    PackSpec spec = sample.spec;
    if (spec.format != Format::bitmap && spec.format != Format::nm) continue;
    for (const DType dtype : {DType::f16, DType::bf16}) {
      spec.dtype = dtype;
      for (const Shape& shape : shapes) {
        if (!fits(spec, shape.rows, shape.cols)) continue;
        for (const Keep keep : {Keep::none, Keep::half, Keep::few, Keep::one, Keep::all}) {
          std::mt19937_64 random(static_cast<uint64_t>(shape.cols) + static_cast<uint64_t>(keep));
          const Weights w = make_weights(random, shape, dtype, spec, keep, /*finite=*/false);
          SCOPED_TRACE(sample.name + ", " + std::to_string(shape.rows) + " x " +
                       std::to_string(shape.cols) + ", keep " +
                       std::to_string(static_cast<int>(keep)));
          Packed canonical;
          ASSERT_TRUE(pack_guarded(w.view, spec, &canonical).ok());
          fn(w, canonical.view);
        }
      }
    }
  }
}

// Calls unpack(out, stride) and compares what it wrote, bit for bit.
template <class Fn>
void expect_unpacked(const Weights& w, const Fn& unpack) {
  const int64_t rows = w.view.rows, cols = w.view.cols, stride = cols + 3;
  Guarded<uint16_t> out(static_cast<size_t>((rows - 1) * stride + cols));
  unpack(out.data(), stride);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(out[static_cast<size_t>(r * stride + c)], w.kept(r, c) ? w.bits(r, c) : 0)
          << r << ", " << c;
    }
  }
}

// Whether check notices each flipped bit of the offsets.
template <class Fn>
void expect_offsets_checked(const PackedTiles& packed, const Fn& check) {
  for (uint32_t& offset : packed.offsets->span()) {
    for (const uint32_t flip : {1u, 0x40u, 0x80000000u}) {
      offset ^= flip;
      EXPECT_FALSE(check(packed.view).ok()) << &offset - packed.offsets->data();
      offset ^= flip;
    }
  }
}

}  // namespace tamis::test
