// Two random csr matrices in guarded memory, and the comparison of a product with the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "guarded.h"
#include "ops/spgemm/spgemm.h"

namespace tamis::test {

enum class SpgemmShape {
  random,   // rows of any length up to twice the mean, some empty
  banded,   // columns next to the diagonal
  skewed,   // a few rows and columns have most values
  crossed,  // a's first row meets every row of b
  half,     // every row of a meets half of them
};

struct SpgemmCase {
  SpgemmShape shape;
  int64_t m, p, n;
  int64_t mean;  // values of a row
};
inline std::string to_string(const SpgemmCase& c) {
  return "shape " + std::to_string(static_cast<int>(c.shape)) + " m " + std::to_string(c.m) +
         " p " + std::to_string(c.p) + " n " + std::to_string(c.n) + " mean " +
         std::to_string(c.mean);
}

// A csr matrix whose arrays end at guard pages.
class CsrMatrix {
 public:
  CsrMatrix(SpgemmShape shape, int64_t rows, int64_t cols, int64_t mean, std::mt19937_64* random,
            bool first)
      : offsets_(static_cast<size_t>(rows + 1)) {
    std::vector<int32_t> columns;
    for (int64_t r = 0; r < rows; ++r) {
      offsets_[static_cast<size_t>(r)] = static_cast<int64_t>(columns.size());
      auto count = static_cast<int64_t>((*random)() % static_cast<uint64_t>(2 * mean + 1));
      if (shape == SpgemmShape::skewed) count = r % 16 == 0 ? 8 * mean : count / 4;
      if (shape == SpgemmShape::crossed && first) count = r == 0 ? cols : count;
      if (shape == SpgemmShape::half && first) count = cols / 2;
      count = std::min(count, cols);
      std::vector<int32_t> row;
      if (count == cols) {
        row.resize(static_cast<size_t>(cols));
        std::iota(row.begin(), row.end(), 0);
      }
      while (static_cast<int64_t>(row.size()) < count) {
        const auto any = static_cast<int64_t>((*random)() % static_cast<uint64_t>(cols));
        int64_t column = any;
        if (shape == SpgemmShape::banded) column = (r + any % (4 * mean)) % cols;
        if (shape == SpgemmShape::skewed && any % 2 == 0) column = any * any / cols;
        row.push_back(static_cast<int32_t>(column));
        if (static_cast<int64_t>(row.size()) < count) continue;
        std::sort(row.begin(), row.end());
        row.erase(std::unique(row.begin(), row.end()), row.end());
        if (shape == SpgemmShape::banded || shape == SpgemmShape::skewed) break;  // few places
      }
      columns.insert(columns.end(), row.begin(), row.end());
    }
    offsets_[static_cast<size_t>(rows)] = static_cast<int64_t>(columns.size());
    columns_ = std::make_unique<Guarded<int32_t>>(std::span<const int32_t>(columns));
    values_ = std::make_unique<Guarded<float>>(columns.size());
    for (float& v : values_->span()) {  // small integers, so that some sums are zero, then not
      v = static_cast<float>(static_cast<int>((*random)() % 5)) - 2.0f;
      if ((*random)() % 2 == 0) v *= 1.1f;
    }
    view_ = {.format = Format::csr,
             .rows = rows,
             .cols = cols,
             .values = values_->data(),
             .nnz = static_cast<int64_t>(columns.size()),
             .row_offsets = offsets_.data(),
             .col_indices = columns_->data()};
  }
  const MatrixView& view() const { return view_; }

 private:
  Guarded<int64_t> offsets_;
  std::unique_ptr<Guarded<int32_t>> columns_;
  std::unique_ptr<Guarded<float>> values_;
  MatrixView view_;
};

class SpgemmProblem {
 public:
  SpgemmProblem(const SpgemmCase& c, uint64_t seed)
      : random_(seed),
        a_(c.shape, c.m, c.p, c.mean, &random_, true),
        b_(c.shape, c.p, c.n, c.mean, &random_, false) {}
  SpgemmArgs args() const { return {.a = a_.view(), .b = b_.view()}; }

  // What is wrong with a product; empty if nothing.
  std::string compare(const std::vector<int64_t>& offsets, const std::vector<int32_t>& columns,
                      const std::vector<float>& values) const {
    const SpgemmArgs a = args();
    const int64_t m = a.a.rows, n = a.b.cols;
    std::vector<double> wanted(static_cast<size_t>(m * n));
    std::vector<uint8_t> places(wanted.size());
    if (!spgemm_reference(a, wanted.data(), places.data()).ok()) return "no reference";
    int64_t at = 0;
    for (int64_t i = 0; i < m; ++i) {
      if (offsets[static_cast<size_t>(i)] != at)
        return "row " + std::to_string(i) + " begins wrong";
      for (int64_t j = 0; j < n; ++j) {
        if (places[static_cast<size_t>(i * n + j)] == 0) continue;
        const auto e = static_cast<size_t>(at++);
        if (e >= columns.size() || columns[e] != j) {
          return "row " + std::to_string(i) + ": no column " + std::to_string(j);
        }
        const double want = wanted[static_cast<size_t>(i * n + j)];
        if (!(std::fabs(values[e] - want) <= 1e-4 + 1e-5 * std::fabs(want))) {
          return "row " + std::to_string(i) + ", column " + std::to_string(j) + ": got " +
                 std::to_string(values[e]) + ", wanted " + std::to_string(want);
        }
      }
    }
    if (offsets[static_cast<size_t>(m)] != at) return "stores more than falls on it";
    return {};
  }

 private:
  std::mt19937_64 random_;
  CsrMatrix a_, b_;
};

}  // namespace tamis::test
