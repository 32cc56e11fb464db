// Columns of 16 rows put into groups: for the fullest column of those to choose from, or for one
// that has waited long, look for others that fill up what it leaves, exactly where possible. Of
// random halves nearly all groups are exact while some hundred columns are left to choose from.
#include "format/column_groups.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

#include "format/waiting_groups.h"

namespace tamis {
namespace {

constexpr int kRows = 16, kPatterns = 1 << kRows;
constexpr int kLook = 768;       // columns to choose from
constexpr int kFirstLook = 256;  // at first, so that the first groups wait for few columns
constexpr int kAhead = 1280;     // of the first one not in a group yet, the last one to choose
constexpr int kOverdue = 1024;   // where the first one is in the next group
constexpr int kBeyond = 128;     // columns beyond a waist's begin, more than are left before it
static_assert(kAhead < kGroupWindow && kOverdue < kAhead && kLook % 16 == 0);

// Of 16 bits; one of many in a loop, which compilers make vectors of.
constexpr uint16_t count_bits(uint16_t x) {
  x = static_cast<uint16_t>(x - (x >> 1 & 0x5555));
  x = static_cast<uint16_t>((x & 0x3333) + (x >> 2 & 0x3333));
  x = static_cast<uint16_t>((x + (x >> 4)) & 0x0f0f);
  return static_cast<uint16_t>((x + (x >> 8)) & 31);
}
constexpr uint8_t lowest(uint8_t bits) {
  return static_cast<uint8_t>(bits & -bits);
}

// A column that a search has found: what its rows keep, and its bank as a bit.
struct Found {
  uint16_t rows;
  uint8_t bank;
};

// Columns to choose from: some of those that are left, as many as it pays to look at.
class Pool {
 public:
  Pool(const std::vector<uint16_t>& rows, const std::vector<uint8_t>& bank, GroupShape shape,
       const GroupWaist* waist)
      : rows_(rows), bank_(bank), banks_(kPatterns), times_(kPatterns), known_(kPatterns / 64) {
    int64_t kept = 0, columns = 0;
    for (const uint16_t r : rows) {
      kept += count_bits(r);
      columns += r != 0;
    }
    // What a group of the fewest has on average.
    full_ = kRows * shape.kept;
    const int64_t groups = std::max<int64_t>(1, (columns + shape.width - 1) / shape.width);
    enough_ = std::min(full_, static_cast<int>((kept + groups - 1) / groups));
    look_ = enough_ == full_ ? kLook : kLook / 2;
    if (waist != nullptr) {
      waist_begin_ = waist->begin, waist_end_ = waist->end;
      const auto before = rows.begin() + std::min<int64_t>(waist_begin_, std::ssize(rows));
      before_ = static_cast<int>(before - rows.begin() - std::count(rows.begin(), before, 0));
      to_half_ = static_cast<int>(columns / 2);
    }
    width_ = shape.width;
    fill();
  }
  int size() const { return n_; }
  int full() const { return full_; }      // kept by a group without room
  int enough() const { return enough_; }  // likewise, to look no further
  // Of all columns, to go through; those at size() and beyond, up to kLook, say nothing.
  const uint16_t* rows() const { return pattern_.data(); }
  const uint16_t* bits() const { return bits_.data(); }
  const uint16_t* in_bank() const { return in_bank_.data(); }
  uint16_t rows(int i) const { return pattern_[i]; }
  int bits(int i) const { return bits_[i]; }
  uint8_t bank(int i) const { return static_cast<uint8_t>(in_bank_[i]); }
  Found found(int i) const { return {pattern_[i], bank(i)}; }
  bool has(uint16_t rows) const { return known_[rows / 64] >> (rows % 64) & 1; }
  uint8_t banks(uint16_t rows) const { return banks_[rows]; }  // of columns like that
  int32_t next() const { return static_cast<int32_t>(next_); }

  // Whether all columns before the waist are in groups.
  bool at_waist() const {
    return n_ > 0 ? column_[0] >= waist_begin_
                  : next_ >= std::min(rows_.size(), static_cast<size_t>(waist_end_));
  }
  void pass_waist() {
    waist_begin_ = waist_end_ = INT32_MAX;
    fill();
  }

  // The first column if it is overdue, also where half of all may be in groups before those before
  // the waist are; or the fullest of some.
  int first() const {
    if (column_[0] + kOverdue < next()) return 0;
    if (column_[0] < waist_begin_ && waist_begin_ < INT32_MAX &&
        (next() >= waist_end_ || width_ * before_ >= to_half_)) {
      return 0;
    }
    int best = 0;
    for (int i = 1; i < std::min(n_, 128); ++i) {
      if (bits_[i] > bits_[best]) best = i;
    }
    return best;
  }
  int32_t take(const Found& found) {
    int i = 0;
    while (pattern_[i] != found.rows || (in_bank_[i] & found.bank) == 0) ++i;
    return take(i);
  }
  int32_t take(int i) {
    const int32_t column = column_[i];
    const uint16_t rows = pattern_[i];
    ++taken_;
    --to_half_;
    before_ -= column < waist_begin_;
    --n_;
    const auto close = [&](auto& all) {
      std::copy(all.begin() + i + 1, all.begin() + n_ + 1, all.begin() + i);
    };
    close(pattern_), close(column_), close(bits_), close(in_bank_);
    forget(rows);
    return column;
  }
  void fill() {
    const int look = std::min(look_, kFirstLook + taken_);
    for (; n_ < look && next_ < rows_.size() && next() < waist_end_; ++next_) {
      if (rows_[next_] == 0) continue;
      if (n_ > 0 && next() >= column_[0] + kAhead) return;
      if (next() >= waist_begin_ && n_ >= 2 * before_ + kBeyond) return;
      pattern_[n_] = rows_[next_];
      column_[n_] = next();
      bits_[n_] = count_bits(pattern_[n_]);
      in_bank_[n_] = static_cast<uint16_t>(1u << bank_[next_]);
      known_[pattern_[n_] / 64] |= uint64_t{1} << (pattern_[n_] % 64);
      banks_[pattern_[n_]] |= bank(n_);
      ++times_[pattern_[n_]];
      ++n_;
    }
  }

 private:
  // What is left of the columns like one that was taken.
  void forget(uint16_t rows) {
    banks_[rows] = 0;
    if (--times_[rows] == 0) {
      known_[rows / 64] &= ~(uint64_t{1} << (rows % 64));
      return;
    }
    for (int i = 0; i < n_; ++i) {
      if (pattern_[i] == rows) banks_[rows] |= bank(i);
    }
  }

  const std::vector<uint16_t>& rows_;
  const std::vector<uint8_t>& bank_;
  size_t next_ = 0;
  std::vector<uint8_t> banks_;   // of a pattern, a bit each
  std::vector<uint16_t> times_;  // that it is in the pool
  std::vector<uint64_t> known_;  // a bit a pattern: whether it is in the pool
  int full_ = 0, enough_ = 0, look_ = 0, taken_ = 0, n_ = 0;
  int32_t waist_begin_ = INT32_MAX, waist_end_ = INT32_MAX;
  // Columns before the waist that are left, all that are left of half of them, those of a group.
  int before_ = 0, to_half_ = 0, width_ = 0;
  alignas(64) std::array<uint16_t, kLook> pattern_ = {};  // in the order of the columns
  std::array<int32_t, kLook> column_ = {};
  std::array<uint16_t, kLook> bits_ = {}, in_bank_ = {};
};

// What follows the first column of a group.
struct Rest {
  std::array<Found, 3> found;
  int columns = 0, score = -1;

  void offer(int score_of, std::initializer_list<Found> columns_of) {
    if (score_of <= score) return;
    score = score_of;
    columns = 0;
    for (const Found& f : columns_of) found[columns++] = f;
  }
};

// Scores of a kept weight, and what a column costs whose bank another one of the group has.
constexpr int kWeight = 4, kSameBank = 6;

// Calls fn(i) for the columns that `wanted` says, until it returns true; all are looked at first,
// by vectors.
template <class Wanted, class Fn>
bool find_column(const Pool& pool, const Wanted& wanted, const Fn& fn) {
  alignas(64) std::array<uint8_t, kLook> all;
  for (int i = 0; i < kLook; ++i) all[i] = wanted(i) ? 1 : 0;
  for (int first = 0; first < pool.size(); first += 8) {
    uint64_t eight;
    std::memcpy(&eight, &all[first], sizeof eight);
    for (; eight != 0; eight &= eight - 1) {  // a bit of each
      const int i = first + __builtin_ctzll(eight) / 8;
      if (i < pool.size() && fn(i)) return true;
    }
  }
  return false;
}

// Three columns with which every row keeps two exactly: in four banks and beside a group that
// waits, or in four banks, or any.
bool find_exact(const Pool& pool, const Found& first, const WaitingGroups& waiting, Rest* rest) {
  constexpr int kFar = 4;  // rows in which a second column may differ from the first's complement
  constexpr int kTries = 24;  // second columns, once three have been found
  enum { kAny, kApart, kBeside };
  const uint16_t a = first.rows;
  const uint16_t* rows = pool.rows();
  int tries = 0;
  const auto take_second = [&](int at_b) {
    if (++tries > kTries && rest->score >= 0) return true;
    const Found second = pool.found(at_b);
    const uint16_t b = second.rows, none = ~(a | b), one = a ^ b, care = ~one;
    const bool apart = (second.bank & first.bank) == 0;
    if (!apart && rest->score >= 0) return false;
    const auto take_third = [&](int at_c) {
      const Found third = pool.found(at_c);
      const uint16_t c = third.rows, d = static_cast<uint16_t>(none | (one & ~c));
      // Columns that are alike would be one taken twice.
      if (!pool.has(d) || c == d || c == b || d == b) return false;
      const auto used = static_cast<uint8_t>(first.bank | second.bank | third.bank);
      const bool three = apart && (third.bank & (first.bank | second.bank)) == 0;
      uint8_t banks = three ? pool.banks(d) & ~used : 0;
      rest->offer(banks != 0 ? kApart : kAny,
                  {second, third, {d, lowest(banks != 0 ? banks : pool.banks(d))}});
      for (; banks != 0; banks &= static_cast<uint8_t>(banks - 1)) {
        if (waiting.has(static_cast<uint8_t>(~(used | lowest(banks))))) {
          rest->offer(kBeside, {second, third, {d, lowest(banks)}});
          return true;
        }
      }
      return false;
    };
    // Where either the third or the fourth is kept, that is the fourth in the last such row: so no
    // two are found twice.
    const uint16_t looked_at = care | std::bit_floor(one);
    return find_column(
        pool, [=](int i) { return static_cast<uint16_t>(rows[i] & looked_at) == none; },
        take_third);
  };
  find_column(
      pool, [=](int i) { return count_bits(static_cast<uint16_t>(rows[i] ^ ~a)) <= kFar; },
      take_second);
  return rest->score >= 0;
}

// The kBeam columns that `score` ranks first, of those it gives no less than 0.
constexpr int kBeam = 4;
struct Best {
  std::array<int, kBeam> at;
  int n = 0;

  template <class Score>
  Best(const Pool& pool, const Score& score) {
    alignas(64) std::array<int16_t, kLook> all;
    for (int i = 0; i < kLook; ++i) all[i] = score(i);
    std::array<int, kBeam> scores;
    for (int i = 0; i < pool.size(); ++i) {
      const int s = all[i];
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

// What a column adds beside those of `banks`; 16 bits, as are the scores made of it.
int16_t worth(uint16_t bits, uint16_t in_bank, uint16_t banks) {
  return static_cast<int16_t>(kWeight * bits - ((in_bank & banks) != 0 ? kSameBank : 0));
}
int worth(const Pool& pool, int i, uint16_t banks) {
  return worth(pool.bits()[i], pool.in_bank()[i], banks);
}

// The column worth most of which none of `taken` is kept, neither `but` nor `nor`; -1 if none.
int most_beside(const Pool& pool, uint16_t taken, uint16_t banks, int but, int nor) {
  const uint16_t *rows = pool.rows(), *bits = pool.bits(), *in_bank = pool.in_bank();
  alignas(64) std::array<int16_t, kLook> all;
  for (int i = 0; i < kLook; ++i) {
    const int16_t of = worth(bits[i], in_bank[i], banks);
    all[i] = (rows[i] & taken) != 0 ? int16_t{0} : of;
  }
  for (const int i : {but, nor}) {
    if (i >= 0) all[i] = 0;
  }
  for (int i = pool.size(); i < kLook; ++i) all[i] = 0;
  int16_t most = 0;
  for (int i = 0; i < kLook; ++i) most = std::max(most, all[i]);
  return most == 0 ? -1 : static_cast<int>(std::find(all.begin(), all.end(), most) - all.begin());
}

// Columns after which most is kept, among those that look best one after another.
void find_pairs(const Pool& pool, const Found& first, Rest* rest) {
  const uint16_t a = first.rows;
  const int of_a = kWeight * count_bits(a);
  rest->offer(of_a, {});
  const uint16_t *rows = pool.rows(), *bits = pool.bits(), *in_bank = pool.in_bank();
  const uint16_t one = first.bank;
  const Best seconds(pool, [=](int i) {
    const uint16_t both = count_bits(a & rows[i]);
    return static_cast<int16_t>(64 + worth(bits[i], in_bank[i], one) - 7 * both);
  });
  for (int i = 0; i < seconds.n; ++i) {
    const int at_b = seconds.at[i];
    const uint16_t b = pool.rows(at_b), full = a & b, any = a | b;
    const auto two = static_cast<uint16_t>(one | pool.bank(at_b));
    const int of_b = of_a + worth(pool, at_b, one);
    rest->offer(of_b, {pool.found(at_b)});
    const Best thirds(pool, [=](int k) {
      const uint16_t beside = count_bits(rows[k] & any);
      const auto score =
          static_cast<int16_t>(32 + worth(bits[k], in_bank[k], two) + 2 * bits[k] - 2 * beside);
      return (rows[k] & full) != 0 ? int16_t{-1} : score;
    });
    for (int j = 0; j < thirds.n; ++j) {
      const int at_c = thirds.at[j];
      if (at_c == at_b) continue;
      const uint16_t c = pool.rows(at_c);
      const auto three = static_cast<uint16_t>(two | pool.bank(at_c));
      const int of_c = of_b + worth(pool, at_c, two);
      rest->offer(of_c, {pool.found(at_b), pool.found(at_c)});
      const int d = most_beside(pool, full | (any & c), three, at_b, at_c);
      if (d >= 0) {
        rest->offer(of_c + worth(pool, d, three),
                    {pool.found(at_b), pool.found(at_c), pool.found(d)});
      }
      if (rest->score >= kWeight * pool.enough()) return;
    }
  }
}

// Two columns that keep nothing together with it and most among themselves.
void find_apart(const Pool& pool, const Found& first, Rest* rest) {
  const uint16_t a = first.rows;
  const int of_a = kWeight * count_bits(a);
  rest->offer(of_a, {});
  const uint16_t *rows = pool.rows(), *bits = pool.bits(), *in_bank = pool.in_bank();
  const uint16_t one = first.bank;
  const Best seconds(pool, [=](int i) {
    const auto score = static_cast<int16_t>(kSameBank + worth(bits[i], in_bank[i], one));
    return (rows[i] & a) != 0 ? int16_t{-1} : score;
  });
  for (int i = 0; i < seconds.n; ++i) {
    const int at_b = seconds.at[i];
    const auto two = static_cast<uint16_t>(one | pool.bank(at_b));
    const int of_b = of_a + worth(pool, at_b, one);
    rest->offer(of_b, {pool.found(at_b)});
    const int c = most_beside(pool, a | pool.rows(at_b), two, -1, -1);
    if (c >= 0) rest->offer(of_b + worth(pool, c, two), {pool.found(at_b), pool.found(c)});
    if (rest->score >= kWeight * pool.enough()) return;
  }
}

}  // namespace

std::vector<ColumnGroup> group_columns(const std::vector<uint16_t>& rows,
                                       const std::vector<uint8_t>& bank, GroupShape shape,
                                       GroupWaist* waist) {
  const auto pool = std::make_unique<Pool>(rows, bank, shape, waist);
  WaitingGroups waiting(bank);
  std::vector<ColumnGroup> groups;
  while (true) {
    if (waist != nullptr && pool->at_waist() &&
        (pool->size() == 0 || (groups.size() + waiting.size()) % waist->multiple == 0)) {
      waiting.end(&groups);
      waist->count = groups.size();
      waist = nullptr;
      pool->pass_waist();
    }
    if (pool->size() == 0) break;
    const int at = pool->first();
    const Found first = pool->found(at);
    ColumnGroup group = {-1, -1, -1, -1};
    group[0] = pool->take(at);
    Rest rest;
    if (shape.kept == 1) {
      find_apart(*pool, first, &rest);
    } else if (pool->enough() < pool->full() || !find_exact(*pool, first, waiting, &rest)) {
      find_pairs(*pool, first, &rest);
    }
    for (int i = 0; i < rest.columns; ++i) group[i + 1] = pool->take(rest.found[i]);
    pool->fill();
    waiting.add(group, &groups);
    waiting.hurry(pool->next() - kGroupWindow, &groups);
  }
  waiting.end(&groups);
  return groups;
}

}  // namespace tamis
