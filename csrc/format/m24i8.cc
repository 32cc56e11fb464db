// m24i8: pack from the row-major masks, unpack.
#include "format/m24i8.h"

#include "format/two_of_four.h"

namespace tamis::m24i8 {
namespace {

struct Record {
  using Value = int8_t;
  uint32_t places[32];
  Value codes[512];

  Value& value(int64_t row, int64_t element) {
    const int64_t lane = row % 8 * 4 + element / 4 % 4;
    return codes[lane * 16 + element / 16 * 8 + row / 8 * 4 + element % 4];
  }
  static int64_t word(int64_t row, int64_t element) {
    return row % 8 * 4 + element / 16 * 2 + row / 8;
  }
  static int64_t bit(int64_t, int64_t element) { return 2 * (element % 16); }
};
static_assert(sizeof(Record) == kRecordBytes);

}  // namespace

Status pack(const MatrixView& a, void* records) {
  TAMIS_RETURN_IF_ERROR(check_two_of_four("m24i8", a));
  if (a.dtype != DType::i8) {
    return error(Code::unsupported_dtype, "m24i8: dtype: got %s, wanted i8", name_of(a.dtype));
  }
  pack_two_of_four<Record>(a, records);
  return {};
}

void unpack(int64_t rows, int64_t cols, const void* records, int8_t* out, int64_t out_stride) {
  unpack_two_of_four<Record>(rows, cols, records, out, out_stride);
}

}  // namespace tamis::m24i8
