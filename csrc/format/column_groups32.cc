// Columns of 32 rows put into groups of which every row keeps two: for the fullest column of those
// to choose from, the second ones that meet it least often, and with each the third and the fourth
// that add most. Exact groups as of 16 rows are too rare to look for.
#include <algorithm>
#include <array>
#include <memory>

#include "format/column_groups.h"
#include "format/waiting_groups.h"

namespace tamis {
namespace {

constexpr int kLook = 1024;  // columns to choose from
constexpr int kFirst = 256;  // of which the fullest begins a group
constexpr int kSeconds = 16;
// Scores of a kept weight, of a column whose bank another one of the group has, and of a row that
// keeps a column and the first one, or the third and one before it.
constexpr int kWeight = 4, kSameBank = 10, kMeets = 5, kThirdMeets = 3;
constexpr int kPlenty = 1024;  // beyond what scores go below zero

constexpr uint32_t count_bits(uint32_t x) {  // in a loop compilers make vectors of it
  x = x - (x >> 1 & 0x55555555u);
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0fu;
  x = x + (x >> 8);
  return (x + (x >> 16)) & 63;
}

// Columns to choose from, in their order.
class Pool {
 public:
  Pool(const std::vector<uint32_t>& rows, const std::vector<uint8_t>& bank)
      : all_(rows), bank_(bank) {
    fill();
  }
  int size() const { return n_; }
  uint32_t rows(int i) const { return rows_[i]; }
  uint32_t bank(int i) const { return in_bank_[i]; }
  int worth(int i, uint32_t banks) const {
    return kWeight * bits_[i] - ((in_bank_[i] & banks) != 0 ? kSameBank : 0);
  }
  int first() const {
    return static_cast<int>(std::max_element(bits_.begin(), bits_.begin() + std::min(n_, kFirst)) -
                            bits_.begin());
  }
  int32_t take(int i) {
    const int32_t column = column_[i];
    --n_;
    const auto close = [&](auto& all) {
      std::copy(all.begin() + i + 1, all.begin() + n_ + 1, all.begin() + i);
    };
    close(rows_), close(column_), close(bits_), close(in_bank_);
    return column;
  }
  void fill() {
    for (; n_ < kLook && next_ < all_.size(); ++next_) {
      if (all_[next_] == 0) continue;
      rows_[n_] = all_[next_];
      column_[n_] = static_cast<int32_t>(next_);
      bits_[n_] = static_cast<int>(count_bits(rows_[n_]));
      in_bank_[n_] = 1u << bank_[next_];
      ++n_;
    }
  }

  // The columns that `score` ranks first, a function of rows, bits and banks, of those it gives 0
  // or more; `most` of them at most.
  template <class Score>
  int best(const Score& score, int most, int* at) const {
    alignas(64) std::array<int32_t, kLook> all;
    for (int i = 0; i < kLook; ++i) all[i] = score(rows_[i], bits_[i], in_bank_[i]);
    std::array<int32_t, kSeconds> scores;
    int n = 0;
    for (int i = 0; i < n_; ++i) {
      const int32_t s = all[i];
      if (s < 0 || (n == most && s <= scores[n - 1])) continue;
      int place = n < most ? n++ : n - 1;
      for (; place > 0 && scores[place - 1] < s; --place) {
        scores[place] = scores[place - 1];
        at[place] = at[place - 1];
      }
      scores[place] = s;
      at[place] = i;
    }
    return n;
  }

 private:
  const std::vector<uint32_t>& all_;
  const std::vector<uint8_t>& bank_;
  size_t next_ = 0;
  int n_ = 0;
  alignas(64) std::array<uint32_t, kLook> rows_ = {}, in_bank_ = {};
  std::array<int32_t, kLook> bits_ = {}, column_ = {};
};

// What follows the first column of a group.
struct Rest {
  std::array<int, 3> at = {};
  int columns = 0, score = -kPlenty;

  void offer(int score_of, std::initializer_list<int> columns_of) {
    if (score_of <= score) return;
    score = score_of;
    columns = 0;
    for (const int i : columns_of) at[columns++] = i;
  }
};

Rest find_rest(const Pool& pool, uint32_t a, uint32_t bank_of_a) {
  Rest rest;
  rest.offer(0, {});
  const auto worth = [](int bits, uint32_t in_bank, uint32_t banks) {
    return kWeight * bits - ((in_bank & banks) != 0 ? kSameBank : 0);
  };
  std::array<int, kSeconds> seconds;
  const int n = pool.best(
      [=](uint32_t rows, int bits, uint32_t in_bank) {
        return kPlenty + worth(bits, in_bank, bank_of_a) -
               kMeets * static_cast<int>(count_bits(rows & a));
      },
      kSeconds, seconds.data());
  for (int i = 0; i < n; ++i) {
    const int at_b = seconds[i];
    const uint32_t b = pool.rows(at_b), full = a & b, any = a | b;
    const uint32_t two = bank_of_a | pool.bank(at_b);
    const int of_b = pool.worth(at_b, bank_of_a);
    rest.offer(of_b, {at_b});
    // Columns like a are out of the pool, b itself may come first.
    std::array<int, 2> thirds;
    int found = pool.best(
        [=](uint32_t rows, int bits, uint32_t in_bank) {
          const int score = kPlenty + worth(bits, in_bank, two) -
                            kThirdMeets * static_cast<int>(count_bits(rows & any));
          return (rows & full) != 0 ? -1 : score;
        },
        2, thirds.data());
    if (found > 0 && thirds[0] == at_b) thirds[0] = thirds[1], --found;
    if (found == 0) continue;
    const int at_c = thirds[0];
    const uint32_t c = pool.rows(at_c), taken = full | (any & c);
    const uint32_t three = two | pool.bank(at_c);
    const int of_c = of_b + pool.worth(at_c, two);
    rest.offer(of_c, {at_b, at_c});
    std::array<int, 3> fourths;
    const int fitting = pool.best(
        [=](uint32_t rows, int bits, uint32_t in_bank) {
          return (rows & taken) != 0 ? -1 : kPlenty + worth(bits, in_bank, three);
        },
        3, fourths.data());
    for (int j = 0; j < fitting; ++j) {
      const int at_d = fourths[j];
      if (at_d == at_b || at_d == at_c) continue;
      rest.offer(of_c + pool.worth(at_d, three), {at_b, at_c, at_d});
      break;
    }
  }
  return rest;
}

}  // namespace

std::vector<ColumnGroup> group_columns(const std::vector<uint32_t>& rows,
                                       const std::vector<uint8_t>& bank) {
  const auto pool = std::make_unique<Pool>(rows, bank);
  WaitingGroups waiting(bank);
  std::vector<ColumnGroup> groups;
  while (pool->size() > 0) {
    ColumnGroup group = {-1, -1, -1, -1};
    const int first = pool->first();
    const uint32_t a = pool->rows(first), bank_of_a = pool->bank(first);
    group[0] = pool->take(first);
    Rest rest = find_rest(*pool, a, bank_of_a);
    for (int i = 0; i < rest.columns; ++i) {
      group[i + 1] = pool->take(rest.at[i]);
      for (int j = i + 1; j < rest.columns; ++j) rest.at[j] -= rest.at[j] > rest.at[i];
    }
    pool->fill();
    waiting.add(group, &groups);
    waiting.hurry(-1, &groups);
  }
  waiting.end(&groups);
  return groups;
}

}  // namespace tamis
