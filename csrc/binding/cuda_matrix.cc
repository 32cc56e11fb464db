// Weights packed for CUDA, and products with weights that lie on a device. The device pointers come
// from torch as integers; nothing here copies, waits or allocates on a device.
#include "binding/cuda_matrix.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <unordered_map>

#include "binding/address.h"
#include "binding/array.h"
#include "binding/cuda.h"
#include "binding/matrix.h"
#include "format/g4.h"
#include "format/gap.h"
#include "format/m24.h"
#include "format/m24i4.h"
#include "format/m24i8.h"
#include "format/p24.h"
#include "format/r24.h"
#include "format/sell4.h"
#include "format/t16i8.h"
#include "ops/spmm/bitmap_f32_params.h"
#include "ops/spmm/bitmap_wgmma_params.h"
#include "ops/spmm/gap_params.h"
#include "ops/spmm/m24_many_params.h"
#include "ops/spmm/m24_wgmma_params.h"
#include "ops/spmm/p24_params.h"
#include "ops/spmm/sell4_params.h"
#include "ops/spmm/t16_params.h"

namespace tamis::binding {
namespace {

PackedFormat format_from(const char* function, const std::string& name) {
  for (const PackedFormat f :
       {PackedFormat::t16, PackedFormat::m24, PackedFormat::g4, PackedFormat::gap,
        PackedFormat::p24, PackedFormat::r24, PackedFormat::sell4, PackedFormat::m24i8,
        PackedFormat::t16i8, PackedFormat::m24i4, PackedFormat::bitmap}) {
    if (name == name_of(f)) return f;
  }
  throw py::value_error(
      std::string(function) + ": format: got " + name +
      ", wanted t16, m24, g4, gap, p24, r24, sell4, m24i8, t16i8, m24i4 or bitmap");
}

// Records that offsets find, by a format's two functions.
template <class Sized, class Packed>
py::dict pack_tiles(const Matrix& a, const Sized& pack_sizes, const Packed& pack) {
  t16::Sizes sizes;
  Status status;
  {
    const py::gil_scoped_release release;
    status = pack_sizes(a.view(), &sizes);
  }
  raise_if_error(status);
  py::array records = new_array({"uint8", "u", 1}, {sizes.record_bytes});
  py::array offsets = new_array(kUint32, {sizes.offsets});
  {
    void* to = records.mutable_data();
    auto* starts = static_cast<uint32_t*>(offsets.mutable_data());
    const py::gil_scoped_release release;
    status = pack(a.view(), starts, to);
  }
  raise_if_error(status);
  py::dict packed;
  packed["records"] = records;
  packed["offsets"] = offsets;
  packed["max_record_bytes"] = sizes.max_record_bytes;
  return packed;
}

// Records of one length.
py::dict pack_records(const Matrix& a, int64_t record_bytes,
                      Status (*pack)(const MatrixView&, void*)) {
  const int64_t tiles = t16::row_tiles(a.view().rows) * t16::col_tiles(a.view().cols);
  py::array records = new_array({"uint8", "u", 1}, {tiles * record_bytes});
  Status status;
  {
    void* to = records.mutable_data();
    const py::gil_scoped_release release;
    status = pack(a.view(), to);
  }
  raise_if_error(status);
  py::dict packed;
  packed["records"] = records;
  packed["max_record_bytes"] = record_bytes;
  return packed;
}

// p24, whose size is known only when its groups are.
py::dict pack_groups(const Matrix& a, int32_t panels) {
  p24::Packed made;
  Status status;
  {
    const py::gil_scoped_release release;
    status = p24::pack(a.view(), panels, &made);
  }
  raise_if_error(status);
  py::array records = new_array({"uint8", "u", 1}, {static_cast<int64_t>(made.records.size())});
  py::array offsets = new_array(kUint32, {static_cast<int64_t>(made.offsets.size())});
  std::copy(made.records.begin(), made.records.end(),
            static_cast<uint8_t*>(records.mutable_data()));
  std::copy(made.offsets.begin(), made.offsets.end(),
            static_cast<uint32_t*>(offsets.mutable_data()));
  py::dict packed;
  packed["records"] = records;
  packed["offsets"] = offsets;
  packed["max_record_bytes"] = made.record_bytes;
  return packed;
}

py::dict pack_for_cuda(const Matrix& a, const std::string& format) {
  const int32_t parts = gap::parts_of(a.view().rows);
  switch (format_from("pack_for_cuda", format)) {
    case PackedFormat::t16:
      return pack_tiles(a, &t16::pack_sizes, &t16::pack);
    case PackedFormat::t16i8:
      return pack_tiles(a, &t16i8::pack_sizes, &t16i8::pack);
    case PackedFormat::g4:
      return pack_tiles(a, &g4::pack_sizes, &g4::pack);
    case PackedFormat::sell4:
      return pack_tiles(a, &sell4::pack_sizes, &sell4::pack);
    case PackedFormat::gap:
      return pack_tiles(
          a,
          [&](const MatrixView& w, t16::Sizes* sizes) { return gap::pack_sizes(w, parts, sizes); },
          [&](const MatrixView& w, uint32_t* offsets, void* records) {
            return gap::pack(w, parts, offsets, records);
          });
    case PackedFormat::p24:
      return pack_groups(a, p24::panels_of(a.view().rows, a.view().cols));
    case PackedFormat::r24:
      return pack_tiles(a, &r24::pack_sizes, &r24::pack);
    case PackedFormat::m24:
      return pack_records(a, m24::kRecordBytes, &m24::pack);
    case PackedFormat::m24i8:
      return pack_records(a, m24i8::kRecordBytes, &m24i8::pack);
    case PackedFormat::m24i4:
      return pack_records(a, m24i4::kRecordBytes, &m24i4::pack);
    case PackedFormat::bitmap:
      throw py::value_error("pack_for_cuda: format: got bitmap, wanted one that is packed");
  }
  return {};
}

// A packed weight on a device, without the arrays that its format has not, with a plan per number
// of tokens, made on first use.
class CudaMatrix {
 public:
  CudaMatrix(uintptr_t records, int64_t record_bytes, int64_t max_record_bytes, uintptr_t offsets,
             int64_t rows, int64_t cols, const std::string& dtype, int32_t device,
             const std::string& format, uintptr_t scales, int64_t group_size, uintptr_t mask,
             uintptr_t row_offsets, int64_t row_values)
      : w_{.format = format_from("CudaMatrix", format),
           .rows = rows,
           .cols = cols,
           .dtype = dtype_from("CudaMatrix", "dtype", dtype),
           .records = address<void>(records),
           .offsets = address<const uint32_t>(offsets),
           .parts = format == name_of(PackedFormat::p24) ? p24::panels_of(rows, cols)
                                                         : gap::parts_of(rows),
           .scales = address<const float>(scales),
           .group_size = group_size == cols ? 0 : group_size,
           .mask = address<const uint64_t>(mask),
           .row_offsets = address<const int64_t>(row_offsets),
           .row_values = row_values,
           .record_bytes = record_bytes,
           .max_record_bytes = max_record_bytes},
        device_(cuda_device(device)) {}

  const SpmmCudaPlan& plan(int64_t m) {
    const auto known = plans_.find(m);
    if (known != plans_.end()) return known->second;
    SpmmCudaPlan found;
    raise_if_error(plan_spmm_cuda(w_, m, device_, &found));
    return plans_.insert({m, found}).first->second;
  }

  // Replaces the plan for m by another layout; false if the device cannot hold it.
  bool lay_out(int64_t m, int32_t warps_k, int32_t splits) {
    const SpmmCudaPlan& known = plan(m);  // checks m; others have one plan
    if (known.layout >= 0 || known.many_layout >= 0) return false;
    if (w_.format == PackedFormat::bitmap) {  // in 32 bits
      if (warps_k < 4 || warps_k > kBitmapF32Warps || splits < 1) return false;
      plans_[m] = lay_out_bitmap_f32(w_, m, warps_k, int64_t{splits} * device_.sms);
      return true;
    }
    if (w_.format == PackedFormat::gap || w_.format == PackedFormat::p24 ||
        w_.format == PackedFormat::sell4) {
      return false;
    }
    if (kBlockWarps % warps_k != 0 || splits < 1 || splits > t16::col_tiles(w_.cols)) return false;
    const SpmmCudaPlan wanted = lay_out_spmm_t16(w_, m, warps_k, splits);
    if (wanted.shared_bytes > device_.shared_per_block) return false;
    if (splits > 1 && wanted.blocks_n > kWorkspaceTickets) return false;
    plans_[m] = wanted;
    return true;
  }

  // The same where warpgroups take it: a line of m24_layouts.def or bitmap_layouts.def, and how
  // many blocks share the work.
  bool lay_out_groups(int64_t m, int32_t layout, int32_t blocks) {
    if (w_.format == PackedFormat::bitmap && layout >= 0 && blocks > 0 &&
        layout < static_cast<int32_t>(std::size(kBitmapLayouts))) {
      plans_[m] = lay_out_bitmap(w_, m, layout, blocks);
      return true;
    }
    const auto known = static_cast<int32_t>(std::size(kM24Layouts));
    if (w_.format != PackedFormat::m24 || device_.capability != 90) return false;
    if (layout < 0 || layout >= known || blocks < 1) return false;
    plans_[m] = lay_out_m24_group(w_, m, layout, blocks);
    return true;
  }

  // The same of m24 for many tokens: a line of m24_many_layouts.def, and parts of k.
  bool lay_out_many(int64_t m, int32_t layout, int32_t parts) {
    const auto known = static_cast<int32_t>(std::size(kM24ManyLayouts));
    if (w_.format != PackedFormat::m24 || device_.capability != 90) return false;
    if (layout < 0 || layout >= known || m < 1 || parts < 1 || parts > kMaxCluster) return false;
    plans_[m] = lay_out_m24_many(w_, m, layout, parts, device_);
    return true;
  }

  // Most tokens of a call; 0 if the columns of one do not fit in a block's shared memory.
  int64_t most_tokens() const {
    for (const int64_t m :
         {most_tokens_cuda(w_, device_), kMaxTokens, int64_t{48}, int64_t{40}, int64_t{32},
          int64_t{24}, int64_t{16}, int64_t{kSell4Tokens}, kMaxGapTokens, int64_t{2}, int64_t{1}}) {
      SpmmCudaPlan ignored;
      if (plan_spmm_cuda(w_, m, device_, &ignored).ok()) return m;
    }
    return 0;
  }

  // Name of the kernel; empty if none takes these weights on this device.
  std::string kernel() const {
    const SpmmCudaRow* row = cuda_library().choose_spmm(w_.format, w_.dtype, device_.capability);
    return row == nullptr ? "" : row->name;
  }

  void spmm(int64_t m, uintptr_t x, int64_t x_stride, uintptr_t bias, uintptr_t y, int64_t y_stride,
            uintptr_t workspace, int64_t workspace_bytes, uintptr_t stream) {
    const SpmmCudaArgs args{.w = w_,
                            .m = m,
                            .x = address<void>(x),
                            .x_stride = x_stride,
                            .bias = address<void>(bias),
                            .y = address<void>(y),
                            .y_stride = y_stride,
                            .workspace = address<void>(workspace),
                            .workspace_bytes = workspace_bytes};
    raise_if_error(cuda_library().spmm(args, plan(m), device_, address<void>(stream)));
    w_.settled = true;  // this call waited for whatever made the records
  }

  void unpack(uintptr_t out, int64_t out_stride, uintptr_t stream) const {
    raise_if_error(
        cuda_library().expand(w_, address<void>(out), out_stride, device_, address<void>(stream)));
  }

 private:
  PackedView w_;
  CudaDevice device_;
  std::unordered_map<int64_t, SpmmCudaPlan> plans_;
};

}  // namespace

void bind_cuda_matrix(py::module_& m) {
  using namespace py::literals;
  m.def("pack_for_cuda", &pack_for_cuda, "matrix"_a, "format"_a);
  m.def("p24_most_tokens", &most_p24_tokens, "rows"_a, "cols"_a);
  py::class_<CudaMatrix>(m, "CudaMatrix", "A packed weight on a device, with its plans.")
      .def(py::init<uintptr_t, int64_t, int64_t, uintptr_t, int64_t, int64_t, const std::string&,
                    int32_t, const std::string&, uintptr_t, int64_t, uintptr_t, uintptr_t,
                    int64_t>(),
           "records_ptr"_a, "record_bytes"_a, "max_record_bytes"_a, "offsets_ptr"_a, "rows"_a,
           "cols"_a, "dtype"_a, "device"_a, "format"_a = "t16", "scales_ptr"_a = 0,
           "group_size"_a = 0, "mask_ptr"_a = 0, "row_offsets_ptr"_a = 0, "row_values"_a = 0)
      .def_property_readonly("kernel", &CudaMatrix::kernel)
      .def_property_readonly("most_tokens", &CudaMatrix::most_tokens)
      .def(
          "workspace", [](CudaMatrix& w, int64_t m) { return w.plan(m).workspace_bytes; }, "m"_a)
      .def(
          "plan",
          [](CudaMatrix& w, int64_t m) {
            const SpmmCudaPlan& p = w.plan(m);
            return py::dict("layout"_a = p.layout, "many_layout"_a = p.many_layout,
                            "warps_k"_a = p.warps_k, "splits"_a = p.splits,
                            "blocks"_a = int64_t{p.blocks_n} * p.splits,
                            "shared_bytes"_a = p.shared_bytes);
          },
          "m"_a)
      .def("lay_out", &CudaMatrix::lay_out, "m"_a, "warps_k"_a, "splits"_a)
      .def("lay_out_groups", &CudaMatrix::lay_out_groups, "m"_a, "layout"_a, "blocks"_a)
      .def("lay_out_many", &CudaMatrix::lay_out_many, "m"_a, "layout"_a, "parts"_a)
      .def("spmm", &CudaMatrix::spmm, "m"_a, "x_ptr"_a, "x_stride"_a, "bias_ptr"_a, "y_ptr"_a,
           "y_stride"_a, "workspace_ptr"_a, "workspace_bytes"_a, "stream"_a)
      .def("unpack", &CudaMatrix::unpack, "out_ptr"_a, "out_stride"_a, "stream"_a);
}

}  // namespace tamis::binding
