// What kv_select and kv_choose share: the choice of one head from its scores.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {

// Units that `a` takes of head `head` by scores s[0 .. a.units), ascending to out; how many. buffer
// holds a.units.
int64_t select_units(const KvSelectArgs& a, const KvReduceRow& reduce, int64_t head, const float* s,
                     float* buffer, int32_t* out);

// The head's list of units becomes one of tokens, with its count.
void put_tokens(const KvSelectArgs& a, int64_t head, int64_t units);

}  // namespace tamis
