// Shared memory of prefill_wgmma.cuh: queries, a ring of tiles of keys and values, what a tile is.
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf, int kGroupsOf>
struct PrefillGroupConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  // Three know no blocks of a pattern, and keys and values come as boxes: registers.
  static constexpr bool kBoxes = kGroupsOf == 3;
  static constexpr int kGroups = kGroupsOf;  // that multiply
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kTaken = kGroups == 3 ? 160 : 208, kKept = kGroups == 3 ? 32 : 88;
  static constexpr int kQueries = 64 * kGroups, kKeys = kPrefillGroupKeys;
  static constexpr uint32_t kStages = kPrefillGroupStages;
  static constexpr uint32_t kChunks = kDim / 8;  // of 16 bytes, of a row
  // Shared memory: parts of 64 channels one after another, each as rows of 128 bytes.
  static constexpr uint32_t kPartBytes = 128 * kKeys;
  static constexpr uint32_t kTileBytes = kPartBytes * (kDim / 64);
  static constexpr uint32_t kQueryPartBytes = 128 * kQueries;
  static constexpr uint32_t kQueriesAt = 0;
  static constexpr uint32_t kStagesAt = kQueryPartBytes * (kDim / 64);  // keys, then values
  static constexpr uint32_t kListsAt = kStagesAt + 2 * kStages * kTileBytes;
  static constexpr uint32_t kLists = kStages + 1;  // a list is read after its keys are free
  static constexpr uint32_t kListBytes = 4 * kKeys + 16;
  static constexpr uint32_t kTokensAt = kListsAt + kLists * kListBytes;  // of the queries
  static constexpr uint32_t kHeadAt = kTokensAt + 4 * kQueries;  // the first, of all batches'
  static constexpr uint32_t kBarriersAt = kHeadAt + 16;
  static constexpr uint32_t kNextAt = kBarriersAt + 8 * (4 * kStages + 1);  // works, in turns
  static constexpr int32_t kSharedBytes = kNextAt + 8;
  static_assert((kThreads - 128) * kTaken + 128 * kKept <= kThreads * (65536 / kThreads / 8 * 8),
                "no more registers than the launch has");
  static_assert(kSharedBytes == prefill_group_shared(kDim, kGroups), "as the host lays it out");
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kDim == 64 || kDim == 128, "a warp copies whole rows, parts of 64 channels");
};

// What a tile of listed tokens is, behind its list.
enum PrefillTileFlag : uint32_t {
  kPrefillCut = 1,   // some limit cuts it
  kPrefillLast = 2,  // of its work
  kPrefillNone = 4,  // the work has no tile
  kPrefillEnd = 8,   // there is no more work
};

// A stage of the ring, and how often it was used.
template <class Config>
struct PrefillStage {
  uint32_t stage = 0, parity = 0, list = 0;

  TAMIS_DEVICE uint32_t keys() const { return Config::kStagesAt + 2 * stage * Config::kTileBytes; }
  TAMIS_DEVICE uint32_t values() const { return keys() + Config::kTileBytes; }
  TAMIS_DEVICE uint32_t list_at() const { return Config::kListsAt + list * Config::kListBytes; }
  TAMIS_DEVICE uint32_t info_at() const { return list_at() + 4 * Config::kKeys; }
  TAMIS_DEVICE uint32_t keys_there() const { return Config::kBarriersAt + 32 * stage; }
  TAMIS_DEVICE uint32_t keys_free() const { return keys_there() + 8; }
  TAMIS_DEVICE uint32_t values_there() const { return keys_there() + 16; }
  TAMIS_DEVICE uint32_t values_free() const { return keys_there() + 24; }
  static TAMIS_DEVICE uint32_t queries_free() { return Config::kBarriersAt + 32 * Config::kStages; }
  TAMIS_DEVICE void advance() {
    if (++list == Config::kLists) list = 0;
    if (++stage < Config::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace tamis
