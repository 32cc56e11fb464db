// m24i4: records of m24i8 with two codes in a byte.
#include "format/m24i4.h"

#include <cstring>
#include <vector>

namespace tamis::m24i4 {
namespace {

constexpr int kLanes = 32;

struct Wide {
  uint32_t places[kLanes];
  int8_t codes[kLanes][2][2][4];  // of m24i8: lane, 16 elements, row half, four elements
};
static_assert(sizeof(Wide) == m24i8::kRecordBytes);

struct Record {
  uint32_t places[kLanes];
  uint8_t codes[kLanes][2][4];
};
static_assert(sizeof(Record) == kRecordBytes);

}  // namespace

Status pack(const MatrixView& a, void* records) {
  const auto* values = static_cast<const int8_t*>(a.values);
  for (int64_t i = 0; a.dtype == DType::i8 && i < a.nnz; ++i) {
    if (values[i] < -8 || values[i] > 7) {
      return error(Code::no_kernel, "m24i4: values: got %d at %lld, wanted codes of 4 bits",
                   values[i], static_cast<long long>(i));
    }
  }
  std::vector<uint8_t> wide(static_cast<size_t>(m24i8::record_bytes(a.rows, a.cols)));
  TAMIS_RETURN_IF_ERROR(m24i8::pack(a, wide.data()));
  const int64_t tiles = t16::row_tiles(a.rows) * t16::col_tiles(a.cols);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    Wide from;
    Record to;
    std::memcpy(&from, wide.data() + tile * m24i8::kRecordBytes, sizeof from);
    std::memcpy(to.places, from.places, sizeof to.places);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          to.codes[lane][i][j] = static_cast<uint8_t>((from.codes[lane][i][0][j] & 15) |
                                                      (from.codes[lane][i][1][j] & 15) << 4);
        }
      }
    }
    std::memcpy(static_cast<uint8_t*>(records) + tile * kRecordBytes, &to, sizeof to);
  }
  return {};
}

void unpack(int64_t rows, int64_t cols, const void* records, int8_t* out, int64_t out_stride) {
  const int64_t tiles = t16::row_tiles(rows) * t16::col_tiles(cols);
  std::vector<uint8_t> wide(static_cast<size_t>(tiles * m24i8::kRecordBytes));
  for (int64_t tile = 0; tile < tiles; ++tile) {
    Record from;
    Wide to;
    std::memcpy(&from, static_cast<const uint8_t*>(records) + tile * kRecordBytes, sizeof from);
    std::memcpy(to.places, from.places, sizeof to.places);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int byte = from.codes[lane][i][j];  // sign-extended: 0 to 7 stay, 8 to 15 wrap
          to.codes[lane][i][0][j] = static_cast<int8_t>(((byte & 15) ^ 8) - 8);
          to.codes[lane][i][1][j] = static_cast<int8_t>((byte >> 4 ^ 8) - 8);
        }
      }
    }
    std::memcpy(wide.data() + tile * m24i8::kRecordBytes, &to, sizeof to);
  }
  m24i8::unpack(rows, cols, wide.data(), out, out_stride);
}

}  // namespace tamis::m24i4
