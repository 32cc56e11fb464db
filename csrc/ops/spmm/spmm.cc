// spmm: choice of a kernel and its run on the threads of this process.
#include "ops/spmm/spmm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/spmm/activate.h"
#include "ops/spmm/check.h"
#include "ops/spmm/cost.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

constexpr SpmmRow kKernels[] = {
#define TAMIS_SPMM(format, w, x, level, tile_m, tile_n) \
  {"spmm_" #format "_" #w "_" #x "_" #level,            \
   Format::format,                                      \
   DType::w,                                            \
   DType::x,                                            \
   isa::level,                                          \
   tile_m,                                              \
   tile_n,                                              \
   1,                                                   \
   nullptr,                                             \
   &spmm_##format##_##w##_##x##_##level},
#define TAMIS_SPMM_FORM(form, format, w, x, level, from_m, tile_m, tile_n) \
  {"spmm_" #format "_" #w "_" #x "_" #level "_" #form,                     \
   Format::format,                                                         \
   DType::w,                                                               \
   DType::x,                                                               \
   isa::level,                                                             \
   tile_m,                                                                 \
   tile_n,                                                                 \
   from_m,                                                                 \
   &spmm_##form##_##x##_##level,                                           \
   &spmm_##format##_##w##_##x##_##level##_##form},
#include "ops/spmm/kernels.def"
#undef TAMIS_SPMM
#undef TAMIS_SPMM_FORM
};

// Bytes that are worth another thread: one core reads them in the 1.3 us that a fork takes.
constexpr int64_t kBytesPerThread = 32 * 1024;
// Elements of x that one thread rewrites in the time of a fork; fewer are not shared out.
constexpr int64_t kElementsToShare = 4 * 1024;

int64_t row_bytes(const MatrixView& w) {
  switch (w.format) {
    case Format::bitmap:
      return mask_words(w.cols) * 8 + 8;
    case Format::nm:
      return mask_words(w.cols) * 8 + w.cols / w.of * w.keep * size_of(w.dtype);
    case Format::csr:
      return 8;
    case Format::csr8:
      return mask_words(w.cols) + 8;
    case Format::groupq:
      return mask_words(w.cols / w.group_size) * 8 + 8;
    case Format::block:
      return 0;
  }
  return 0;
}

// Stored bytes of rows [0, row); monotone in row.
int64_t bytes_before(const MatrixView& w, int64_t row) {
  int64_t values = 0;
  if (w.format == Format::bitmap) values = w.row_offsets[row] * size_of(w.dtype);
  if (w.format == Format::csr8) values = w.row_offsets[row] * (size_of(w.dtype) + 1);
  if (w.format == Format::csr) values = w.row_offsets[row] * (size_of(w.dtype) + 4);
  if (w.format == Format::block) {
    const int64_t area = int64_t{w.block_rows} * w.block_cols;
    values = w.row_offsets[row / w.block_rows] * (area * size_of(w.dtype) + 4);
  }
  if (w.format == Format::groupq) {
    values = w.row_offsets[row] * (value_elements(w.dtype, w.group_size) + 4);
  }
  return row * row_bytes(w) + values;
}

// Row, at a multiple of `step`, with as nearly part/parts of all bytes before it as can be: "at
// least" gave one of two threads 128 of 192 rows, where half of the bytes ended within the 96th.
int64_t split(const MatrixView& w, int64_t step, int part, int parts) {
  if (part == 0) return 0;
  if (part == parts) return w.rows;
  const double goal = static_cast<double>(bytes_before(w, w.rows)) * part / parts;
  const auto before = [&](int64_t steps) {
    return static_cast<double>(bytes_before(w, std::min(steps * step, w.rows)));
  };
  int64_t low = 0, high = ceil_div(w.rows, step);  // before(high) >= goal
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (before(middle) < goal ? low : high) = middle;
  }
  const bool down = goal - before(low) < before(high) - goal;
  return std::min((down ? low : high) * step, w.rows);
}

// Threads that share tokens, not rows; 1: none do. Each prepares its own then, and what it reads
// and writes lies in one piece: with rows, the prepared x and lines of y pass between cores, which
// takes 30 ns a line where they share a cache and up to 380 where a hypervisor has put them far
// apart (Zen 4, 192x576, half kept, 256 tokens of f32: 0.19 and 0.40 to 0.9 ms by rows). All
// threads expand or skip all weights, which costs what it did where each then has whole tiles of
// tokens.
int64_t token_shares(const SpmmRow& row, const SpmmArgs& a) {
  if (!row.x_form || row.x_form->tokens_each == 0 || a.w.cols == 0) return 1;
  const SpmmXForm& form = *row.x_form;
  const int64_t most = num_threads(), shares = std::min(most, a.m / form.tokens_each);
  if (!form.even) return shares;
  // Not timed on Emerald Rapids.
  if (a.w.rows > kRowsToShareTokens || has_intel_costs(active_isa())) return 1;
  return shares == most && a.m % (most * form.tokens_each) == 0 ? shares : 1;
}

// Tokens [first, end) of a product.
SpmmArgs tokens_of(const SpmmArgs& a, int64_t first, int64_t end) {
  const int64_t size = size_of(a.x_dtype);
  SpmmArgs part = a;
  part.m = end - first;
  part.x = static_cast<const char*>(a.x) + first * a.x_stride * size;
  part.y = static_cast<char*>(a.y) + first * a.y_stride * size;
  if (a.multiplier) {
    part.multiplier = static_cast<const char*>(a.multiplier) + first * a.multiplier_stride * size;
  }
  return part;
}

Status out_of_memory() {
  return error(Code::out_of_memory, "spmm: no memory for a copy of x");
}

// What one thread computes.
struct Share {
  SpmmArgs args;
  SpmmRows rows;
};

// Threads that wait for nobody: each prepares the x of its share for itself.
template <class ShareOf>
Status run_apart(const SpmmRow& row, int threads, const ShareOf& share_of) {
  std::atomic<bool> failed = false;
  parallel(threads, [&](int thread, int count) {
    Share share = share_of(thread, count);
    void* prepared = scratch(row.x_form->bytes(share.args));
    if (!prepared) {
      failed = true;
      return;
    }
    row.x_form->prepare(share.args, prepared, 0, 1);
    share.args.prepared = prepared;
    spmm_part(row, share.args, share.rows);
  });
  return failed ? out_of_memory() : Status{};
}

// All rows, for tokens of a thread's own.
Status run_apart_by_tokens(const SpmmRow& row, const SpmmArgs& a, int threads) {
  return run_apart(row, threads, [&](int thread, int count) {
    return Share{tokens_of(a, a.m * thread / count, a.m * (thread + 1) / count), {0, a.w.rows}};
  });
}

// Rows of a thread's own, for all tokens: preparing x takes a third of what it takes to fetch what
// another core prepared.
Status run_apart_by_rows(const SpmmRow& row, const SpmmArgs& a, int threads) {
  return run_apart(row, threads, [&](int thread, int count) {
    return Share{a, spmm_rows(row, a.w, thread, count)};
  });
}

// What is left of a product without columns, which no kernel is asked for.
void write_bias(const SpmmArgs& a, SpmmRows rows) {
  const int64_t size = size_of(a.x_dtype);
  const auto bytes = static_cast<size_t>((rows.end - rows.begin) * size);
  for (int64_t t = 0; t < a.m; ++t) {
    char* y = static_cast<char*>(a.y) + (t * a.y_stride + rows.begin) * size;
    if (a.bias) {
      std::memcpy(y, static_cast<const char*>(a.bias) + rows.begin * size, bytes);
    } else {
      std::memset(y, 0, bytes);
    }
  }
}

}  // namespace

std::span<const SpmmRow> spmm_kernels() {
  return kKernels;
}

SpmmDesc describe(const SpmmArgs& a) {
  return {.format = a.w.format,
          .w_dtype = a.w.dtype,
          .x_dtype = a.x_dtype,
          .m = a.m,
          .n = a.w.rows,
          .k = a.w.cols,
          .nnz = a.w.nnz,
          .block_rows = a.w.block_rows,
          .block_cols = a.w.block_cols,
          .group_size = a.w.group_size};
}

const SpmmRow* choose_spmm(const SpmmDesc& desc, IsaBits isa) {
  // A later row must be expected to be clearly faster, so that noise in its constants changes
  // nothing: by 15 %, or 10 % with Zen 4's own constants, where that was measured to gain.
  const bool is_zen4 = (isa::avx512bf16 & isa) == isa::avx512bf16 && !has_intel_costs(isa);
  const double clearly = is_zen4 ? 0.9 : 0.85;
  constexpr double kUnknown = std::numeric_limits<double>::infinity();
  const SpmmRow* best = nullptr;
  double best_ns = kUnknown;
  for (const SpmmRow& row : kKernels) {
    if (row.format != desc.format || row.w_dtype != desc.w_dtype || row.x_dtype != desc.x_dtype ||
        (row.isa & isa) != row.isa || std::max<int64_t>(desc.m, 1) < row.from_m) {
      continue;
    }
    const SpmmCost* cost = spmm_choice_cost(row, isa);
    const double ns = cost ? compute_ns(desc, row, *cost) : kUnknown;
    if (!best || (row.isa != isa::scalar && ns < clearly * best_ns)) {
      best = &row;
      best_ns = ns;
    }
  }
  return best;
}

int useful_threads(const SpmmDesc& desc, const SpmmRow& row, int threads) {
  const int64_t step = desc.format == Format::block ? desc.block_rows : row.tile_n;
  const auto work = static_cast<int64_t>(stored_bytes(desc)) * desc.m;
  const int64_t useful =
      std::min(work / kBytesPerThread, ceil_div(desc.n, std::max<int64_t>(step, 1)));
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
}

Status find_spmm(const SpmmArgs& a, const SpmmRow** found) {
  if (isa_request_error()) {
    return error(Code::no_kernel, "spmm: TAMIS_ISA: got '%.40s', wanted %s", isa_request_error(),
                 isa_levels());
  }
  TAMIS_RETURN_IF_ERROR(check_spmm(a));
  *found = choose_spmm(describe(a), active_isa());
  if (!*found) {
    return error(Code::no_kernel, "spmm: no %s kernel takes %s weights and %s activations",
                 name_of(a.w.format), name_of(a.w.dtype), name_of(a.x_dtype));
  }
  return {};
}

SpmmRows spmm_rows(const SpmmRow& row, const MatrixView& w, int thread, int threads) {
  const int64_t step = row_step(row, w);
  return {split(w, step, thread, threads), split(w, step, thread + 1, threads)};
}

void spmm_part(const SpmmRow& row, const SpmmArgs& a, SpmmRows rows) {
  if (rows.begin >= rows.end) return;
  if (a.w.cols > 0) {
    row.run(a, rows.begin, rows.end);
  } else {
    write_bias(a, rows);
  }
  if (a.activation != Activation::none || a.multiplier) {
    choose_activate(active_isa())(a, rows.begin, rows.end);
  }
}

Status spmm(const SpmmArgs& a) {
  const SpmmRow* row = nullptr;
  TAMIS_RETURN_IF_ERROR(find_spmm(a, &row));
  return spmm_with(*row, a);
}

Status spmm_with(const SpmmRow& row, const SpmmArgs& args) {
  TAMIS_RETURN_IF_ERROR(check_spmm(args));
  if (args.m == 0 || args.w.rows == 0) return {};
  SpmmArgs a = args;
  if (const int64_t shares = token_shares(row, a); shares > 1) {
    return run_apart_by_tokens(row, a, static_cast<int>(shares));
  }
  const int64_t step = row_step(row, a.w);
  const int64_t work = bytes_before(a.w, a.w.rows) * a.m;
  const int64_t useful = std::min(work / kBytesPerThread, ceil_div(a.w.rows, step));
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), useful));
  void* prepared = nullptr;
  if (row.x_form && a.w.cols > 0) {
    if (row.x_form->own && threads > 1) return run_apart_by_rows(row, a, threads);
    a.prepared = prepared = scratch(row.x_form->bytes(a));
    if (!prepared) return out_of_memory();
  }
  const bool alone = threads <= 1 || a.m * a.w.cols < kElementsToShare;
  if (prepared && alone) row.x_form->prepare(a, prepared, 0, 1);
  if (threads <= 1) {
    spmm_part(row, a, {0, a.w.rows});
    return {};
  }
  if (prepared && !alone) {
    parallel(threads,
             [&](int thread, int count) { row.x_form->prepare(a, prepared, thread, count); });
  }
  parallel(threads,
           [&](int thread, int count) { spmm_part(row, a, spmm_rows(row, a.w, thread, count)); });
  return {};
}

}  // namespace tamis
