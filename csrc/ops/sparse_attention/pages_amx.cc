// Attention over kv_page records on processors with AMX: no tiles, but bytes, as on AVX-512 VNNI.
// vdpbf16ps takes two cycles there and bytes have half as many products: Emerald Rapids is the one
// measured (bench/RESULTS.md).
#include "ops/sparse_attention/kernels.h"

namespace tamis {

void sparse_attention_pages_f32_amx(const AttentionPart& a, AttentionState* s) {
  sparse_attention_pages_f32_avx512vbmi2(a, s);
}

}  // namespace tamis
