// Reference of spgemm: the definition in double, dense.
#include <algorithm>

#include "ops/spgemm/spgemm.h"

namespace tamis {

Status spgemm_reference(const SpgemmArgs& args, double* c, uint8_t* places) {
  TAMIS_RETURN_IF_ERROR(check_spgemm(args));
  const MatrixView &a = args.a, &b = args.b;
  std::fill(c, c + a.rows * b.cols, 0.0);
  std::fill(places, places + a.rows * b.cols, uint8_t{0});
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t e = a.row_offsets[i]; e < a.row_offsets[i + 1]; ++e) {
      const int64_t p = a.col_indices[e];
      for (int64_t f = b.row_offsets[p]; f < b.row_offsets[p + 1]; ++f) {
        const int64_t at = i * b.cols + b.col_indices[f];
        c[at] += static_cast<double>(static_cast<const float*>(a.values)[e]) *
                 static_cast<const float*>(b.values)[f];
        places[at] = 1;
      }
    }
  }
  return {};
}

}  // namespace tamis
