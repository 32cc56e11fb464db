// What kv_fetch accepts.
#include <algorithm>

#include "ops/kv_fetch/kv_fetch.h"

namespace tamis {
namespace {

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "kv_fetch: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

}  // namespace

Status check_kv_fetch(const KvFetchArgs& a) {
  const int64_t heads = a.batch * a.kv_heads;
  if (std::min({a.batch, a.kv_heads, a.units, a.slots, a.index_stride, a.row_bytes}) < 0) {
    return bad("sizes", -1, "none below 0");
  }
  if (a.unit < 1 || a.index_stride % a.unit != 0) {
    return bad("unit", a.unit, "1 token or more, and lists of whole units");
  }
  if (a.index_stride / a.unit > a.slots) {
    return bad("slots", a.slots, "at least as many as a list has room for");
  }
  if (std::max(a.units, a.slots) > INT32_MAX / a.unit) {
    return bad("units", std::max(a.units, a.slots), "fewer than 2^31 tokens");
  }
  if (heads == 0) return {};
  if (!a.count || !a.clock || !a.reads || !a.near_count || !a.lacking ||
      (a.index_stride > 0 &&
       (!a.index || !a.near || !a.todo || !a.slot_of || !a.unit_in || !a.stamp)) ||
      (a.far_keys && (!a.far_values || !a.near_keys || !a.near_values))) {
    return error(Code::invalid_argument, "kv_fetch: got null, wanted arrays");
  }
  return {};
}

}  // namespace tamis
