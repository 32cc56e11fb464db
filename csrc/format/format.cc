// The one door to the formats: common argument checks, then formats.def picks the format.
#include "format/format.h"

#include <cmath>
#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"
#include "format/bitmap.h"
#include "format/block.h"
#include "format/checks.h"
#include "format/csr.h"
#include "format/csr8.h"
#include "format/groupq.h"
#include "format/matrix.h"
#include "format/nm.h"
#include "format/rows.h"
#include "format/values.h"

namespace tamis {
namespace {

using LL = long long;

Status check_extents(const char* function, int64_t rows, int64_t cols) {
  if (rows >= 0 && rows <= kMaxExtent && cols >= 0 && cols <= kMaxExtent) return {};
  return error(Code::invalid_argument, "%s: rows, cols: got %lld x %lld, wanted 0 to %lld each",
               function, LL{rows}, LL{cols}, LL{kMaxExtent});
}

// The parameters of nm, block and groupq, against the extents they divide.
Status check_pattern(const char* function, const MatrixView& a) {
  if (a.format == Format::nm) {
    if (a.keep < 1 || a.keep > a.of || a.of > 32) {
      return error(Code::invalid_argument,
                   "%s: keep, of: got %d of %d, wanted 1 <= keep <= of <= 32", function, a.keep,
                   a.of);
    }
    if (a.cols % a.of != 0) {
      return error(Code::invalid_argument,
                   "%s: cols: got %lld, wanted a multiple of the %d columns of a group", function,
                   LL{a.cols}, a.of);
    }
  }
  if (a.format == Format::block) {
    if (a.block_rows < 1 || a.block_cols < 1) {
      return error(Code::invalid_argument, "%s: block: got %d x %d, wanted at least 1 x 1",
                   function, a.block_rows, a.block_cols);
    }
    if (a.rows % a.block_rows != 0 || a.cols % a.block_cols != 0) {
      return error(Code::invalid_argument,
                   "%s: block: got %d x %d, wanted a divisor of the shape %lld x %lld", function,
                   a.block_rows, a.block_cols, LL{a.rows}, LL{a.cols});
    }
  }
  if (a.format == Format::groupq && a.cols % a.group_size != 0) {
    return error(Code::invalid_argument,
                 "%s: cols: got %lld, wanted a multiple of the %lld columns of a group", function,
                 LL{a.cols}, LL{a.group_size});
  }
  return {};
}

bool holds(Format format, DType dtype) {
  return (format == Format::groupq) == (dtype == DType::u4 || dtype == DType::u8);
}

Status check_group(const char* function, Format format, DType dtype, int64_t group_size) {
  if (format == Format::groupq) {
    if (group_size == 16 || group_size == 32) return {};
    return error(Code::invalid_argument, "%s: group_size: got %lld, wanted 16 or 32 for groupq",
                 function, LL{group_size});
  }
  if (dtype == DType::i8 ? group_size >= 0 && group_size <= kMaxExtent : group_size == 0) return {};
  return error(
      Code::invalid_argument, "%s: group_size: got %lld, wanted %s", function, LL{group_size},
      dtype == DType::i8 ? "1 to 2147483647, or 0 for whole rows" : "0 unless values are i8");
}

Status check_dense(const DenseView& w, const PackSpec& spec) {
  TAMIS_RETURN_IF_ERROR(check_extents("pack", w.rows, w.cols));
  if (static_cast<uint8_t>(spec.format) > static_cast<uint8_t>(Format::groupq)) {
    return error(Code::invalid_argument,
                 "pack: format: got %d, wanted bitmap, csr, nm, block, csr8 or groupq",
                 static_cast<int>(spec.format));
  }
  if (!holds(spec.format, spec.dtype)) {
    return error(Code::unsupported_dtype,
                 "pack: dtype: got %s for %s, wanted u4 or u8 for groupq and for no other format",
                 name_of(spec.dtype), name_of(spec.format));
  }
  if (!is_float(w.dtype) || (is_float(spec.dtype) && spec.dtype != w.dtype)) {
    return error(
        Code::unsupported_dtype,
        "pack: dtype: got %s from %s weights, wanted the weights' own f32, f16 or bf16, or "
        "i8",
        name_of(spec.dtype), name_of(w.dtype));
  }
  if (w.rows > 1 && w.stride < w.cols) {
    return error(Code::invalid_argument, "pack: w: got a row stride of %lld, wanted at least %lld",
                 LL{w.stride}, LL{w.cols});
  }
  if (w.data == nullptr && w.rows > 0 && w.cols > 0) {
    return error(Code::invalid_argument, "pack: w: got a null pointer, wanted %lld x %lld weights",
                 LL{w.rows}, LL{w.cols});
  }
  if (spec.code_limit < 1 || spec.code_limit > 127) {
    return error(Code::invalid_argument, "pack: code_limit: got %d, wanted 1 to 127",
                 spec.code_limit);
  }
  TAMIS_RETURN_IF_ERROR(check_group("pack", spec.format, spec.dtype, spec.group_size));
  return check_pattern("pack", {.format = spec.format,
                                .rows = w.rows,
                                .cols = w.cols,
                                .keep = spec.keep,
                                .of = spec.of,
                                .block_rows = spec.block_rows,
                                .block_cols = spec.block_cols,
                                .group_size = spec.group_size});
}

// A kernel may read `count` elements of `size` bytes at `data`.
Status check_array(const char* name, const void* data, int64_t count, int64_t size) {
  if (count < 0) {
    return error(Code::corrupt, "check: %s: got %lld elements, wanted 0 or more", name, LL{count});
  }
  if (count > 0 && data == nullptr) {
    return error(Code::corrupt, "check: %s: got a null pointer, wanted %lld elements", name,
                 LL{count});
  }
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size) != 0) {
    return error(Code::corrupt,
                 "check: %s: got an address that is not a multiple of %lld bytes, wanted one", name,
                 LL{size});
  }
  return {};
}

Status check_scales(const MatrixView& a) {
  const int64_t groups = a.dtype == DType::i8 ? scale_groups(a.cols, a.group_size) : 0;
  for (int64_t i = 0; i < a.rows * groups; ++i) {
    if (!std::isfinite(a.scales[i])) {
      return error(Code::corrupt,
                   "check: scales: got %g for row %lld, group %lld, wanted a finite "
                   "number",
                   static_cast<double>(a.scales[i]), LL{i / groups}, LL{i % groups});
    }
  }
  return {};
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes) {
  TAMIS_RETURN_IF_ERROR(check_dense(w, spec));
  switch (spec.format) {
#define TAMIS_FORMAT(name)                                   \
  case Format::name:                                         \
    TAMIS_RETURN_IF_ERROR(name::pack_sizes(w, spec, sizes)); \
    break;
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  if (spec.dtype == DType::i8) sizes->scales = w.rows * scale_groups(w.cols, spec.group_size);
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  TAMIS_RETURN_IF_ERROR(check_dense(w, spec));
  if (spec.dtype == DType::i8) TAMIS_RETURN_IF_ERROR(write_scales(w, spec, out.scales));
  switch (spec.format) {
#define TAMIS_FORMAT(name) \
  case Format::name:       \
    return name::pack(w, spec, out);
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  return {};
}

Status unpack(const MatrixView& a, void* out, int64_t out_stride) {
  if (a.rows > 1 && out_stride < a.cols) {
    return error(Code::invalid_argument,
                 "unpack: out: got a row stride of %lld, wanted at least %lld", LL{out_stride},
                 LL{a.cols});
  }
  switch (a.format) {
#define TAMIS_FORMAT(name)            \
  case Format::name:                  \
    name::unpack(a, out, out_stride); \
    break;
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  return {};
}

Status unpack_keep(const MatrixView& a, uint8_t* keep) {
  switch (a.format) {
#define TAMIS_FORMAT(name)      \
  case Format::name:            \
    name::unpack_keep(a, keep); \
    break;
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  return {};
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_extents("check", a.rows, a.cols));
  if (static_cast<uint8_t>(a.dtype) > static_cast<uint8_t>(DType::u8) ||
      static_cast<uint8_t>(a.format) > static_cast<uint8_t>(Format::groupq) ||
      !holds(a.format, a.dtype)) {
    return error(Code::corrupt,
                 "check: format, dtype: got %d and %d, wanted 0 to 4 and 0 to 3, or 5 and 4 to 5",
                 static_cast<int>(a.format), static_cast<int>(a.dtype));
  }
  TAMIS_RETURN_IF_ERROR(check_group("check", a.format, a.dtype, a.group_size));
  TAMIS_RETURN_IF_ERROR(check_pattern("check", a));
  TAMIS_RETURN_IF_ERROR(check_array("values", a.values, sizes.values, size_of(a.dtype)));
  TAMIS_RETURN_IF_ERROR(check_array("mask", a.mask, sizes.mask, 8));
  TAMIS_RETURN_IF_ERROR(check_array("row_offsets", a.row_offsets, sizes.row_offsets, 8));
  TAMIS_RETURN_IF_ERROR(check_array("col_indices", a.col_indices, sizes.col_indices, 4));
  TAMIS_RETURN_IF_ERROR(check_array("col_bytes", a.col_bytes, sizes.col_bytes, 1));
  if (a.format != Format::csr8) {
    TAMIS_RETURN_IF_ERROR(check_length("col_bytes", sizes.col_bytes, 0));
  }
  TAMIS_RETURN_IF_ERROR(check_array("scales", a.scales, sizes.scales, 4));
  TAMIS_RETURN_IF_ERROR(check_array("scales", a.group_scales, sizes.group_scales, 2));
  if (a.format != Format::groupq) {
    TAMIS_RETURN_IF_ERROR(check_length("scales", sizes.group_scales, 0));
  }
  if (a.nnz > a.rows * a.cols) {
    return error(Code::corrupt, "check: values: got %lld values, wanted at most %lld x %lld",
                 LL{a.nnz}, LL{a.rows}, LL{a.cols});
  }
  TAMIS_RETURN_IF_ERROR(check_length("values", sizes.values, value_elements(a.dtype, a.nnz)));
  const int64_t groups = a.dtype == DType::i8 ? scale_groups(a.cols, a.group_size) : 0;
  TAMIS_RETURN_IF_ERROR(check_length("scales", sizes.scales, a.rows * groups));
  switch (a.format) {
#define TAMIS_FORMAT(name) \
  case Format::name:       \
    return name::check_sizes(a, sizes);
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  return {};
}

Status check(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_sizes(a, sizes));
  TAMIS_RETURN_IF_ERROR(check_scales(a));
  switch (a.format) {
#define TAMIS_FORMAT(name) \
  case Format::name:       \
    return name::check_content(a);
#include "format/formats.def"
#undef TAMIS_FORMAT
  }
  return {};
}

}  // namespace tamis
