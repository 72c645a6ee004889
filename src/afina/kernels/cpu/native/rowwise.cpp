// Passes over rows between the products: cross-entropy with its gradient, RMSNorm, gated activations and rotary
// positions, each once over memory, in float32 within a row. Numbers are bfloat16 or float32.
#include "vector.h"

using namespace afina;

namespace {

// 1 / (1 + e^-x)
inline vec sigmoid(vec x) { return every(1.f) / (every(1.f) + exp2_(x * every(-LOG2E))); }

// The loss of one row of logits against `target`; `backward`: its gradient takes their place.
template <class T>
double cross_entropy(T* z, int64_t v, int64_t target, float smoothing, bool backward) {
  vec top = every(-INFINITY), all = every(0.f);
  over(0, v, [=, &top, &all](int64_t i, auto m) {
    const vec x = load(z + i, m);
    top = where(m, larger(top, x), top);
    all = all + x;
  });
  const float most = largest(top);
  const vec shift = every(most), log2e = every(LOG2E);
  double total = 0;
  // Sums of blocks, so that float32 loses nothing over a long row.
  for (int64_t from = 0; from < v; from += 64 * LANES) {
    vec part = every(0.f);
    over(from, from + 64 * LANES < v ? from + 64 * LANES : v, [=, &part](int64_t i, auto m) {
      part = where(m, part + exp2_((load(z + i, m) - shift) * log2e), part);
    });
    total += sum(part);
  }
  const float at_target = as_float(z[target]);
  double loss = most + std::log(total) - (1 - (double)smoothing) * at_target;
  if (smoothing != 0) loss -= (double)smoothing * sum(all) / v;
  if (!backward) return loss;
  const vec share = every((float)(1 / total)), spread = every(-smoothing / v);
  const float at = std::exp(at_target - most) / (float)total - (1 - smoothing) - smoothing / v;
  over(0, v, [=](int64_t i, auto m) {
    store(z + i, m, fma(exp2_((load(z + i, m) - shift) * log2e), share, spread));
  });
  store(z + target, Some{1}, every(at));
  return loss;
}

template <class T>
void cross_entropies(T* z, int64_t n, int64_t v, const int64_t* y, float smoothing, int64_t backward, double* out,
                     int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t i = 0; i < n; i++) out[i] = cross_entropy(z + i * v, v, y[i], smoothing, backward != 0);
}

// y = weight * x / rms(x); what is multiplied by the weight is rounded first, as in models. kept: 1 / rms(x).
template <class T>
void norm(const T* x, const T* weight, T* y, float* kept, int64_t n, int64_t d, float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < n; i++) {
    const T* row = x + i * d;
    T* out = y + i * d;
    vec all = every(0.f);
    over(0, d, [=, &all](int64_t c, auto m) {
      const vec a = load(row + c, m);
      all = fma(a, a, all);
    });
    kept[i] = 1.f / std::sqrt(sum(all) / d + eps);
    const vec factor = every(kept[i]);
    over(0, d, [=](int64_t c, auto m) {
      store(out + c, m, rounded(x, load(row + c, m) * factor) * load(weight + c, m));
    });
  }
}

constexpr int64_t BLOCK = 64;

// dx = s (w g - x s^2 mean(w g x)), s = 1 / rms(x). dw, if it is not null: sums of g times what was multiplied by the
// weight over blocks of 64 rows, (ceil(n / 64), d), from zeros.
template <class T>
void norm_backward(const T* g, const T* x, const T* weight, const float* kept, T* dx, float* dw, int64_t n, int64_t d,
                   int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t block = 0; block < n; block += BLOCK)
    for (int64_t i = block; i < n && i < block + BLOCK; i++) {
      const T *slope = g + i * d, *row = x + i * d;
      T* out = dx + i * d;
      vec all = every(0.f);
      over(0, d, [=, &all](int64_t c, auto m) {
        all = fma(load(slope + c, m) * load(weight + c, m), load(row + c, m), all);
      });
      const float s = kept[i];
      const vec factor = every(s), dot = every(-(sum(all) / d * s * s));
      over(0, d, [=](int64_t c, auto m) {
        const vec wg = load(slope + c, m) * load(weight + c, m);
        store(out + c, m, factor * fma(load(row + c, m), dot, wg));
      });
      if (!dw) continue;
      float* sums = dw + block / BLOCK * d;
      over(0, d, [=](int64_t c, auto m) {
        const vec even = rounded(x, load(row + c, m) * factor);
        store(sums + c, m, fma(load(slope + c, m), even, load((const float*)sums + c, m)));
      });
    }
}

constexpr int64_t PIECE = 4096;

// silu(gate) * up
template <class T>
void gated(const T* gate, const T* up, T* y, int64_t n, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t from = 0; from < n; from += PIECE)
    over(from, from + PIECE < n ? from + PIECE : n, [=](int64_t i, auto m) {
      const vec a = load(gate + i, m);
      store(y + i, m, rounded(gate, a * sigmoid(a)) * load(up + i, m));
    });
}

template <class T>
void gated_backward(const T* g, const T* gate, const T* up, T* dgate, T* dup, int64_t n, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t from = 0; from < n; from += PIECE)
    over(from, from + PIECE < n ? from + PIECE : n, [=](int64_t i, auto m) {
      const vec a = load(gate + i, m), s = sigmoid(a), dy = load(g + i, m);
      store(dup + i, m, dy * (a * s));
      store(dgate + i, m, dy * load(up + i, m) * (s * fma(a, every(1.f) - s, every(1.f))));
    });
}

struct Turned {  // (batch, heads, tokens, size); steps in elements, 1 within a row
  const void* from;
  void* to;
  int64_t heads, from_batch, from_head, from_token, to_batch, to_head, to_token;
};

// Two halves of a row turned by angles: (a cos - b sin, b cos + a sin), rounded as one operation after the other would.
template <class T>
void turn(const T* x, const T* cos, const T* sin, T* y, int64_t half) {
  over(0, half, [=](int64_t c, auto m) {
    const vec a = load(x + c, m), b = load(x + half + c, m);
    store(y + c, m, rounded(x, a * load(cos + c, m)) - rounded(x, b * load(sin + c, m)));
    store(y + half + c, m, rounded(x, b * load(cos + half + c, m)) + rounded(x, a * load(sin + half + c, m)));
  });
}

// Its gradient: turned back.
template <class T>
void turn_back(const T* g, const T* cos, const T* sin, T* dx, int64_t half) {
  over(0, half, [=](int64_t c, auto m) {
    const vec a = load(g + c, m), b = load(g + half + c, m);
    store(dx + c, m, fma(a, load(cos + c, m), b * load(sin + half + c, m)));
    store(dx + half + c, m, fma(b, load(cos + half + c, m), -(a * load(sin + c, m))));
  });
}

// Both tensors of an attention layer; angle_batch: the step of cos and sin (batch, tokens, size) from row to row.
template <class T>
void turn_heads(const Turned* tensors, const T* cos, const T* sin, int64_t angle_batch, int64_t batch, int64_t tokens,
                int64_t size, int64_t back, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < batch * tokens; n++) {
    const int64_t b = n / tokens, t = n % tokens, at = b * angle_batch + t * size;
    for (const Turned* x = tensors; x < tensors + 2; x++)
      for (int64_t h = 0; h < x->heads; h++) {
        const T* from = (const T*)x->from + b * x->from_batch + h * x->from_head + t * x->from_token;
        T* to = (T*)x->to + b * x->to_batch + h * x->to_head + t * x->to_token;
        (back ? turn_back<T> : turn<T>)(from, cos + at, sin + at, to, size / 2);
      }
  }
}

}  // namespace

extern "C" const char* afina_instructions() { return AFINA_INSTRUCTIONS; }

#define AFINA_ROWS(NAME, T)                                                                                         \
  extern "C" void afina_cross_entropy_##NAME(T* z, int64_t n, int64_t v, const int64_t* y, float smoothing,         \
                                             int64_t backward, double* out, int64_t threads) {                      \
    cross_entropies(z, n, v, y, smoothing, backward, out, threads);                                                 \
  }                                                                                                                 \
  extern "C" void afina_norm_##NAME(const T* x, const T* w, T* y, float* kept, int64_t n, int64_t d, float eps,     \
                                    int64_t threads) {                                                              \
    norm(x, w, y, kept, n, d, eps, threads);                                                                        \
  }                                                                                                                 \
  extern "C" void afina_norm_backward_##NAME(const T* g, const T* x, const T* w, const float* kept, T* dx,          \
                                             float* dw, int64_t n, int64_t d, int64_t threads) {                    \
    norm_backward(g, x, w, kept, dx, dw, n, d, threads);                                                            \
  }                                                                                                                 \
  extern "C" void afina_gated_##NAME(const T* gate, const T* up, T* y, int64_t n, int64_t threads) {                \
    gated(gate, up, y, n, threads);                                                                                 \
  }                                                                                                                 \
  extern "C" void afina_gated_backward_##NAME(const T* g, const T* gate, const T* up, T* dgate, T* dup, int64_t n,  \
                                              int64_t threads) {                                                    \
    gated_backward(g, gate, up, dgate, dup, n, threads);                                                            \
  }                                                                                                                 \
  extern "C" void afina_turn_##NAME(const Turned* tensors, const T* cos, const T* sin, int64_t angle_batch,         \
                                    int64_t batch, int64_t tokens, int64_t size, int64_t back, int64_t threads) {   \
    turn_heads(tensors, cos, sin, angle_batch, batch, tokens, size, back, threads);                                 \
  }

AFINA_ROWS(bfloat16, half_t)
AFINA_ROWS(float32, float)
