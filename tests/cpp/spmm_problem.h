// One sparse product for the tests of spmm: a random packed weight in guarded memory, tokens with
// NaN between their rows, and the comparison with a float64 product of the unpacked weight.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/elements.h"
#include "base/numeric.h"
#include "format/format.h"
#include "guarded.h"
#include "normal.h"
#include "ops/spmm/spmm.h"
#include "packing.h"

namespace tamis::test {

// |y - y64| <= c * eps * sum |w||x|, plus half a unit in the last place of y's dtype. A sum of k
// products in L chains errs by about sqrt(k / L) * eps; k <= 576 here, so 8 leaves a factor of two
// over one chain. vdpbf16ps adds pairs first and flushes denormals: the sum of two products may
// lose all bits below 2^-126, which no eps times these sums reaches.
inline double tolerance(double magnitude) {
  return 8 * 0x1p-24 * magnitude;
}

// A form that quantizes x stores code = round(x / step), step = largest |x| of kStepColumns / 127.
// So x errs by at most half a step, and a sum by half a step times sum |w|; the quotient is rounded
// to f32 before it is rounded to a code, which moves the middle by 127 * 2^-23 of a step at most.
// Integers up to 127 with a 127 among every kStepColumns have step 1: no error at all.
inline constexpr double kHalfStep = 0.5 + 127 * 0x1p-23;

inline double half_unit(DType type, double y) {
  const double a = std::abs(y);
  switch (type) {
    case DType::f32:
      return a * 0x1p-24;
    case DType::f16:
      return std::max(a * 0x1p-11, 0x1p-25);
    default:
      return a * 0x1p-8;
  }
}

inline void put(void* data, DType type, int64_t i, float v) {
  store_element(type, v, data, i);
}

inline double get(const void* data, DType type, int64_t i) {
  return load_element(type, data, i);
}

// Rows of `width` elements, `stride` apart, in memory that ends with the last element (or starts
// with the first). What lies between rows is NaN.
struct Rows {
  Rows(DType type, int64_t count, int64_t width, int64_t padding, bool front)
      : type(type),
        count(count),
        width(width),
        stride(width + padding),
        bytes(static_cast<size_t>(count ? ((count - 1) * stride + width) * size_of(type) : 0),
              front) {
    std::memset(bytes.data(), 0xff, bytes.size());
  }
  void set(int64_t row, int64_t i, float v) { put(bytes.data(), type, row * stride + i, v); }
  double at(int64_t row, int64_t i) const { return get(bytes.data(), type, row * stride + i); }
  bool padding_untouched() const {
    const int64_t size = size_of(type);
    for (int64_t row = 0; row + 1 < count; ++row) {
      for (int64_t b = (row * stride + width) * size; b < (row + 1) * stride * size; ++b) {
        if (bytes[static_cast<size_t>(b)] != 0xff) return false;
      }
    }
    return true;
  }

  DType type;
  int64_t count, width, stride;
  Guarded<uint8_t> bytes;
};

struct Case {
  const SpmmRow& row;
  int64_t m, n, k;
  double sparsity;
  bool integers;  // small integers: every order of summation gives the same bits
  bool front;
  uint64_t seed;

  std::string text() const {
    char s[200];
    std::snprintf(s, sizeof s, "%s m=%lld n=%lld k=%lld sparsity=%g %s %s seed=%llu", row.name,
                  static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                  sparsity, integers ? "integers" : "reals", front ? "front" : "back",
                  static_cast<unsigned long long>(seed));
    return s;
  }
};

inline int largest_divisor(int64_t k, int limit) {
  for (int d = limit; d > 1; --d) {
    if (k % d == 0) return d;
  }
  return 1;
}

inline PackSpec spec_for(const Case& c) {
  PackSpec spec{.format = c.row.format, .dtype = c.row.w_dtype};
  if (c.row.format == Format::groupq) spec.group_size = c.k % 32 || c.seed % 2 ? 16 : 32;
  if (c.row.format == Format::nm) {
    spec.of = largest_divisor(c.k, c.seed % 2 ? 4 : 32);
    spec.keep = static_cast<int32_t>(std::lround((1 - c.sparsity) * spec.of));
    spec.keep = std::max(spec.keep, 1);
  }
  if (c.row.format == Format::block) {
    spec.block_rows = largest_divisor(c.n, c.seed % 2 ? 16 : 3);
    spec.block_cols = largest_divisor(c.k, c.seed % 3 ? 32 : 3);
  }
  if (spec.dtype == DType::i8) {
    constexpr int64_t kGroups[] = {0, 32, 7, 128, 512};
    spec.group_size = kGroups[c.seed % 5];
  }
  return spec;
}

struct Problem {
  explicit Problem(const Case& c) : random(c.seed) {
    const PackSpec spec = spec_for(c);
    std::vector<float> w(static_cast<size_t>(c.n * c.k));
    std::vector<uint8_t> keep(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] = c.integers ? static_cast<float>(static_cast<int>(random() % 9) - 4) : normal(random);
      keep[i] = static_cast<double>(random() % 1000) >= c.sparsity * 1000;
    }
    if (spec.format == Format::groupq) {
      const auto size = static_cast<size_t>(spec.group_size);
      for (size_t i = 0; i < keep.size(); ++i) keep[i] = keep[i / size * size];
    }
    if (spec.format == Format::nm) {
      for (size_t g = 0; g < keep.size(); g += static_cast<size_t>(spec.of)) {
        for (int i = 0; i < spec.of; ++i) keep[g + static_cast<size_t>(i)] = i < spec.keep;
        std::shuffle(&keep[g], &keep[g] + spec.of, random);
      }
    }
    // Sources in the dtype that the values will have, codes from f32.
    const DType source = is_float(spec.dtype) ? spec.dtype : DType::f32;
    std::vector<uint8_t> stored(w.size() * static_cast<size_t>(size_of(source)));
    for (size_t i = 0; i < w.size(); ++i) {
      put(stored.data(), source, static_cast<int64_t>(i), w[i]);
    }
    const DenseView view{.data = stored.data(),
                         .dtype = source,
                         .rows = c.n,
                         .cols = c.k,
                         .stride = c.k,
                         .keep = keep.data()};
    const Status s = pack_guarded(view, spec, &packed);
    EXPECT_TRUE(s.ok()) << s.text;
    packed.view.group_size = spec.group_size ? spec.group_size : c.k;
    if (c.integers) {  // powers of two instead of max / 127, so that i8 products are exact too
      for (float& scale : packed.scales->span()) scale = random() % 2 ? 0.5f : 2.0f;
      for (size_t i = 0; i < packed.group_scales->size(); i += 2) {
        (*packed.group_scales)[i] = f16_from_f32(random() % 2 ? 0.5f : 2.0f);
      }
    }
    dense.resize(w.size() * static_cast<size_t>(size_of(source)));
    const Status u = unpack(packed.view, dense.data(), c.k);
    EXPECT_TRUE(u.ok()) << u.text;
    dense_type = source;
  }

  std::mt19937_64 random;
  Packed packed;
  std::vector<uint8_t> dense;
  DType dense_type = DType::f32;
};

inline bool quantizes(const SpmmRow& row) {
  return row.x_form && row.x_form->quantizes;
}

// Weights of groups are rounded to bf16 where vdpbf16ps or tiles multiply them.
inline double lost_of_weight(const SpmmRow& row) {
  const bool rounds =
      row.format == Format::groupq && (row.isa == isa::avx512bf16 || row.isa == isa::amx);
  return rounds ? 0x1p-8 : 0;
}

// `steps`: what a form that quantizes x keeps exactly, in place of the integers from -4 to 4.
inline void fill(Rows& rows, std::mt19937_64& random, bool integers, bool steps = false) {
  const int limit = steps ? 127 : 4;
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t i = 0; i < rows.width; ++i) {
      rows.set(r, i,
               integers ? static_cast<float>(static_cast<int>(random() % (2 * limit + 1)) - limit)
                        : normal(random));
    }
    for (int64_t i = 0; integers && steps && i < rows.width; i += kStepColumns) {
      const int64_t n = std::min(kStepColumns, rows.width - i);
      rows.set(r, i + static_cast<int64_t>(random() % static_cast<uint64_t>(n)),
               random() % 2 ? 127.0f : -127.0f);
    }
  }
}

// The step of each column of a token, 0 where x is not quantized.
inline std::vector<double> steps_of(const Case& c, const Rows& x, int64_t token) {
  std::vector<double> steps(static_cast<size_t>(c.k));
  for (int64_t i = 0; quantizes(c.row) && i < c.k; i += kStepColumns) {
    const int64_t end = std::min(c.k, i + kStepColumns);
    double largest = 0;
    for (int64_t k = i; k < end; ++k) largest = std::max(largest, std::abs(x.at(token, k)));
    std::fill(steps.begin() + i, steps.begin() + end, largest / 127);
  }
  return steps;
}

inline void compare(const Case& c, const Problem& p, const Rows& x, const Rows* bias,
                    const Rows& y) {
  // The weights that are not zero, row after row: x is finite, so the others add nothing.
  struct Entry {
    int64_t k;
    double w;
  };
  std::vector<Entry> entries;
  std::vector<size_t> ends;
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t k = 0; k < c.k; ++k) {
      const double w = get(p.dense.data(), p.dense_type, n * c.k + k);
      if (w != 0) entries.push_back({k, w});
    }
    ends.push_back(entries.size());
  }
  const double rounds = lost_of_weight(c.row);
  constexpr int64_t kTokens = 4;  // at a time, as the terms of one sum wait for each other
  struct Column {
    double x[kTokens], step[kTokens];
  };
  std::vector<Column> columns(static_cast<size_t>(c.k));
  for (int64_t first = 0; first < c.m; first += kTokens) {
    const int64_t tokens = std::min(kTokens, c.m - first);
    for (int64_t j = 0; j < tokens; ++j) {
      const std::vector<double> steps = steps_of(c, x, first + j);
      for (int64_t k = 0; k < c.k; ++k) {
        Column& column = columns[static_cast<size_t>(k)];
        column.x[j] = x.at(first + j, k);
        column.step[j] = steps[static_cast<size_t>(k)];
      }
    }
    size_t i = 0;
    for (int64_t n = 0; n < c.n; ++n) {
      const double start = bias ? bias->at(0, n) : 0;
      double sums[kTokens], magnitudes[kTokens], losses[kTokens] = {};
      std::fill_n(sums, kTokens, start);
      std::fill_n(magnitudes, kTokens, std::abs(start));
      for (; i < ends[static_cast<size_t>(n)]; ++i) {
        const Column& column = columns[static_cast<size_t>(entries[i].k)];
        const double w = entries[i].w, half_step = kHalfStep * std::abs(w);
        for (int64_t j = 0; j < kTokens; ++j) {
          const double product = w * column.x[j];
          sums[j] += product;
          magnitudes[j] += std::abs(product);
          losses[j] += half_step * column.step[j] + rounds * std::abs(product);
        }
      }
      for (int64_t j = 0; j < tokens; ++j) {
        const double sum = sums[j], lost = losses[j];
        const double got = y.at(first + j, n);
        if (c.integers) {
          uint32_t rounded = 0;
          put(&rounded, y.type, 0, static_cast<float>(sum));
          ASSERT_EQ(got, get(&rounded, y.type, 0))
              << c.text() << " token " << first + j << " row " << n;
        } else {
          ASSERT_LE(std::abs(got - sum), tolerance(magnitudes[j] + lost) + lost +
                                             half_unit(y.type, std::abs(sum) + lost))
              << c.text() << " token " << first + j << " row " << n << " got " << got << " wanted "
              << sum;
        }
      }
    }
  }
  ASSERT_TRUE(y.padding_untouched()) << c.text();
}

}  // namespace tamis::test
