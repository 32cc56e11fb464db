// Translations of a weight's pages, asked for many at a time.
//
// Kernels fetch lines ahead, but the first line of a page waits for a page walk, and everything
// behind it waits with it: some 400 cycles a page of 4 KB where a hypervisor nests page tables
// (Zen 4), against 200 to 700 that the page's products take. Walks of neighbouring pages overlap,
// so one line of each page is fetched some rows earlier, burst_bytes of pages in a row. Zen 4,
// 4096x4096, half kept, one token, ms without / with: f32 1.68 / 1.43, bf16 0.92 / 0.77; in huge
// pages it makes no difference. Emerald Rapids: one token f32 1 to 19 %, bf16 2 to 6 % faster, 4
// and 8 in strips 1 to 9 %; codes, whose products take longer than their pages' walks, 1 to 5 %
// slower.
#pragma once

#include <cstdint>

#include "base/isa.h"
#include "base/simd/element.h"
#include "format/matrix.h"

namespace tamis {

// What kernels of a few tokens do by the host: Emerald Rapids (has_intel_costs), or as on Zen 4.
struct FewTokens {
  int64_t burst_bytes;  // of pages, asked for in a row
  int64_t code_bursts;  // the same of weights that are codes
  int64_t strip_bytes;  // of x in strips that stay in L1 with the sums of strip_rows rows
  int64_t strip_rows;   // at most, in a group
  bool expand_beside;   // 9 to 16 tokens of i8: the next weights beside products, not between them
};
const FewTokens& few_tokens(IsaBits isa);
const FewTokens& few_tokens();  // of this host

class PageWalks {
 public:
  // Of rows [row, row_end), whose first pages are asked for at once.
  PageWalks(const MatrixView& w, int64_t row, int64_t row_end);
  // Lines of rows before `row` are about to be fetched.
  TAMIS_INLINE void before(int64_t row) {
    while (row + burst_ > next_ && next_ < end_) walk();
  }

 private:
  void walk();

  const MatrixView& w_;
  int64_t next_, end_, burst_;  // rows; burst_ of them are asked for at a time
};

}  // namespace tamis
