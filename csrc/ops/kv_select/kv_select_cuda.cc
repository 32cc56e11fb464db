// kv_select on CUDA: the checks of a call and the memory between its kernels.
#include "ops/kv_select/kv_select_cuda.h"

#include <algorithm>

#include "format/matrix.h"
#include "ops/kv_select/check.h"
#include "ops/kv_select/choose_params.h"
#include "ops/kv_select/mass_params.h"
#include "ops/kv_select/unite_params.h"

namespace tamis {
namespace {

using kv_select_checks::bad;
using kv_select_checks::check_float;
using kv_select_checks::check_head_dim;

constexpr int64_t kMaxHeads = 65535;  // of a grid

constexpr MassCudaRow kMass[] = {
#define TAMIS_KV_MASS_CUDA(dtype, row_tiles)                                            \
  {row_tiles == 1 ? "kv_mass_" #dtype "_r64_sm80up" : "kv_mass_" #dtype "_r128_sm80up", \
   DType::dtype, 16 * row_tiles * kTileWarps},
#include "ops/kv_select/kernels_cuda.def"
#undef TAMIS_KV_MASS_CUDA
};

// Whether tensor cores take both operands as they are.
bool as_stored(const KvMassArgs& a) {
  return a.q_dtype == a.keys.dtype && a.q_dtype != DType::f32;
}

int64_t mass_row_bytes(const KvMassArgs& a) {
  return tile_row_bytes(a.head_dim, !as_stored(a));
}

int32_t mass_splits(const KvMassArgs& a, const CudaDevice& device) {
  const int64_t rows = a.heads * a.queries, kept = choose_mass_cuda(a, false)->rows;
  const int64_t blocks = std::max<int64_t>(1, a.batch * a.kv_heads * ceil_div(rows, kept));
  const int64_t tiles = ceil_div(a.keys.units, kTileStream);  // two rounds of three blocks an SM
  return static_cast<int32_t>(std::clamp<int64_t>(std::min(6 * device.sms / blocks, tiles / 4), 1,
                                                  int64_t{kMassMostSplits}));
}

bool weighted(const KvEstimateArgs& a) {
  return a.reduce == KvReduce::log_weight;
}

int64_t units_at_a_time(const KvEstimateArgs& a) {
  return a.units.kind == KvSummary::labels ? kEstimateUnits : kEstimateRowUnits;
}

}  // namespace

Status check_estimate_cuda(const KvEstimateArgs& a) {
  const KvUnits& u = a.units;
  const int64_t heads = a.batch * a.kv_heads;
  if (std::min({a.batch, a.kv_heads, a.rows}) < 0 || heads > kMaxHeads) {
    return bad("q", heads, "0 to 65535 KV heads");
  }
  if (a.rows > kEstimateRows) {
    return bad("rows", a.rows,
               "at most 8 a KV head on CUDA; keep the cache on the CPU, or use a method that reads "
               "all tokens");
  }
  TAMIS_RETURN_IF_ERROR(check_float("q", a.q_dtype));
  TAMIS_RETURN_IF_ERROR(check_head_dim(a.head_dim));
  if (u.units < 0 || u.units > INT32_MAX) return bad("units", u.units, "0 to 2^31 - 1");
  if (heads * a.rows * u.units > 0 && (!a.q || !u.data)) {
    return error(Code::invalid_argument, "kv_select: q, units: got null");
  }
  if (u.kind == KvSummary::labels) {
    TAMIS_RETURN_IF_ERROR(check_kv_label(u.labels));
    if (!u.channels) return error(Code::invalid_argument, "kv_select: channels: got null");
    const int64_t strides = u.batch_stride | u.head_stride;
    if (reinterpret_cast<uintptr_t>(u.data) % 4 != 0 || strides % 4 != 0) {
      return bad("labels", strides, "records at multiples of 4 bytes");
    }
    return {};
  }
  TAMIS_RETURN_IF_ERROR(check_float("units", u.dtype));
  const int64_t strides = u.batch_stride | u.head_stride | u.unit_stride;
  const int64_t each = u.dtype == DType::f32 ? 4 : 8;  // elements of 16 bytes
  if (reinterpret_cast<uintptr_t>(u.data) % 16 != 0 || strides % each != 0) {
    return bad("units", strides, "rows at multiples of 16 bytes; copy them");
  }
  return {};
}

Status check_select_cuda(const KvSelectArgs& a) {
  if (a.heads < 0 || a.units < 0 || a.units > kSelectUnits) {
    return bad("units", a.units, "0 to 2 million on CUDA");
  }
  if (std::min({a.k, a.sink, a.recent}) < 0) return bad("k, sink, recent", -1, "none below 0");
  if (a.page < 1) return bad("page", a.page, "1 or more");
  if (!(a.top_p >= 0 && a.top_p <= 1)) return bad("top_p", -1, "0 to 1");
  if (a.heads > 0 && (!a.count || (a.units > 0 && a.index_stride > 0 && !a.index))) {
    return error(Code::invalid_argument, "kv_select: index, count: got null");
  }
  const int64_t k = a.top_p > 0 ? a.units : std::max(a.budget ? 0 : a.k, a.sink + a.recent);
  if (std::min(a.units, k) * a.page > a.index_stride) {
    return bad("index_stride", a.index_stride, "room for the budget");
  }
  return {};
}

Status check_choose_cuda(const KvChooseArgs& args) {
  const KvEstimateArgs& e = args.estimate;
  const KvSelectArgs& a = args.select;
  TAMIS_RETURN_IF_ERROR(check_estimate_cuda(e));
  TAMIS_RETURN_IF_ERROR(check_select_cuda(a));
  if (a.heads != e.batch * e.kv_heads || a.units != e.units.units) {
    return bad("heads, units", a.units, "those of the estimate");
  }
  if (!args.by_row) return {};
  if (e.rows < 1) return bad("rows", e.rows, "1 or more");
  if (a.top_p > 0) return bad("top_p", 1, "0, as rows choose by k");
  if (a.heads > kWorkspaceTickets) return bad("q", a.heads, "at most 16384 KV heads by row");
  const int64_t each = std::max(a.budget ? a.units : a.k, a.sink + a.recent);
  if (std::min(a.units, e.rows * each) * a.page > a.index_stride) {
    return bad("index_stride", a.index_stride, "room for every row's budget");
  }
  return {};
}

Status check_append_labels_cuda(const KvAppendLabelsArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_label(a.labels));
  TAMIS_RETURN_IF_ERROR(check_float("keys", a.keys_dtype));
  if (std::min({a.batch, a.kv_heads, a.first, a.count}) < 0 || a.batch * a.kv_heads > kMaxHeads) {
    return bad("keys", a.batch * a.kv_heads, "no size below 0, at most 65535 KV heads");
  }
  if (a.batch * a.kv_heads * a.count > 0 && (!a.keys || !a.channels || !a.records)) {
    return error(Code::invalid_argument, "kv_append_labels: keys, channels, records: got null");
  }
  const int64_t strides = a.batch_stride_bytes | a.head_stride_bytes;
  if (reinterpret_cast<uintptr_t>(a.records) % 4 != 0 || strides % 4 != 0) {
    return bad("records", strides, "records at multiples of 4 bytes");
  }
  return {};
}

std::span<const MassCudaRow> mass_cuda_kernels() {
  return kMass;
}

const MassCudaRow* choose_mass_cuda(const KvMassArgs& a, bool columns) {
  const DType type = as_stored(a) ? a.q_dtype : DType::f32;
  const int64_t all = columns ? a.keys.units : a.heads * a.queries;
  const int32_t rows = type == DType::f32 || all <= 64 || mass_row_bytes(a) > 256 ? 64 : 128;
  for (const MassCudaRow& row : kMass) {
    if (row.dtype == type && row.rows == rows) return &row;
  }
  return nullptr;
}

Status check_mass_cuda(const KvMassArgs& a) {
  const KvUnits& u = a.keys;
  const int64_t heads = a.batch * a.kv_heads;
  if (std::min({a.batch, a.kv_heads, a.heads, a.queries}) < 0 || heads > kMaxHeads) {
    return bad("q", heads, "0 to 65535 KV heads");
  }
  TAMIS_RETURN_IF_ERROR(check_float("q", a.q_dtype));
  TAMIS_RETURN_IF_ERROR(check_float("keys", u.dtype));
  const int64_t most = as_stored(a) ? 256 : 128;
  if (a.head_dim < 16 || a.head_dim > most || a.head_dim % 16 != 0) {
    return bad("head_dim", a.head_dim,
               most == 256 ? "a multiple of 16 from 16 to 256"
                           : "a multiple of 16 from 16 to 128 on CUDA, to 256 where q and keys are "
                             "both f16 or bf16");
  }
  if (u.kind != KvSummary::rows) return bad("keys", 1, "rows");
  if (u.units < 0 || u.units > INT32_MAX || a.heads * a.queries > INT32_MAX) {
    return bad("units", u.units, "0 to 2^31 - 1");
  }
  if (!a.positions && a.queries > u.units) return bad("queries", a.queries, "no more than tokens");
  if (heads * a.heads * a.queries > 0 && (!a.q || !a.out || (u.units > 0 && !u.data))) {
    return error(Code::invalid_argument, "kv_select: q, keys, out: got null");
  }
  if (!(a.scale > 0)) {
    return error(Code::no_kernel, "kv_select: scale: got %g, wanted above 0 on CUDA",
                 static_cast<double>(a.scale));
  }
  const int64_t strides = u.batch_stride | u.head_stride | u.unit_stride;
  const int64_t each = u.dtype == DType::f32 ? 4 : 8;  // elements of 16 bytes
  const auto place = reinterpret_cast<uintptr_t>(u.data) | reinterpret_cast<uintptr_t>(a.q);
  if (place % 16 != 0 || strides % each != 0) {
    return bad("keys", strides, "rows at multiples of 16 bytes; copy them");
  }
  return {};
}

int64_t mass_workspace(const KvMassArgs& a, const CudaDevice& device) {
  const int64_t rows = a.batch * a.kv_heads * a.heads * a.queries, splits = mass_splits(a, device);
  return kWorkspaceTicketBytes + 4 * rows * (splits > 1 ? 1 + 2 * splits : 1);
}

MassParams mass_params(const KvMassArgs& a, void* workspace, const CudaDevice& device) {
  const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
  const int64_t size = size_of(a.keys.dtype), heads = a.batch * a.kv_heads;
  const int32_t splits = mass_splits(a, device);
  auto* lse = reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes);
  return {.q = static_cast<const uint8_t*>(a.q),
          .keys = static_cast<const uint8_t*>(a.keys.data),
          .q_dtype = a.q_dtype,
          .key_dtype = a.keys.dtype,
          .key_batch = size * a.keys.batch_stride,
          .key_head = size * a.keys.head_stride,
          .key_token = size * a.keys.unit_stride,
          .kv_heads = narrow(a.kv_heads),
          .heads = narrow(heads),
          .rows = narrow(a.heads * a.queries),
          .queries = narrow(a.queries),
          .tokens = narrow(a.keys.units),
          .dim = narrow(a.head_dim),
          .row_bytes = narrow(mass_row_bytes(a)),
          .factor = a.scale * 1.4426950408889634f,
          .share = 1.0f / static_cast<float>(std::max<int64_t>(a.heads, 1)),
          .positions = a.positions,
          .begin = a.begin,
          .out = a.out,
          .lse = lse,
          .parts = lse + heads * a.heads * a.queries,
          .splits = splits,
          .split_tiles = narrow(ceil_div(ceil_div(a.keys.units, kTileStream), splits))};
}

int64_t estimate_workspace(const KvEstimateArgs& a) {
  if (!weighted(a)) return kWorkspaceTicketBytes;
  const int64_t rows = a.batch * a.kv_heads * a.rows;
  return kWorkspaceTicketBytes + 8 * rows * ceil_div(a.units.units, units_at_a_time(a));
}

EstimateParams estimate_params(const KvEstimateArgs& a, void* workspace, const CudaDevice& device) {
  const int64_t d = a.head_dim;
  const bool labels = a.units.kind == KvSummary::labels;
  // One round of blocks, three of which share an SM: what a block does before its first score is
  // longer than scoring the units it takes at a time.
  const int64_t each = units_at_a_time(a), turns = ceil_div(a.units.units, each);
  const int64_t span =
      each * std::max<int64_t>(1, ceil_div(a.batch * a.kv_heads * turns, 3 * device.sms));
  auto* stats = reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes);
  return {.args = a,
          .label_scale = a.units.labels.scale(),
          .label_min = a.units.labels.min(),
          .label_bytes = a.units.labels.bytes(),
          .blocks = static_cast<int32_t>(ceil_div(a.units.units, span)),
          .span = static_cast<int32_t>(span),
          .width = static_cast<int32_t>(labels ? a.units.labels.channels / 4
                                        : a.units.kind == KvSummary::bounds ? 2 * d
                                                                            : d),
          .weighted = weighted(a),
          .by_row = false,
          .products = !labels && a.units.dtype == a.q_dtype && a.q_dtype != DType::f32 &&
                      d % kProductChannels == 0,
          .stats = stats};
}

int64_t choose_workspace(const KvChooseArgs& args) {
  if (!args.by_row) return 0;
  const KvEstimateArgs& a = args.estimate;
  const int64_t units = a.units.units;
  return kWorkspaceTicketBytes + 4 * a.batch * a.kv_heads * a.rows * (units + ceil_div(units, 32));
}

EstimateParams rows_params(const KvEstimateArgs& a, void* workspace, const CudaDevice& device) {
  KvEstimateArgs each = a;
  each.reduce = KvReduce::score;
  each.out = reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes);
  EstimateParams p = estimate_params(each, workspace, device);
  p.by_row = true;
  return p;
}

UniteParams unite_params(const KvEstimateArgs& e, const KvSelectArgs& select, void* workspace) {
  auto* scores = reinterpret_cast<float*>(static_cast<uint8_t*>(workspace) + kWorkspaceTicketBytes);
  UniteParams p{
      .select = select,
      .rows = static_cast<int32_t>(e.rows),
      .words = static_cast<int32_t>(ceil_div(e.units.units, 32)),
      .tickets = static_cast<uint32_t*>(workspace),
      .taken = reinterpret_cast<uint32_t*>(scores + select.heads * e.rows * select.units)};
  p.select.scores = scores;
  return p;
}

bool kv_choose_fits(const KvChooseArgs& args, const CudaDevice& device) {
  if (args.by_row) return true;
  const KvEstimateArgs& e = args.estimate;
  const int64_t units = e.units.units;
  const auto at = reinterpret_cast<uintptr_t>(e.units.data);
  const auto strides = static_cast<uintptr_t>(e.units.batch_stride | e.units.head_stride);
  return device.capability == 90 && e.units.kind == KvSummary::labels && (at | strides) % 16 == 0 &&
         e.units.labels.channels <= kChooseChannels && e.rows >= 1 && e.rows <= kChooseRows &&
         units >= 1 && units <= choose_most(choose_rows(e.rows));
}

ChooseParams choose_params(const KvEstimateArgs& e, const KvSelectArgs& select,
                           const CudaDevice& device, const ChooseFit& fit, bool may_be_whole) {
  const int64_t heads = e.batch * e.kv_heads, units = e.units.units;
  // As few blocks of a cluster as hold all scores, and more while every thread has a unit and no
  // cluster waits for another one.
  const int32_t rows = choose_rows(e.rows);
  int64_t blocks = ceil_div(units, kChooseThreads * choose_turns(rows, false));
  while (blocks < kChooseBlocks && blocks * kChooseThreads < units &&
         heads <= fit[static_cast<size_t>(blocks)]) {
    ++blocks;
  }
  ChooseParams p{.estimate = estimate_params(e, nullptr, device),
                 .select = select,
                 .turns = 0,
                 .whole = false};
  const int64_t span = 32 * ceil_div(units, 32 * blocks);
  p.turns = static_cast<int32_t>(ceil_div(span, kChooseThreads));
  p.whole = may_be_whole && p.turns <= choose_turns(rows, true);
  p.estimate.blocks = static_cast<int32_t>(blocks);
  p.estimate.span = static_cast<int32_t>(span);
  p.estimate.stats = nullptr;
  const int32_t unit =
      rows / kChooseFewRows * (p.whole ? kChooseUnitBytes<true> : kChooseUnitBytes<false>);
  p.estimate.shared_at = kChooseScoresAt + unit * kChooseThreads * p.turns;
  return p;
}

int32_t choose_shared(const ChooseParams& p) {
  const auto rows = static_cast<int32_t>(p.estimate.args.rows);
  return p.estimate.shared_at + 4 * (rows * p.estimate.width + 2 * rows);
}

}  // namespace tamis
