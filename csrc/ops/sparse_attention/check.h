// The argument check that sparse_attention and its reference share.
#pragma once

#include "ops/sparse_attention/sparse_attention.h"

namespace tamis {

// Shapes, null pointers, and every index: in range of the segment's units.
Status check_sparse_attention(const SparseAttentionArgs& args);

// Tokens of a unit, units that a batch and KV head (as one number) reads, and what counts of them.
int64_t unit_tokens(const KvSegment& segment);
int64_t unit_count(const KvSegment& segment, int64_t head);
int64_t first_token(const KvSegment& segment, int64_t head);
int64_t last_token(const KvSegment& segment, int64_t head);  // one past it

}  // namespace tamis
