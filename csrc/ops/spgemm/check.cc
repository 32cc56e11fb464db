// What arguments of spgemm must be.
#include "ops/spgemm/spgemm.h"

namespace tamis {

Status check_spgemm(const SpgemmArgs& args) {
  for (const MatrixView* m : {&args.a, &args.b}) {
    const char* name = m == &args.a ? "a" : "b";
    if (m->format != Format::csr) {
      return error(Code::no_kernel, "spgemm: %s: got format %s, wanted csr; convert it", name,
                   name_of(m->format));
    }
    if (m->dtype != DType::f32) {
      return error(Code::unsupported_dtype, "spgemm: %s: got %s values, wanted f32; convert them",
                   name, name_of(m->dtype));
    }
    if (!m->row_offsets || (m->nnz > 0 && (!m->col_indices || !m->values))) {
      return error(Code::invalid_argument, "spgemm: %s: got null, wanted arrays", name);
    }
  }
  if (args.a.cols != args.b.rows) {
    return error(Code::invalid_argument, "spgemm: b: got %lld rows, wanted %lld, the columns of a",
                 static_cast<long long>(args.b.rows), static_cast<long long>(args.a.cols));
  }
  return {};
}

}  // namespace tamis
