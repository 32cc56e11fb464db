// Groups of columns put beside each other where few of their columns lie in one bank.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/column_groups.h"

namespace tamis {

// Groups that wait for one beside them whose columns lie in other banks.
class WaitingGroups {
 public:
  explicit WaitingGroups(const std::vector<uint8_t>& bank) : bank_(bank) {}

  size_t size() const { return items_.size(); }
  // Whether a group waits whose columns lie in four different banks, these.
  bool has(uint8_t banks) const { return sets_[banks] > 0; }

  // Adds a group; with it a neighbour leaves if one is found.
  void add(const ColumnGroup& group, std::vector<ColumnGroup>* out) {
    items_.push_back(Item(bank_, group));
    const Item& last = items_.back();
    if (last.most == 1) ++sets_[last.banks];
    for (size_t i = 0; i + 1 < items_.size(); ++i) {
      if (items_[i].most == last.most && most_in_bank(items_[i].in + last.in) <= last.most) {
        return leave(i, items_.size() - 1, out);
      }
    }
  }
  // Those that can wait no longer: of columns before `column`, or where too many wait.
  void hurry(int32_t column, std::vector<ColumnGroup>* out) {
    while (items_.size() > 1) {
      const auto oldest =
          std::min_element(items_.begin(), items_.end(),
                           [](const Item& a, const Item& b) { return a.least < b.least; });
      if (items_.size() <= kWaiting && oldest->least >= column) return;
      send(static_cast<size_t>(oldest - items_.begin()), out);
    }
  }
  void end(std::vector<ColumnGroup>* out) {
    while (items_.size() > 1) send(0, out);
    if (!items_.empty()) out->push_back(items_[0].group);
    items_.clear();
  }

 private:
  static constexpr size_t kWaiting = 64;

  struct Item {
    ColumnGroup group;
    uint32_t in = 0;    // columns in each bank, four bits a bank
    uint8_t banks = 0;  // a bit each
    int most = 1;       // columns of one bank
    int32_t least = INT32_MAX;

    Item(const std::vector<uint8_t>& bank, const ColumnGroup& of) : group(of) {
      for (const int32_t c : of) {
        if (c < 0) continue;
        in += 1u << (4 * bank[c]);
        banks |= static_cast<uint8_t>(1u << bank[c]);
        least = std::min(least, c);
      }
      most = most_in_bank(in);
    }
  };
  static int most_in_bank(uint32_t in) {
    int most = 1;
    for (; in != 0; in >>= 4) most = std::max(most, static_cast<int>(in & 15));
    return most;
  }
  void leave(size_t i, size_t j, std::vector<ColumnGroup>* out) {
    for (const size_t k : {i, j}) {
      out->push_back(items_[k].group);
      if (items_[k].most == 1) --sets_[items_[k].banks];
    }
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(std::max(i, j)));
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(std::min(i, j)));
  }
  // With the neighbour that costs least.
  void send(size_t i, std::vector<ColumnGroup>* out) {
    size_t best = i == 0 ? 1 : 0;
    int cost = INT32_MAX;
    for (size_t j = 0; j < items_.size(); ++j) {
      if (j == i) continue;
      const int of = 2 * most_in_bank(items_[i].in + items_[j].in) - items_[j].most;
      if (of < cost) best = j, cost = of;
    }
    leave(i, best, out);
  }

  const std::vector<uint8_t>& bank_;
  std::vector<Item> items_;
  std::array<uint16_t, 256> sets_ = {};
};

}  // namespace tamis
