// What attention is asked for, and which scores count.
#pragma once
#include <algorithm>
#include "tile.h"

namespace afina {

constexpr int64_t ROWS = 48, KEYS = 256;
constexpr float LOWEST = -1e30f;

template <class T>
struct Heads {  // (batch, heads, tokens, size); steps in elements, 1 within a row
  T* at;
  int64_t batch, head, token;
  T* row(int64_t b, int64_t h, int64_t t) const { return at + b * batch + h * head + t * token; }
};

struct Masked {  // what does not depend on the numbers' dtype
  int64_t b, h, kv, t, d, parts;
  float scale;
  int64_t causal;
  const uint8_t* allowed;  // null: all; steps for batch, query, key in bytes
  int64_t allowed_batch, allowed_query, threads;

  int64_t width() const { return round_up(t, 64); }
  int64_t blocks() const { return (t + ROWS - 1) / ROWS; }
};

template <class T>
struct Task : Masked {
  Heads<T> q, k, v, out, g, dq, dk, dv;
  float* stats;    // (b, h, t, 2)
  float* partial;  // (2, parts, b, kv, t, d) if parts > 1
};

struct Range {
  int64_t first, end;
};

// The keys between which lie all that a block of queries sees; all that are not later where it sees none. What lies
// outside is not computed: other examples of a packed row, what has left a sliding window, padding on the left.
inline Range seen_keys(const Masked& a, int64_t b, int64_t i) {
  const int64_t rows = std::min(ROWS, a.t - i), end = a.causal ? i + rows : a.t;
  if (!a.allowed) return {0, end};
  Range found{end, 0};
  for (int64_t r = 0; r < (a.allowed_query ? rows : 1); r++) {
    const uint8_t* row = a.allowed + b * a.allowed_batch + (i + r) * a.allowed_query;
    int64_t low = 0, high = end;
    while (low < found.first && !row[low]) low++;
    while (high > found.end && !row[high - 1]) high--;
    found = {std::min(found.first, low), std::max(found.end, high)};
  }
  if (found.first >= found.end) return {0, end};
  // Where no later key counts, every query keeps one: its own.
  return {(a.causal ? std::min(found.first, i) : found.first) / LANES * LANES, a.causal ? end : found.end};
}

// One block of queries of one head, and a chunk of keys.
struct Block {
  const Masked& at;
  int64_t batch, i, rows, from, count;

  // How many keys from c on are there and not later than the query of row r.
  int64_t there(int64_t r, int64_t c) const { return std::min((at.causal ? i + r + 1 : at.t) - from, count) - c; }

  // Scores of row r as powers of 2, from products, of as many keys as are there.
  vec scores(const float* product, int64_t r, int64_t c) const {
    const vec x = load(product + c) * every(at.scale * LOG2E);
    if (!at.allowed) return x;
    const uint8_t* row = at.allowed + batch * at.allowed_batch + (i + r) * at.allowed_query + from + c;
    return where(nonzero(row, there(r, c)), x, every(LOWEST));
  }
};

}  // namespace afina
