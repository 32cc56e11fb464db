// Kernels that come in layouts, each a line of a .def file, on the simulator in both dtypes.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "cuda_sim/problem.h"
#include "format/m24.h"

namespace tamis::test {

// A layout's kernel in one dtype; `layout` is its line. A test derives its own row from it, beside
// which run_twice and noticed find the test's run().
template <class ParamsOf>
struct LayoutRow {
  using Params = ParamsOf;
  int32_t layout;
  DType dtype;
  void (*kernel)(Params);

  std::string simulate(const sim::Launch& launch, const Params& params) const {
    return sim::launch(launch, [&] { kernel(params); });
  }
};

// The rows of all layouts, whose kernels come in pairs, bf16 and f16.
template <class Row>
std::vector<Row> layout_rows(
    std::initializer_list<std::pair<void (*)(typename Row::Params), void (*)(typename Row::Params)>>
        kernels) {
  std::vector<Row> rows;
  int32_t layout = 0;
  for (const auto& [bf16, f16] : kernels) {
    rows.push_back({{layout, DType::bf16, bf16}});
    rows.push_back({{layout, DType::f16, f16}});
    ++layout;
  }
  return rows;
}

// A 2:4 weight as plans see it: without its bytes.
inline PackedView m24_weight(int64_t n, int64_t k) {
  return {.format = PackedFormat::m24,
          .rows = n,
          .cols = k,
          .record_bytes = m24::record_bytes(n, k),
          .max_record_bytes = m24::kRecordBytes};
}

}  // namespace tamis::test
