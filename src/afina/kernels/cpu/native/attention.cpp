// softmax(scale q k^T) v and its gradients, block by block, so that no scores leave the processor's cache: FlashAttention,
// Dao 2023, arXiv 2307.08691. Kept for the backward pass: the output, and of every row its maximum and 1 / its sum.
#include <algorithm>
#include <vector>
#include "tile.h"

using namespace afina;

namespace {

constexpr int64_t ROWS = 48, KEYS = 256;
constexpr float LOWEST = -1e30f, LOG2E = 1.44269504f;

struct Heads {  // (batch, heads, tokens, size); steps in elements, 1 within a row
  half_t* at;
  int64_t batch, head, token;
  half_t* row(int64_t b, int64_t h, int64_t t) const { return at + b * batch + h * head + t * token; }
};

struct Task {
  int64_t b, h, kv, t, d, parts;
  float scale;
  int64_t causal;
  const uint8_t* allowed;  // null: all; steps for batch, query, key in bytes
  int64_t allowed_batch, allowed_query, threads;
  Heads q, k, v, out, g, dq, dk, dv;
  float* stats;    // (b, h, t, 2)
  float* partial;  // (2, parts, b, kv, t, d) if parts > 1

  int64_t width() const { return round_up(t, 64); }
  int64_t blocks() const { return (t + ROWS - 1) / ROWS; }
};

struct Range {
  int64_t first, end;
};

// The keys between which lie all that a block of queries sees; all that are not later where it sees none. What lies
// outside is not computed: other examples of a packed row, what has left a sliding window, padding on the left.
Range seen_keys(const Task& a, int64_t b, int64_t i) {
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
  const Task& at;
  int64_t batch, i, rows, from, count;

  // Scores of row r as powers of 2, from products; `in` marks keys that are there and not later than the query.
  __m512 scores(const float* product, int64_t r, int64_t c, __mmask16& in) const {
    const int64_t last = at.causal ? i + r + 1 : at.t;
    in = first(std::min(last - from, count) - c);
    __m512 x = _mm512_mul_ps(_mm512_loadu_ps(product + c), _mm512_set1_ps(at.scale * LOG2E));
    if (at.allowed) {
      const uint8_t* row = at.allowed + batch * at.allowed_batch + (i + r) * at.allowed_query + from + c;
      const __mmask16 seen = _mm_test_epi8_mask(_mm_maskz_loadu_epi8(in, row), _mm_set1_epi8(-1));
      x = _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), seen, x);
    }
    return x;
  }
};

struct Forward {
  uint32_t *keys, *values;
  float *product, *sum, *most, *total;
  half_t* shares;

  static size_t bytes(const Task& a) {
    return 64 * 16 + a.width() * a.d * 4 + ROWS * (KEYS * 6 + a.d * 4 + 8);
  }
  Forward(Scratch& from, const Task& a)
      : keys(from.take<uint32_t>(a.d / 2 * a.width())), values(from.take<uint32_t>(a.width() / 2 * a.d)),
        product(from.take<float>(ROWS * KEYS)), sum(from.take<float>(ROWS * a.d)), most(from.take<float>(ROWS)),
        total(from.take<float>(ROWS)), shares(from.take<half_t>(ROWS * KEYS)) {}

  // Shares of a chunk of keys, relative to the rows' maxima so far; what was summed before is brought to the same scale.
  void softmax(const Block& in, int64_t d) {
    const int64_t width = round_up(in.count, LANES);
    for (int64_t r = 0; r < in.rows; r++) {
      float* row = product + r * KEYS;
      __m512 top = _mm512_set1_ps(-INFINITY);
      for (int64_t c = 0; c < width; c += LANES) {
        __mmask16 there;
        const __m512 x = in.scores(row, r, c, there);
        top = _mm512_mask_max_ps(top, there, top, x);
        _mm512_storeu_ps(row + c, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), there, x));
      }
      const float was = most[r], now = std::max(was, _mm512_reduce_max_ps(top));
      __m512 all = _mm512_setzero_ps();
      for (int64_t c = 0; c < width; c += LANES) {
        const __m512 x = _mm512_loadu_ps(row + c);
        const __mmask16 there = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        const __m512 p = _mm512_maskz_mov_ps(there, exp2_(_mm512_sub_ps(x, _mm512_set1_ps(now))));
        all = _mm512_add_ps(all, p);
        store_half(shares + r * KEYS + c, p);
      }
      const float factor = was == -INFINITY ? 0.f : std::exp2(was - now);
      most[r] = now;
      total[r] = total[r] * factor + _mm512_reduce_add_ps(all);
      if (factor != 1.f && was != -INFINITY)
        for (int64_t c = 0; c < d; c += LANES)
          _mm512_storeu_ps(sum + r * d + c, _mm512_mul_ps(_mm512_loadu_ps(sum + r * d + c), _mm512_set1_ps(factor)));
    }
  }

  void block(const Task& a, int64_t b, int64_t h, int64_t i, Range range) {
    const int64_t rows = std::min(ROWS, a.t - i);
    std::fill(most, most + rows, -INFINITY);
    std::fill(total, total + rows, 0.f);
    for (int64_t from = range.first; from < range.end; from += KEYS) {
      const Block in{a, b, i, rows, from, std::min(KEYS, range.end - from)};
      product_of_queries(in, h);
      softmax(in, a.d);
      afina::product(rows, a.d, (in.count + 1) / 2, (const uint32_t*)shares, KEYS / 2, 1, values + from / 2 * a.d, a.d,
                     sum, a.d, from > range.first);
    }
    for (int64_t r = 0; r < rows; r++) {
      const float share = 1.f / total[r];
      float* kept = a.stats + ((b * a.h + h) * a.t + i + r) * 2;
      kept[0] = most[r];
      kept[1] = share;
      for (int64_t c = 0; c < a.d; c += LANES)
        store_half(a.out.row(b, h, i + r) + c, _mm512_mul_ps(_mm512_loadu_ps(sum + r * a.d + c), _mm512_set1_ps(share)));
    }
  }

  void product_of_queries(const Block& in, int64_t h) {
    const Task& a = in.at;
    afina::product(in.rows, round_up(in.count, LANES), a.d / 2, (const uint32_t*)a.q.row(in.batch, h, in.i),
                   a.q.token / 2, 1, keys + in.from, a.width(), product, KEYS, false);
  }

  void head_of_keys(const Task& a, int64_t b, int64_t kv) {
    pack_columns(a.k.row(b, kv, 0), a.k.token, a.t, a.d, keys, a.width());
    pack_rows(a.v.row(b, kv, 0), a.v.token, a.t, a.d, values);
  }
};

struct Backward {
  uint32_t *keys, *key_rows, *values, *queries, *grads, *shares, *dscores;
  float *product, *dshares, *dq, *dk, *dv, *dots;
  half_t* dscore_rows;

  static size_t bytes(const Task& a) {
    return 64 * 16 + a.width() * a.d * 14 + ROWS * (a.d * 8 + KEYS * 14 + 4);
  }
  Backward(Scratch& from, const Task& a)
      : keys(from.take<uint32_t>(a.d / 2 * a.width())), key_rows(from.take<uint32_t>(a.width() / 2 * a.d)),
        values(from.take<uint32_t>(a.d / 2 * a.width())), queries(from.take<uint32_t>(ROWS / 2 * a.d)),
        grads(from.take<uint32_t>(ROWS / 2 * a.d)), shares(from.take<uint32_t>(ROWS / 2 * KEYS)),
        dscores(from.take<uint32_t>(ROWS / 2 * KEYS)), product(from.take<float>(ROWS * KEYS)),
        dshares(from.take<float>(ROWS * KEYS)), dq(from.take<float>(ROWS * a.d)),
        dk(from.take<float>(a.width() * a.d)), dv(from.take<float>(a.width() * a.d)), dots(from.take<float>(ROWS)),
        dscore_rows(from.take<half_t>(ROWS * KEYS)) {}

  void head_of_keys(const Task& a, int64_t b, int64_t kv) {
    pack_columns(a.k.row(b, kv, 0), a.k.token, a.t, a.d, keys, a.width());
    pack_columns(a.v.row(b, kv, 0), a.v.token, a.t, a.d, values, a.width());
    pack_rows(a.k.row(b, kv, 0), a.k.token, a.t, a.d, key_rows);
    std::fill(dk, dk + a.t * a.d, 0.f);
    std::fill(dv, dv + a.t * a.d, 0.f);
  }

  // Shares and the gradients of scores, in the two orders in which products read them.
  void softmax(const Block& in, int64_t h) {
    const Task& a = in.at;
    const float* kept = a.stats + ((in.batch * a.h + h) * a.t + in.i) * 2;
    for (int64_t r = 0; r < in.rows; r += 2)
      for (int64_t c = 0; c < round_up(in.count, LANES); c += LANES) {
        __m512 p[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, ds[2] = {p[0], p[0]};
        for (int64_t n = 0; n < std::min<int64_t>(2, in.rows - r); n++) {
          __mmask16 there;
          const int64_t at = (r + n) * KEYS;
          const __m512 x = _mm512_sub_ps(in.scores(product + at, r + n, c, there), _mm512_set1_ps(kept[2 * (r + n)]));
          p[n] = _mm512_maskz_mul_ps(there, exp2_(x), _mm512_set1_ps(kept[2 * (r + n) + 1]));
          const __m512 dp = _mm512_sub_ps(_mm512_loadu_ps(dshares + at + c), _mm512_set1_ps(dots[r + n]));
          ds[n] = _mm512_mul_ps(_mm512_mul_ps(p[n], dp), _mm512_set1_ps(a.scale));
          store_half(dscore_rows + at + c, ds[n]);
        }
        _mm512_storeu_si512(shares + r / 2 * KEYS + c, paired(p[0], p[1]));
        _mm512_storeu_si512(dscores + r / 2 * KEYS + c, paired(ds[0], ds[1]));
      }
  }

  void block(const Task& a, int64_t b, int64_t h, int64_t i, Range range) {
    const int64_t rows = std::min(ROWS, a.t - i);
    pack_rows(a.q.row(b, h, i), a.q.token, rows, a.d, queries);
    pack_rows(a.g.row(b, h, i), a.g.token, rows, a.d, grads);
    for (int64_t r = 0; r < rows; r++) {
      __m512 all = _mm512_setzero_ps();
      for (int64_t c = 0; c < a.d; c += LANES)
        all = _mm512_fmadd_ps(load_half(a.g.row(b, h, i + r) + c), load_half(a.out.row(b, h, i + r) + c), all);
      dots[r] = _mm512_reduce_add_ps(all);
    }
    for (int64_t from = range.first; from < range.end; from += KEYS)
      chunk({a, b, i, rows, from, std::min(KEYS, range.end - from)}, h, from > range.first);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < a.d; c += LANES) store_half(a.dq.row(b, h, i + r) + c, _mm512_loadu_ps(dq + r * a.d + c));
  }

  void chunk(const Block& in, int64_t h, bool later) {
    const Task& a = in.at;
    const int64_t width = round_up(in.count, LANES), pairs = (in.rows + 1) / 2, d = a.d;
    afina::product(in.rows, width, d / 2, (const uint32_t*)a.q.row(in.batch, h, in.i), a.q.token / 2, 1,
                   keys + in.from, a.width(), product, KEYS, false);
    afina::product(in.rows, width, d / 2, (const uint32_t*)a.g.row(in.batch, h, in.i), a.g.token / 2, 1,
                   values + in.from, a.width(), dshares, KEYS, false);
    softmax(in, h);
    afina::product(in.count, d, pairs, shares, 1, KEYS, grads, d, dv + in.from * d, d, true);
    afina::product(in.count, d, pairs, dscores, 1, KEYS, queries, d, dk + in.from * d, d, true);
    afina::product(in.rows, d, (in.count + 1) / 2, (const uint32_t*)dscore_rows, KEYS / 2, 1,
                   key_rows + in.from / 2 * d, d, dq, d, later);
  }

  void finish(const Task& a, int64_t b, int64_t kv, int64_t part) {
    const int64_t size = a.t * a.d;
    if (a.parts > 1) {
      float* to = a.partial + ((part * a.b + b) * a.kv + kv) * size;
      std::copy(dk, dk + size, to);
      std::copy(dv, dv + size, to + a.parts * a.b * a.kv * size);
      return;
    }
    for (int64_t t = 0; t < a.t; t++)
      for (int64_t c = 0; c < a.d; c += LANES) {
        store_half(a.dk.row(b, kv, t) + c, _mm512_loadu_ps(dk + t * a.d + c));
        store_half(a.dv.row(b, kv, t) + c, _mm512_loadu_ps(dv + t * a.d + c));
      }
  }
};

// The parts of a key head's gradients from several threads, in their order, whichever finished first.
void add_parts(const Task& a) {
  const int64_t rows = a.b * a.kv * a.t, all = rows * a.d;
#pragma omp parallel for num_threads(a.threads)
  for (int64_t i = 0; i < 2 * rows; i++) {
    const int64_t n = i % rows, b = n / (a.kv * a.t), kv = n / a.t % a.kv, t = n % a.t;
    const float* from = a.partial + (i / rows) * a.parts * all + n * a.d;
    half_t* to = (i < rows ? a.dk : a.dv).row(b, kv, t);
    for (int64_t c = 0; c < a.d; c += LANES) {
      __m512 sum = _mm512_loadu_ps(from + c);
      for (int64_t p = 1; p < a.parts; p++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(from + p * all + c));
      store_half(to + c, sum);
    }
  }
}

// Every key head with its query heads, or a part of them, by one thread. False: no memory.
template <class Pass, class Finish>
bool run(const Task& a, Finish finish) {
  bool good = true;
  const int64_t each = a.h / a.kv / a.parts;
  std::vector<Range> ranges(a.b * a.blocks());
#pragma omp parallel for num_threads(a.threads)
  for (int64_t n = 0; n < a.b * a.blocks(); n++) ranges[n] = seen_keys(a, n / a.blocks(), n % a.blocks() * ROWS);
#pragma omp parallel num_threads(a.threads) reduction(&& : good)
  {
    Scratch scratch(Pass::bytes(a));
    good = scratch.good();
    if (good) {
      Pass pass(scratch, a);
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < a.b * a.kv * a.parts; n++) {
        const int64_t b = n / (a.kv * a.parts), kv = n / a.parts % a.kv, part = n % a.parts;
        pass.head_of_keys(a, b, kv);
        for (int64_t h = (kv * a.parts + part) * each; h < (kv * a.parts + part + 1) * each; h++)
          for (int64_t i = 0; i < a.blocks(); i++) pass.block(a, b, h, i * ROWS, ranges[b * a.blocks() + i]);
        finish(pass, b, kv, part);
      }
    }
  }
  return good;
}

}  // namespace

extern "C" int afina_attention(const Task* task) {
  return run<Forward>(*task, [](Forward&, int64_t, int64_t, int64_t) {}) ? 0 : 1;
}

extern "C" int afina_attention_backward(const Task* task) {
  const Task& a = *task;
  if (!run<Backward>(a, [&](Backward& pass, int64_t b, int64_t kv, int64_t part) { pass.finish(a, b, kv, part); }))
    return 1;
  if (a.parts > 1) add_parts(a);
  return 0;
}
