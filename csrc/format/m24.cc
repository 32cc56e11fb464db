// m24: pack from the row-major masks, unpack.
#include "format/m24.h"

#include "format/two_of_four.h"

namespace tamis::m24 {
namespace {

struct Record {
  using Value = uint16_t;
  uint32_t places[32];
  Value values[2][256];

  Value& value(int64_t row, int64_t element) {
    const int64_t lane = row % 8 * 4 + element / 2 % 4;
    return values[element / 16][lane * 8 + element % 16 / 8 * 4 + row / 8 * 2 + element % 2];
  }
  static int64_t word(int64_t row, int64_t element) { return row % 8 * 4 + element / 8; }
  static int64_t bit(int64_t row, int64_t element) { return 16 * (row / 8) + 2 * (element % 8); }
};
static_assert(sizeof(Record) == kRecordBytes);

}  // namespace

Status pack(const MatrixView& a, void* records) {
  TAMIS_RETURN_IF_ERROR(check_two_of_four("m24", a));
  if (a.dtype != DType::bf16 && a.dtype != DType::f16) {
    return error(Code::unsupported_dtype, "m24: dtype: got %s, wanted bf16 or f16",
                 name_of(a.dtype));
  }
  pack_two_of_four<Record>(a, records);
  return {};
}

void unpack(int64_t rows, int64_t cols, const void* records, uint16_t* out, int64_t out_stride) {
  unpack_two_of_four<Record>(rows, cols, records, out, out_stride);
}

}  // namespace tamis::m24
