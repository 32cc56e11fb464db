// References of spmm_grad: the definitions in double.
#include <algorithm>
#include <vector>

#include "base/elements.h"
#include "ops/spmm_grad/row_entries.h"
#include "ops/spmm_grad/spmm_grad.h"

namespace tamis {

Status spmm_t_reference(const SpmmTArgs& a, double* dx) {
  TAMIS_RETURN_IF_ERROR(check_spmm_t(a));
  std::vector<int32_t> buffer(static_cast<size_t>(a.w.cols));
  std::fill(dx, dx + a.m * a.w.cols, 0.0);
  for (int64_t r = 0; r < a.w.rows; ++r) {
    const RowEntries row = row_entries(a.w, r, buffer.data());
    for (int64_t i = 0; i < row.count; ++i) {
      const double w = load_element(a.w.dtype, a.w.values, row.first + i);
      for (int64_t t = 0; t < a.m; ++t) {
        dx[t * a.w.cols + row.columns[i]] += w * load_element(a.dtype, a.dy, t * a.dy_stride + r);
      }
    }
  }
  return {};
}

Status sddmm_reference(const SddmmArgs& a, double* dw) {
  TAMIS_RETURN_IF_ERROR(check_sddmm(a));
  std::vector<int32_t> buffer(static_cast<size_t>(a.w.cols));
  for (int64_t r = 0; r < a.w.rows; ++r) {
    const RowEntries row = row_entries(a.w, r, buffer.data());
    for (int64_t i = 0; i < row.count; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < a.m; ++t) {
        sum += static_cast<double>(load_element(a.dtype, a.dy, t * a.dy_stride + r)) *
               load_element(a.dtype, a.x, t * a.x_stride + row.columns[i]);
      }
      dw[row.first + i] = sum;
    }
  }
  return {};
}

}  // namespace tamis
