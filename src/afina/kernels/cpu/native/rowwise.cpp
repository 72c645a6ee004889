// Passes over rows between the products: cross-entropy with its gradient, RMSNorm, gated activations and rotary
// positions, each once over memory, in float32 within a row. Numbers are bfloat16 or float32.
#include "tile.h"

using namespace afina;

namespace {

inline __m512 get(const half_t* p, __mmask16 m) { return load_some(p, m); }
inline __m512 get(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
inline void put(half_t* p, __mmask16 m, __m512 x) { store_some(p, m, x); }
inline void put(float* p, __mmask16 m, __m512 x) { _mm512_mask_storeu_ps(p, m, x); }
// What is left of x in the dtype of p.
inline __m512 rounded(const half_t*, __m512 x) { return widen(narrow(x)); }
inline __m512 rounded(const float*, __m512 x) { return x; }

// 1 / (1 + e^-x)
inline __m512 sigmoid(__m512 x) {
  const __m512 e = exp2_(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
  return _mm512_div_ps(_mm512_set1_ps(1.f), _mm512_add_ps(_mm512_set1_ps(1.f), e));
}

// The loss of one row of logits against `target`; `backward`: its gradient takes their place.
template <class T>
double cross_entropy(T* z, int64_t v, int64_t target, float smoothing, bool backward) {
  const __m512 log2e = _mm512_set1_ps(1.44269504f);
  __m512 top = _mm512_set1_ps(-INFINITY), all = _mm512_setzero_ps();
  for (int64_t i = 0; i < v; i += LANES) {
    const __mmask16 m = first(v - i);
    const __m512 x = get(z + i, m);
    top = _mm512_mask_max_ps(top, m, top, x);
    all = _mm512_add_ps(all, x);
  }
  const float most = _mm512_reduce_max_ps(top);
  const __m512 shift = _mm512_set1_ps(most);
  double sum = 0;
  // Sums of blocks, so that float32 loses nothing over a long row.
  for (int64_t i = 0; i < v;) {
    __m512 part = _mm512_setzero_ps();
    for (const int64_t end = i + 64 * LANES < v ? i + 64 * LANES : v; i < end; i += LANES) {
      const __mmask16 m = first(v - i);
      part = _mm512_mask_add_ps(part, m, part, exp2_(_mm512_mul_ps(_mm512_sub_ps(get(z + i, m), shift), log2e)));
    }
    sum += _mm512_reduce_add_ps(part);
  }
  const float at_target = _mm512_cvtss_f32(get(z + target, 1));
  double loss = most + std::log(sum) - (1 - (double)smoothing) * at_target;
  if (smoothing != 0) loss -= (double)smoothing * _mm512_reduce_add_ps(all) / v;
  if (!backward) return loss;
  const __m512 share = _mm512_set1_ps((float)(1 / sum)), spread = _mm512_set1_ps(smoothing / v);
  const float at = std::exp(at_target - most) / (float)sum - (1 - smoothing) - smoothing / v;
  for (int64_t i = 0; i < v; i += LANES) {
    const __mmask16 m = first(v - i);
    const __m512 p = exp2_(_mm512_mul_ps(_mm512_sub_ps(get(z + i, m), shift), log2e));
    put(z + i, m, _mm512_fmsub_ps(p, share, spread));
  }
  put(z + target, 1, _mm512_set1_ps(at));
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
    __m512 all = _mm512_setzero_ps();
    for (int64_t c = 0; c < d; c += LANES) {
      const __m512 a = get(row + c, first(d - c));
      all = _mm512_fmadd_ps(a, a, all);
    }
    kept[i] = 1.f / std::sqrt(_mm512_reduce_add_ps(all) / d + eps);
    const __m512 factor = _mm512_set1_ps(kept[i]);
    for (int64_t c = 0; c < d; c += LANES) {
      const __mmask16 m = first(d - c);
      put(y + i * d + c, m, _mm512_mul_ps(rounded(x, _mm512_mul_ps(get(row + c, m), factor)), get(weight + c, m)));
    }
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
      __m512 all = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += LANES) {
        const __mmask16 m = first(d - c);
        const __m512 wg = _mm512_mul_ps(get(g + i * d + c, m), get(weight + c, m));
        all = _mm512_fmadd_ps(wg, get(x + i * d + c, m), all);
      }
      const float s = kept[i];
      const __m512 factor = _mm512_set1_ps(s), dot = _mm512_set1_ps(_mm512_reduce_add_ps(all) / d * s * s);
      for (int64_t c = 0; c < d; c += LANES) {
        const __mmask16 m = first(d - c);
        const __m512 wg = _mm512_mul_ps(get(g + i * d + c, m), get(weight + c, m));
        put(dx + i * d + c, m, _mm512_mul_ps(factor, _mm512_fnmadd_ps(get(x + i * d + c, m), dot, wg)));
      }
      if (dw)
        for (int64_t c = 0; c < d; c += LANES) {
          const __mmask16 m = first(d - c);
          float* sum = dw + block / BLOCK * d + c;
          const __m512 even = rounded(x, _mm512_mul_ps(get(x + i * d + c, m), factor));
          put(sum, m, _mm512_fmadd_ps(get(g + i * d + c, m), even, get((const float*)sum, m)));
        }
    }
}

constexpr int64_t PIECE = 4096;

// silu(gate) * up
template <class T>
void gated(const T* gate, const T* up, T* y, int64_t n, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t from = 0; from < n; from += PIECE)
    for (int64_t i = from; i < n && i < from + PIECE; i += LANES) {
      const __mmask16 m = first(n - i);
      const __m512 a = get(gate + i, m);
      put(y + i, m, _mm512_mul_ps(rounded(gate, _mm512_mul_ps(a, sigmoid(a))), get(up + i, m)));
    }
}

template <class T>
void gated_backward(const T* g, const T* gate, const T* up, T* dgate, T* dup, int64_t n, int64_t threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t from = 0; from < n; from += PIECE)
    for (int64_t i = from; i < n && i < from + PIECE; i += LANES) {
      const __mmask16 m = first(n - i);
      const __m512 a = get(gate + i, m), s = sigmoid(a), dy = get(g + i, m), one = _mm512_set1_ps(1.f);
      put(dup + i, m, _mm512_mul_ps(dy, _mm512_mul_ps(a, s)));
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(a, _mm512_sub_ps(one, s), one));
      put(dgate + i, m, _mm512_mul_ps(_mm512_mul_ps(dy, get(up + i, m)), slope));
    }
}

struct Turned {  // (batch, heads, tokens, size); steps in elements, 1 within a row
  const void* from;
  void* to;
  int64_t heads, from_batch, from_head, from_token, to_batch, to_head, to_token;
};

// Two halves of a row turned by angles: (a cos - b sin, b cos + a sin), rounded as one operation after the other would.
template <class T>
void turn(const T* x, const T* cos, const T* sin, T* y, int64_t half) {
  for (int64_t c = 0; c < half; c += LANES) {
    const __mmask16 m = first(half - c);
    const __m512 a = get(x + c, m), b = get(x + half + c, m);
    put(y + c, m, _mm512_sub_ps(rounded(x, _mm512_mul_ps(a, get(cos + c, m))),
                                rounded(x, _mm512_mul_ps(b, get(sin + c, m)))));
    put(y + half + c, m, _mm512_add_ps(rounded(x, _mm512_mul_ps(b, get(cos + half + c, m))),
                                       rounded(x, _mm512_mul_ps(a, get(sin + half + c, m)))));
  }
}

// Its gradient: turned back.
template <class T>
void turn_back(const T* g, const T* cos, const T* sin, T* dx, int64_t half) {
  for (int64_t c = 0; c < half; c += LANES) {
    const __mmask16 m = first(half - c);
    const __m512 a = get(g + c, m), b = get(g + half + c, m);
    put(dx + c, m, _mm512_fmadd_ps(a, get(cos + c, m), _mm512_mul_ps(b, get(sin + half + c, m))));
    put(dx + half + c, m, _mm512_fmsub_ps(b, get(cos + half + c, m), _mm512_mul_ps(a, get(sin + c, m))));
  }
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
