// sparse_attention on CUDA without the kernels: their list, the choice, the checks of a call, its
// layout.
#include <algorithm>

#include "format/matrix.h"
#include "ops/sparse_attention/attention_cuda.h"
#include "ops/sparse_attention/attention_params.h"

namespace tamis {
namespace {

// Shared memory of a block: rings of 4 warps; the same numbers as PageConfig and RowConfig, which
// only device code may see (a test compares them).
constexpr int32_t page_shared(int32_t bits, int32_t d, int32_t tokens, int32_t group) {
  const KvPageLayout layout{
      .head_dim = d, .tokens = tokens, .key_bits = bits, .value_bits = bits, .group = group};
  return kAttentionRingAt +
         static_cast<int32_t>(page_warps(bits) * page_stages(bits, tokens) * layout.bytes());
}
constexpr int32_t row_shared(int32_t d) {
  return kAttentionRingAt + kRowWarps * kRowStages * 2 * 16 * 2 * d;
}

constexpr AttentionCudaRow kKernels[] = {
#define TAMIS_ATTENTION_PAGES(name, bits, d, tokens, group)                               \
  {"sparse_attention_" #name "_d" #d "_sm80up", KvStorage::pages, bits, d, tokens, group, \
   page_shared(bits, d, tokens, group)},
#define TAMIS_ATTENTION_ROWS(dtype, d) \
  {"sparse_attention_" #dtype "_d" #d "_sm80up", KvStorage::dtype, 16, d, 16, 0, row_shared(d)},
#include "ops/sparse_attention/kernels_cuda.def"
#undef TAMIS_ATTENTION_PAGES
#undef TAMIS_ATTENTION_ROWS
};

// What a warp's tile costs, a block beside its tiles, meeting where there are several, and adding
// up each part.
struct Costs {
  double tile, block, meeting, part;
};
// Guessed from 11 us that 16 tiles of rows took an H200; parts from 9.7 us for 16 splits of two
// tiles a warp and 11.1 for 32 of one.
constexpr Costs kCosts{1, 4, 6, 0.08};
// Pages of 4 bits there: 1.4 us for 32 tokens a warp, 3 for a block, 1 to 2 for meeting.
constexpr Costs page_costs(int64_t tokens) {
  return {static_cast<double>(tokens) / 32, 2, 1.5, 0.05};
}

constexpr int32_t kReservedShared = 1024;  // bytes of each block

// Pages of a warp up to which blocks of pages read a tail as well. Its warps come to their end
// later than the others, by 1.5 us where all have 64 pages, which a launch of its own does not
// cost.
constexpr int64_t kPagesBesideTail = 48;

int64_t listed_units(const KvSegment& s) {
  if (s.index) return s.index_stride;
  return s.storage == KvStorage::pages ? s.tokens / s.layout.tokens : s.tokens;
}

bool aligned(const KvSegment& s) {
  const bool pages = s.storage == KvStorage::pages;
  const int64_t each = pages ? 16 : 8;  // bytes or elements
  const auto multiple = [each](int64_t stride) { return stride % each == 0; };
  return reinterpret_cast<uintptr_t>(s.keys) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(s.values) % 16 == 0 && multiple(s.key_batch_stride) &&
         multiple(s.key_head_stride) && multiple(s.key_token_stride) &&
         multiple(s.value_batch_stride) && multiple(s.value_head_stride) &&
         multiple(s.value_token_stride);
}

Status check_segment(const SparseAttentionArgs& a, const KvSegment& s) {
  if (!choose_attention_cuda(s, a.head_dim)) {
    return error(
        Code::no_kernel,
        "sparse_attention: no CUDA kernel takes %s of d = %lld; it has bf16 and f16 rows "
        "and pages of 32 tokens with value groups of 32 (4 bits: or one), or of 64 with one group, "
        "in 2, 4 or 8 bits for d = 64 and 128; choose another method or keep the cache on the CPU",
        name_of(s.storage), static_cast<long long>(a.head_dim));
  }
  const bool same = (s.storage == KvStorage::bf16) == (a.q_dtype == DType::bf16) &&
                    (s.storage == KvStorage::f16) == (a.q_dtype == DType::f16);
  if (s.storage != KvStorage::pages && !same) {
    return error(Code::unsupported_dtype, "sparse_attention: q: got %s, wanted %s as the keys",
                 name_of(a.q_dtype), name_of(s.storage));
  }
  if (s.tokens > 0 && (!s.keys || (s.storage != KvStorage::pages && !s.values))) {
    return error(Code::invalid_argument, "sparse_attention: keys, values: got null, wanted arrays");
  }
  if (!aligned(s)) {
    return error(Code::invalid_argument,
                 "sparse_attention: keys, values: got rows that do not start at multiples of 16 "
                 "bytes; copy them");
  }
  return {};
}

Status check(const SparseAttentionArgs& a) {
  const auto count = static_cast<int64_t>(a.segments.size());
  if (count < 1 || count > kMaxSegments) {
    return error(Code::invalid_argument, "sparse_attention: segments: got %lld, wanted 1 to %lld",
                 static_cast<long long>(count), static_cast<long long>(kMaxSegments));
  }
  if (a.batch < 0 || a.kv_heads < 0 || a.rows < 0) {
    return error(Code::invalid_argument,
                 "sparse_attention: q: got a size below 0, wanted 0 or more");
  }
  if (a.batch * a.kv_heads * a.rows > 0 && (!a.q || !a.out)) {
    return error(Code::invalid_argument, "sparse_attention: q, out: got null, wanted arrays");
  }
  if (reinterpret_cast<uintptr_t>(a.q) % 16 != 0) {
    return error(Code::invalid_argument,
                 "sparse_attention: q: got an address that is no multiple of 16; copy it");
  }
  if (a.batch * a.kv_heads * ceil_div(a.rows, kRowsPerTile) > kWorkspaceTickets) {
    return error(Code::invalid_argument,
                 "sparse_attention: q: got %lld rows in %lld KV heads, wanted at most %lld groups "
                 "of 8 rows",
                 static_cast<long long>(a.rows), static_cast<long long>(a.batch * a.kv_heads),
                 static_cast<long long>(kWorkspaceTickets));
  }
  for (const KvSegment& s : a.segments) TAMIS_RETURN_IF_ERROR(check_segment(a, s));
  return {};
}

// Dense tokens beside a segment of 4-bit pages, of which no list says which count: what blocks of
// the pages can read as well. -1: none.
int64_t tail_of(const SparseAttentionArgs& a, size_t longest) {
  if (a.segments.size() != 2) return -1;
  const KvSegment &pages = a.segments[longest], &rows = a.segments[1 - longest];
  const bool fits = pages.storage == KvStorage::pages && pages.layout.key_bits == 4 &&
                    rows.storage != KvStorage::pages && rows.tokens > 0 && !rows.index &&
                    !rows.count && !rows.bias;
  return fits ? static_cast<int64_t>(1 - longest) : -1;
}

// Blocks over a segment's tiles that keep the SMs evenly busy.
int32_t splits_of(int64_t heads, int64_t tiles, int64_t blocks_at_once, int64_t warps,
                  const Costs& costs) {
  int32_t best = 1;
  double least = 0;
  const int64_t most = std::clamp<int64_t>(ceil_div(tiles, warps), 1, kMaxSplits);
  for (int64_t splits = 1; splits <= most; ++splits) {
    const double rounds = static_cast<double>(ceil_div(heads * splits, blocks_at_once));
    const double each = static_cast<double>(ceil_div(ceil_div(tiles, splits), warps));
    const double meeting =
        splits > 1 ? costs.meeting + costs.part * static_cast<double>(splits) : 0;
    const double time = rounds * (each * costs.tile + costs.block) + meeting;
    if (splits == 1 || time < least) {
      least = time;
      best = static_cast<int32_t>(splits);
    }
  }
  return best;
}

}  // namespace

std::span<const AttentionCudaRow> attention_cuda_kernels() {
  return kKernels;
}

const AttentionCudaRow* choose_attention_cuda(const KvSegment& s, int64_t head_dim) {
  const KvPageLayout& l = s.layout;
  const bool pages = s.storage == KvStorage::pages;
  if (pages && (l.head_dim != head_dim || l.key_bits != l.value_bits)) return nullptr;
  for (const AttentionCudaRow& row : kKernels) {
    if (row.storage == s.storage && row.head_dim == head_dim &&
        (!pages || (row.bits == l.key_bits && row.unit == l.tokens && row.group == l.group))) {
      return &row;
    }
  }
  return nullptr;
}

Status plan_attention(const SparseAttentionArgs& a, const CudaDevice& device,
                      std::span<AttentionPlan> plans, int32_t* all_splits) {
  TAMIS_RETURN_IF_ERROR(check(a));
  const int64_t heads = a.batch * a.kv_heads * ceil_div(a.rows, kRowsPerTile);
  const auto tiles_of = [&](size_t i) {
    const AttentionCudaRow& row = *choose_attention_cuda(a.segments[i], a.head_dim);
    const int64_t units = listed_units(a.segments[i]);
    return row.storage == KvStorage::pages ? units : ceil_div(units, row.unit);
  };
  // What others run beside, and whose end all wait for, begins last.
  size_t longest = 0;
  for (size_t i = 1; i < a.segments.size(); ++i) {
    if (tiles_of(i) > tiles_of(longest)) longest = i;
  }
  const int64_t tail = tail_of(a, longest);
  *all_splits = 0;
  // Pages first where they may take the tail with them.
  for (size_t turn = 0; turn < a.segments.size(); ++turn) {
    const size_t i = tail >= 0 ? a.segments.size() - 1 - turn : turn;
    const size_t segment = i + 1 == a.segments.size() ? longest : i < longest ? i : i + 1;
    const AttentionCudaRow& row = *choose_attention_cuda(a.segments[segment], a.head_dim);
    if (row.shared_bytes > device.shared_per_block) {
      return error(
          Code::no_kernel,
          "sparse_attention: device: got %d bytes of shared memory a block, wanted %d for %s",
          device.shared_per_block, row.shared_bytes, row.name);
    }
    const bool pages = row.storage == KvStorage::pages;
    const int64_t warps = pages ? page_warps(row.bits) : kRowWarps;
    const int64_t most = pages ? page_blocks(row.bits) : kRowBlocks;
    const int64_t fit =
        std::clamp<int64_t>(device.shared_per_sm / (row.shared_bytes + kReservedShared), 1, most);
    plans[i] = {
        .segment = static_cast<int32_t>(segment),
        .splits = splits_of(std::max<int64_t>(heads, 1), tiles_of(segment), device.sms * fit, warps,
                            pages && row.bits == 4 ? page_costs(row.unit) : kCosts),
        .shared_bytes = row.shared_bytes};
    if (!pages || most > 1) continue;
    // Blocks that begin while others still run would share what SMs those leave, two by two.
    plans[i].shared_bytes =
        std::clamp(device.shared_per_sm / 2, row.shared_bytes, device.shared_per_block);
    const int32_t part = row.shared_bytes + static_cast<int32_t>(4 * attention_partial(a.head_dim));
    if (tail >= 0 && part + warps * tail_shared(a.head_dim) <= device.shared_per_block &&
        tiles_of(static_cast<size_t>(tail)) <= plans[i].splits * warps &&
        tiles_of(segment) <= kPagesBesideTail * plans[i].splits * warps) {
      plans[i].tail = static_cast<int32_t>(tail);
      plans[i].tail_at = part;
      plans[i].shared_bytes = std::max(
          plans[i].shared_bytes, part + static_cast<int32_t>(warps * tail_shared(a.head_dim)));
      plans[0] = {.segment = plans[i].tail};
      turn = a.segments.size();
    }
    plans[i].cluster = device.capability >= 90 && (a.segments.size() == 1 || plans[i].tail >= 0) &&
                       plans[i].splits == 2 && part <= device.shared_per_block;
    if (plans[i].cluster) plans[i].shared_bytes = std::max(plans[i].shared_bytes, part);
  }
  for (AttentionPlan& plan : plans.first(a.segments.size())) {
    plan.first_split = *all_splits;
    *all_splits += plan.splits;
  }
  return {};
}

Status attention_workspace(const SparseAttentionArgs& a, const CudaDevice& device, int64_t* bytes) {
  AttentionPlan plans[kMaxSegments];
  int32_t all_splits = 0;
  TAMIS_RETURN_IF_ERROR(plan_attention(a, device, plans, &all_splits));
  const int64_t heads = a.batch * a.kv_heads * ceil_div(a.rows, kRowsPerTile);
  *bytes = kWorkspaceTicketBytes;
  if (all_splits > 1) *bytes += 4 * heads * all_splits * attention_partial(a.head_dim);
  return {};
}

AttentionCudaParams attention_params(const SparseAttentionCudaArgs& args, const AttentionPlan& plan,
                                     int32_t all_splits) {
  const SparseAttentionArgs& a = args.attention;
  const KvSegment& s = a.segments[static_cast<size_t>(plan.segment)];
  const bool pages = s.storage == KvStorage::pages;
  const int64_t size = pages ? 1 : 2;
  auto* workspace = static_cast<uint8_t*>(args.workspace);
  AttentionTail tail;
  if (plan.tail >= 0) {
    const KvSegment& t = a.segments[static_cast<size_t>(plan.tail)];
    tail = {.keys = static_cast<const uint8_t*>(t.keys),
            .values = static_cast<const uint8_t*>(t.values),
            .key_batch = 2 * t.key_batch_stride,
            .key_head = 2 * t.key_head_stride,
            .key_token = 2 * t.key_token_stride,
            .value_batch = 2 * t.value_batch_stride,
            .value_head = 2 * t.value_head_stride,
            .value_token = 2 * t.value_token_stride,
            .begin = t.begin,
            .end = t.end,
            .tokens = static_cast<int32_t>(t.tokens),
            .shared_at = plan.tail_at};
  }
  return {.keys = static_cast<const uint8_t*>(s.keys),
          .values = static_cast<const uint8_t*>(s.values),
          .key_batch = size * s.key_batch_stride,
          .key_head = size * s.key_head_stride,
          .key_token = size * s.key_token_stride,
          .value_batch = size * s.value_batch_stride,
          .value_head = size * s.value_head_stride,
          .value_token = size * s.value_token_stride,
          .index = s.index,
          .count = s.count,
          .begin = s.begin,
          .end = s.end,
          .bias = s.bias,
          .index_stride = static_cast<int32_t>(s.index_stride),
          .units = static_cast<int32_t>(pages ? s.tokens / s.layout.tokens : s.tokens),
          .listed = s.tokens == 0 ? 0 : static_cast<int32_t>(listed_units(s)),
          .tokens = static_cast<int32_t>(s.tokens),
          .q = a.q,
          .out = a.out,
          .lse = a.lse,
          .q_dtype = a.q_dtype,
          .kv_heads = static_cast<int32_t>(a.kv_heads),
          .rows = static_cast<int32_t>(a.rows),
          .row_tiles = static_cast<int32_t>(ceil_div(a.rows, kRowsPerTile)),
          .per_row_tiles = attention_divisor(ceil_div(a.rows, kRowsPerTile)),
          .per_kv_heads = attention_divisor(a.kv_heads),
          .scale = a.scale,
          .softcap = a.softcap,
          .per_softcap = a.softcap > 0 ? 1 / a.softcap : 0,
          .splits = plan.splits,
          .first_split = plan.first_split,
          .all_splits = all_splits,
          .last = plan.first_split + plan.splits == all_splits,
          .cluster = plan.cluster,
          .tickets = reinterpret_cast<uint32_t*>(workspace),
          .partial = workspace == nullptr
                         ? nullptr
                         : reinterpret_cast<float*>(workspace + kWorkspaceTicketBytes),
          .tail = tail};
}

bool chosen_attention_fits(const ChosenAttentionArgs& args, const CudaDevice& device) {
  const SparseAttentionArgs& a = args.attention;
  const KvEstimateArgs& e = args.choose.estimate;
  if (args.choose.by_row || args.choose.select.page != 1 || a.segments.size() != 1 ||
      !kv_choose_fits(args.choose, device)) {
    return false;
  }
  const KvSegment& s = a.segments[0];
  const bool type = (s.storage == KvStorage::bf16 && a.q_dtype == DType::bf16) ||
                    (s.storage == KvStorage::f16 && a.q_dtype == DType::f16);
  const bool same = e.batch == a.batch && e.kv_heads == a.kv_heads && e.rows == a.rows &&
                    e.units.units == s.tokens;
  const KvSelectArgs& select = args.choose.select;
  if (std::min({select.k, select.sink, select.recent}) < 0) return false;
  const bool lists = s.index || s.count || s.begin || s.end || s.bias;
  const bool size = a.head_dim == 64 || a.head_dim == 128;
  // Bytes from a token to the next are multiplied in 32 bits.
  const auto near = [](int64_t stride) { return stride >= 0 && stride <= INT32_MAX; };
  return type && same && !lists && size && near(s.key_token_stride) && near(s.value_token_stride) &&
         aligned(s) && s.keys && s.values && a.q && a.out &&
         reinterpret_cast<uintptr_t>(a.q) % 16 == 0;
}

}  // namespace tamis
