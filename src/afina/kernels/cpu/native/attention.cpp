// softmax(scale q k^T) v and its gradients, block by block, so that no scores leave the processor's cache:
// FlashAttention, Dao 2023, arXiv 2307.08691. Kept for the backward pass: the output, and of every row its maximum and
// 1 / its sum.
#include <vector>
#include "task.h"

using namespace afina;

namespace {

template <class T>
struct Forward {
  using P = Operands<T>;
  using item = typename P::item;
  using number = typename P::number;
  static constexpr int64_t STEP = P::STEP;

  item *keys, *values, *queries;
  float *product, *sum, *most, *total;
  number* shares;

  static size_t bytes(const Task<T>& a) {
    return 64 * 16 + a.width() * a.d * 2 * sizeof(number) + ROWS * (KEYS * (4 + sizeof(number)) + a.d * 8 + 8);
  }
  Forward(Scratch& from, const Task<T>& a)
      : keys(from.take<item>(a.d / STEP * a.width())), values(from.take<item>(a.width() / STEP * a.d)),
        queries(from.take<item>(P::COPIES_LEFT ? ROWS * a.d : 0)), product(from.take<float>(ROWS * KEYS)),
        sum(from.take<float>(ROWS * a.d)), most(from.take<float>(ROWS)), total(from.take<float>(ROWS)),
        shares(from.take<number>(ROWS * KEYS)) {}

  // Shares of a chunk of keys, relative to the rows' maxima so far; what was summed before comes to the same scale.
  void softmax(const Block& in, int64_t d) {
    const int64_t width = round_up(in.count, LANES);
    const vec never = every(-INFINITY);
    for (int64_t r = 0; r < in.rows; r++) {
      float* row = product + r * KEYS;
      vec top = never;
      for (int64_t c = 0; c < width; c += LANES) {
        const vec x = where(first(in.there(r, c)), in.scores(row, r, c), never);
        top = larger(top, x);
        store(row + c, x);
      }
      const float was = most[r], now = std::max(was, largest(top));
      vec all = every(0.f);
      for (int64_t c = 0; c < width; c += LANES) {
        const vec p = exp2_(load(row + c) - every(now));  // 0 for what is not there
        all = all + p;
        store(shares + r * KEYS + c, p);
      }
      const float factor = was == -INFINITY ? 0.f : std::exp2(was - now);
      most[r] = now;
      total[r] = total[r] * factor + afina::sum(all);
      if (factor != 1.f && was != -INFINITY)
        for (int64_t c = 0; c < d; c += LANES) store(sum + r * d + c, load(sum + r * d + c) * every(factor));
    }
  }

  void block(const Task<T>& a, int64_t b, int64_t h, int64_t i, Range range) {
    const int64_t rows = std::min(ROWS, a.t - i), d = a.d;
    int64_t step;
    if constexpr (P::COPIES_LEFT) P::pack_rows(a.q.row(b, h, i), a.q.token, rows, d, queries);
    const item* left = P::left(a.q.row(b, h, i), a.q.token, d, queries, step);
    std::fill(most, most + rows, -INFINITY);
    std::fill(total, total + rows, 0.f);
    for (int64_t from = range.first; from < range.end; from += KEYS) {
      const Block in{a, b, i, rows, from, std::min(KEYS, range.end - from)};
      afina::product(rows, round_up(in.count, LANES), d / STEP, left, step, 1, keys + from, a.width(), product, KEYS,
                     false);
      softmax(in, d);
      afina::product(rows, d, (in.count + STEP - 1) / STEP, (const item*)shares, KEYS / STEP, 1,
                     values + from / STEP * d, d, sum, d, from > range.first);
    }
    for (int64_t r = 0; r < rows; r++) {
      const float share = 1.f / total[r];
      float* kept = a.stats + ((b * a.h + h) * a.t + i + r) * 2;
      kept[0] = most[r];
      kept[1] = share;
      for (int64_t c = 0; c < d; c += LANES) store(a.out.row(b, h, i + r) + c, load(sum + r * d + c) * every(share));
    }
  }

  void head_of_keys(const Task<T>& a, int64_t b, int64_t kv) {
    P::pack_columns(a.k.row(b, kv, 0), a.k.token, a.t, a.d, keys, a.width());
    P::pack_rows(a.v.row(b, kv, 0), a.v.token, a.t, a.d, values);
  }

  void finish(const Task<T>&, int64_t, int64_t, int64_t) {}
};

template <class T>
struct Backward {
  using P = Operands<T>;
  using item = typename P::item;
  using number = typename P::number;
  static constexpr int64_t STEP = P::STEP;

  item *keys, *key_rows, *values, *queries, *grads, *shares, *dscores;
  float *product, *dshares, *dq, *dk, *dv, *dots;
  number* dscore_rows;  // the same as dscores where items are single

  static size_t bytes(const Task<T>& a) {
    return 64 * 16 + a.width() * a.d * (3 * sizeof(number) + 8) +
           ROWS * (a.d * (4 + 2 * sizeof(number)) + KEYS * (8 + 3 * sizeof(number)) + 4);
  }
  Backward(Scratch& from, const Task<T>& a)
      : keys(from.take<item>(a.d / STEP * a.width())), key_rows(from.take<item>(a.width() / STEP * a.d)),
        values(from.take<item>(a.d / STEP * a.width())), queries(from.take<item>(ROWS / STEP * a.d)),
        grads(from.take<item>(ROWS / STEP * a.d)), shares(from.take<item>(ROWS / STEP * KEYS)),
        dscores(from.take<item>(ROWS / STEP * KEYS)), product(from.take<float>(ROWS * KEYS)),
        dshares(from.take<float>(ROWS * KEYS)), dq(from.take<float>(ROWS * a.d)),
        dk(from.take<float>(a.width() * a.d)), dv(from.take<float>(a.width() * a.d)), dots(from.take<float>(ROWS)),
        dscore_rows(STEP == 1 ? (number*)dscores : from.take<number>(ROWS * KEYS)) {}

  void head_of_keys(const Task<T>& a, int64_t b, int64_t kv) {
    P::pack_columns(a.k.row(b, kv, 0), a.k.token, a.t, a.d, keys, a.width());
    P::pack_columns(a.v.row(b, kv, 0), a.v.token, a.t, a.d, values, a.width());
    P::pack_rows(a.k.row(b, kv, 0), a.k.token, a.t, a.d, key_rows);
    std::fill(dk, dk + a.t * a.d, 0.f);
    std::fill(dv, dv + a.t * a.d, 0.f);
  }

  // Shares and the gradients of scores, in the orders in which products read them.
  void softmax(const Block& in, const float* kept) {
    for (int64_t r = 0; r < in.rows; r += STEP)
      for (int64_t c = 0; c < round_up(in.count, LANES); c += LANES) {
        vec p[STEP], ds[STEP];
        for (int64_t n = 0; n < STEP; n++) p[n] = ds[n] = every(0.f);
        for (int64_t n = 0; n < std::min(STEP, in.rows - r); n++) {
          const int64_t at = (r + n) * KEYS;
          const vec x = in.scores(product + at, r + n, c) - every(kept[2 * (r + n)]);
          p[n] = where(first(in.there(r + n, c)), exp2_(x) * every(kept[2 * (r + n) + 1]), every(0.f));
          ds[n] = p[n] * (load(dshares + at + c) - every(dots[r + n])) * every(in.at.scale);
          if constexpr (STEP > 1) store(dscore_rows + at + c, ds[n]);
        }
        P::down(shares + r / STEP * KEYS + c, p);
        P::down(dscores + r / STEP * KEYS + c, ds);
      }
  }

  void block(const Task<T>& a, int64_t b, int64_t h, int64_t i, Range range) {
    const int64_t rows = std::min(ROWS, a.t - i);
    P::pack_rows(a.q.row(b, h, i), a.q.token, rows, a.d, queries);
    P::pack_rows(a.g.row(b, h, i), a.g.token, rows, a.d, grads);
    for (int64_t r = 0; r < rows; r++) {
      vec all = every(0.f);
      for (int64_t c = 0; c < a.d; c += LANES)
        all = fma(load(a.g.row(b, h, i + r) + c), load(a.out.row(b, h, i + r) + c), all);
      dots[r] = sum(all);
    }
    for (int64_t from = range.first; from < range.end; from += KEYS)
      chunk(a, {a, b, i, rows, from, std::min(KEYS, range.end - from)}, h, from > range.first);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < a.d; c += LANES) store(a.dq.row(b, h, i + r) + c, load(dq + r * a.d + c));
  }

  void chunk(const Task<T>& a, const Block& in, int64_t h, bool later) {
    const int64_t width = round_up(in.count, LANES), down = (in.rows + STEP - 1) / STEP, d = a.d, b = in.batch;
    int64_t step;
    const item* left = P::left(a.q.row(b, h, in.i), a.q.token, d, queries, step);
    afina::product(in.rows, width, d / STEP, left, step, 1, keys + in.from, a.width(), product, KEYS, false);
    left = P::left(a.g.row(b, h, in.i), a.g.token, d, grads, step);
    afina::product(in.rows, width, d / STEP, left, step, 1, values + in.from, a.width(), dshares, KEYS, false);
    softmax(in, a.stats + ((b * a.h + h) * a.t + in.i) * 2);
    afina::product(in.count, d, down, shares, 1, KEYS, grads, d, dv + in.from * d, d, true);
    afina::product(in.count, d, down, dscores, 1, KEYS, queries, d, dk + in.from * d, d, true);
    afina::product(in.rows, d, (in.count + STEP - 1) / STEP, (const item*)dscore_rows, KEYS / STEP, 1,
                   key_rows + in.from / STEP * d, d, dq, d, later);
  }

  void finish(const Task<T>& a, int64_t b, int64_t kv, int64_t part) {
    const int64_t size = a.t * a.d;
    if (a.parts > 1) {
      float* to = a.partial + ((part * a.b + b) * a.kv + kv) * size;
      std::copy(dk, dk + size, to);
      std::copy(dv, dv + size, to + a.parts * a.b * a.kv * size);
      return;
    }
    for (int64_t t = 0; t < a.t; t++)
      for (int64_t c = 0; c < a.d; c += LANES) {
        store(a.dk.row(b, kv, t) + c, load(dk + t * a.d + c));
        store(a.dv.row(b, kv, t) + c, load(dv + t * a.d + c));
      }
  }
};

// The parts of a key head's gradients from several threads, in their order, whichever finished first.
template <class T>
void add_parts(const Task<T>& a) {
  const int64_t rows = a.b * a.kv * a.t, all = rows * a.d;
#pragma omp parallel for num_threads(a.threads)
  for (int64_t i = 0; i < 2 * rows; i++) {
    const int64_t n = i % rows, b = n / (a.kv * a.t), kv = n / a.t % a.kv, t = n % a.t;
    const float* from = a.partial + (i / rows) * a.parts * all + n * a.d;
    T* to = (i < rows ? a.dk : a.dv).row(b, kv, t);
    for (int64_t c = 0; c < a.d; c += LANES) {
      vec sum = load(from + c);
      for (int64_t p = 1; p < a.parts; p++) sum = sum + load(from + p * all + c);
      store(to + c, sum);
    }
  }
}

// Every key head with its query heads, or a part of them, by one thread. Not 0: no memory.
template <class Pass, class T>
int run(const Task<T>& a) {
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
        pass.finish(a, b, kv, part);
      }
    }
  }
  return good ? 0 : 1;
}

template <class T>
int backward(const Task<T>& a) {
  const int failed = run<Backward<T>>(a);
  if (!failed && a.parts > 1) add_parts(a);
  return failed;
}

}  // namespace

#define AFINA_ATTENTION(NAME, T)                                                                      \
  extern "C" int afina_attention_##NAME(const Task<T>* task) { return run<Forward<T>>(*task); }       \
  extern "C" int afina_attention_backward_##NAME(const Task<T>* task) { return backward(*task); }

AFINA_ATTENTION(bfloat16, half_t)
AFINA_ATTENTION(float32, float)
