// Columns of 16 rows put into groups: for the fullest column left, look for others that fill up
// what it leaves, exactly where possible. Of random halves nearly all groups are exact while some
// hundred columns are left to choose from.
#include "format/column_groups.h"

#include <algorithm>
#include <memory>

namespace tamis {
namespace {

constexpr int kRows = 16, kPatterns = 1 << kRows;
constexpr int kFar = 4;  // rows in which a second column may differ from the first one's complement

struct Tables {
  std::array<uint8_t, kPatterns> count;  // of bits
  std::vector<uint16_t> near;            // patterns of up to kFar bits, fewest first

  Tables() {
    for (int i = 0; i < kPatterns; ++i) count[i] = static_cast<uint8_t>(__builtin_popcount(i));
    for (int bits = 0; bits <= kFar; ++bits) {
      for (int i = 0; i < kPatterns; ++i) {
        if (count[i] == bits) near.push_back(static_cast<uint16_t>(i));
      }
    }
  }
};
const Tables& tables() {
  static const Tables made;
  return made;
}

// Columns to choose from: some of those that are left, as many as it pays to look at.
class Pool {
 public:
  Pool(const std::vector<uint16_t>& rows, GroupShape shape)
      : table_(tables()), rows_(rows), known_(kPatterns) {
    int64_t kept = 0, columns = 0;
    for (const uint16_t r : rows) {
      kept += table_.count[r];
      columns += r != 0;
    }
    // What a group of the fewest has on average.
    full_ = kRows * shape.kept;
    const int64_t groups = std::max<int64_t>(1, (columns + shape.width - 1) / shape.width);
    enough_ = std::min(full_, static_cast<int>((kept + groups - 1) / groups));
    look_ = enough_ == full_ ? kLook : kLook / 2;
    fill();
  }
  int size() const { return n_; }
  int full() const { return full_; }      // kept by a group without room
  int enough() const { return enough_; }  // likewise, to look no further
  uint16_t rows(int i) const { return pattern_[i]; }
  int count(uint16_t rows) const { return table_.count[rows]; }
  int bits(int i) const { return bits_[i]; }
  bool has(uint16_t rows) const { return known_[rows] > 0; }
  const std::vector<uint16_t>& near() const { return table_.near; }

  // The fullest of some.
  int fullest() const {
    int best = 0;
    for (int i = 1; i < std::min(n_, 128); ++i) {
      if (bits_[i] > bits_[best]) best = i;
    }
    return best;
  }
  int find(uint16_t rows) const {
    int i = 0;
    while (pattern_[i] != rows) ++i;
    return i;
  }
  int32_t take(int i) {
    const int32_t column = column_[i];
    --known_[pattern_[i]];
    --n_;
    pattern_[i] = pattern_[n_];
    column_[i] = column_[n_];
    bits_[i] = bits_[n_];
    return column;
  }
  void fill() {
    for (; n_ < look_ && next_ < rows_.size(); ++next_) {
      if (rows_[next_] == 0) continue;
      pattern_[n_] = rows_[next_];
      column_[n_] = static_cast<int32_t>(next_);
      bits_[n_] = table_.count[pattern_[n_]];
      ++known_[pattern_[n_++]];
    }
  }

 private:
  static constexpr int kLook = 1024;
  const Tables& table_;
  const std::vector<uint16_t>& rows_;
  size_t next_ = 0;
  std::vector<uint16_t> known_;  // how often a pattern is in the pool
  int full_ = 0, enough_ = 0, look_ = 0, n_ = 0;
  std::array<uint16_t, kLook> pattern_;
  std::array<int32_t, kLook> column_;
  std::array<uint8_t, kLook> bits_;
};

// What follows the first column of a group.
struct Rest {
  std::array<uint16_t, 3> rows;
  int columns = 0, kept = -1;

  void offer(int kept_of, std::initializer_list<uint16_t> rows_of) {
    if (kept_of <= kept) return;
    kept = kept_of;
    columns = 0;
    for (const uint16_t r : rows_of) rows[columns++] = r;
  }
};

// The column that keeps most where none of `taken` is kept, neither `but` nor `nor`; -1 if none.
int most_beside(const Pool& pool, uint16_t taken, int but, int nor) {
  int best = -1, kept = 0;
  for (int i = 0; i < pool.size(); ++i) {
    const int more = pool.rows(i) & taken ? 0 : pool.bits(i);
    if (more > kept && i != but && i != nor) best = i, kept = more;
  }
  return best;
}

// Three columns with which every row keeps two exactly.
bool find_exact(const Pool& pool, uint16_t a, Rest* rest) {
  constexpr int kTries = 24;
  int tries = 0;
  for (const uint16_t flips : pool.near()) {
    const auto b = static_cast<uint16_t>(~a ^ flips);
    if (!pool.has(b)) continue;
    if (++tries > kTries) return false;
    const uint16_t none = ~(a | b), one = a ^ b, care = ~one;
    for (int i = 0; i < pool.size(); ++i) {
      const uint16_t c = pool.rows(i);
      if ((c & care) != none) continue;
      const auto d = static_cast<uint16_t>(none | (one & ~c));
      // Columns that are alike would be one taken twice.
      if (!pool.has(d) || c == d || c == b || d == b) continue;
      rest->offer(2 * kRows, {b, c, d});
      return true;
    }
  }
  return false;
}

// The kBeam columns that `score` ranks first, of those it gives no less than 0.
constexpr int kBeam = 4;
struct Best {
  std::array<int, kBeam> at;
  int n = 0;

  template <class Score>
  Best(const Pool& pool, const Score& score) {
    std::array<int, kBeam> scores;
    for (int i = 0; i < pool.size(); ++i) {
      const int s = score(i);
      if (s < 0 || (n == kBeam && s <= scores[n - 1])) continue;
      int place = n < kBeam ? n++ : n - 1;
      for (; place > 0 && scores[place - 1] < s; --place) {
        scores[place] = scores[place - 1];
        at[place] = at[place - 1];
      }
      scores[place] = s;
      at[place] = i;
    }
  }
};

// Columns after which most is kept, among those that look best one after another.
void find_pairs(const Pool& pool, uint16_t a, Rest* rest) {
  const int of_a = pool.count(a);
  rest->offer(of_a, {});
  const Best seconds(
      pool, [&](int i) { return 64 + 4 * pool.bits(i) - 7 * pool.count(a & pool.rows(i)); });
  for (int i = 0; i < seconds.n; ++i) {
    const int at_b = seconds.at[i];
    const uint16_t b = pool.rows(at_b), full = a & b, any = a | b;
    const int of_b = of_a + pool.bits(at_b);
    rest->offer(of_b, {b});
    const Best thirds(pool, [&](int k) {
      const uint16_t c = pool.rows(k);
      return c & full ? -1 : 6 * pool.bits(k) - 2 * pool.count(c & any);
    });
    for (int j = 0; j < thirds.n; ++j) {
      const int at_c = thirds.at[j];
      if (at_c == at_b) continue;
      const uint16_t c = pool.rows(at_c);
      const int of_c = of_b + pool.bits(at_c);
      rest->offer(of_c, {b, c});
      const int d = most_beside(pool, full | (any & c), at_b, at_c);
      if (d >= 0) rest->offer(of_c + pool.bits(d), {b, c, pool.rows(d)});
      if (rest->kept >= pool.enough()) return;
    }
  }
}

// Two columns that keep nothing together with it and most among themselves.
void find_apart(const Pool& pool, uint16_t a, Rest* rest) {
  const int of_a = pool.count(a);
  rest->offer(of_a, {});
  const Best seconds(pool, [&](int i) { return a & pool.rows(i) ? -1 : pool.bits(i); });
  for (int i = 0; i < seconds.n; ++i) {
    const uint16_t b = pool.rows(seconds.at[i]);
    const int of_b = of_a + pool.count(b);
    rest->offer(of_b, {b});
    const int c = most_beside(pool, a | b, -1, -1);
    if (c >= 0) rest->offer(of_b + pool.bits(c), {b, pool.rows(c)});
    if (rest->kept >= pool.enough()) return;
  }
}

}  // namespace

std::vector<ColumnGroup> group_columns(const std::vector<uint16_t>& rows, GroupShape shape) {
  const auto pool = std::make_unique<Pool>(rows, shape);
  std::vector<ColumnGroup> groups;
  while (pool->size() > 0) {
    const int first = pool->fullest();
    const uint16_t a = pool->rows(first);
    ColumnGroup group = {-1, -1, -1, -1};
    group[0] = pool->take(first);
    Rest rest;
    if (shape.kept == 1) {
      find_apart(*pool, a, &rest);
    } else if (pool->enough() < pool->full() || !find_exact(*pool, a, &rest)) {
      find_pairs(*pool, a, &rest);
    }
    for (int i = 0; i < rest.columns; ++i) group[i + 1] = pool->take(pool->find(rest.rows[i]));
    pool->fill();
    groups.push_back(group);
  }
  return groups;
}

namespace {

// Columns in each bank, four bits a bank.
uint32_t columns_in_banks(const std::vector<uint8_t>& bank, const ColumnGroup& group) {
  uint32_t in = 0;
  for (const int32_t c : group) in += c < 0 ? 0 : 1u << (4 * bank[c]);
  return in;
}
// Whether at most `most` (1 to 7) columns are in one bank.
bool spread(uint32_t in, uint32_t most) {
  return ((in + (7 - most) * 0x11111111u) & 0x88888888u) == 0;
}

}  // namespace

void spread_groups(const std::vector<uint8_t>& bank, std::vector<ColumnGroup>* groups) {
  struct Item {
    uint32_t in, most;
    ColumnGroup group;
  };
  std::vector<Item> left;
  for (const ColumnGroup& group : *groups) {
    Item item = {columns_in_banks(bank, group), 1, group};
    while (!spread(item.in, item.most)) ++item.most;
    left.push_back(item);
  }
  std::stable_sort(left.begin(), left.end(),
                   [](const Item& a, const Item& b) { return a.most < b.most; });
  groups->clear();
  while (!left.empty()) {
    const Item first = left.front();
    left.erase(left.begin());
    groups->push_back(first.group);
    if (left.empty()) break;
    size_t partner = left.size();
    for (uint32_t most = first.most; partner == left.size(); ++most) {
      partner = 0;
      while (partner < left.size() && !spread(first.in + left[partner].in, most)) ++partner;
    }
    groups->push_back(left[partner].group);
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(partner));
  }
}

}  // namespace tamis
