// Calls every kernel on fixed numbers and writes what comes out, a line an array: two processors must write the same.
#include <cstdio>
#include <vector>
#include "task.h"

using namespace afina;

#define KERNELS(NAME, T)                                                                                             \
  extern "C" void afina_cross_entropy_##NAME(T*, int64_t, int64_t, const int64_t*, float, int64_t, double*, int64_t); \
  extern "C" void afina_norm_##NAME(const T*, const T*, T*, float*, int64_t, int64_t, float, int64_t);               \
  extern "C" void afina_norm_backward_##NAME(const T*, const T*, const T*, const float*, T*, float*, int64_t,        \
                                             int64_t, int64_t);                                                      \
  extern "C" void afina_gated_##NAME(const T*, const T*, T*, int64_t, int64_t);                                      \
  extern "C" void afina_gated_backward_##NAME(const T*, const T*, const T*, T*, T*, int64_t, int64_t);               \
  extern "C" void afina_turn_##NAME(const void*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t,    \
                                    int64_t);                                                                        \
  extern "C" int afina_attention_##NAME(const Task<T>*);                                                             \
  extern "C" int afina_attention_backward_##NAME(const Task<T>*);
KERNELS(bfloat16, half_t)
KERNELS(float32, float)

struct Turned {
  const void* from;
  void* to;
  int64_t heads, steps[6];
};

template <class T>
std::vector<T> numbers(int64_t n, uint32_t seed) {
  std::vector<T> out(n);
  for (T& x : out) {
    seed = seed * 1664525u + 1013904223u;
    const float all[LANES] = {(float)(int32_t)seed / 1e9f};
    T rounded[LANES];
    store(rounded, load(all));
    x = rounded[0];
  }
  return out;
}

template <class T>
void write(const char* kernel, const char* dtype, const std::vector<T>& x) {
  std::printf("%s %s", kernel, dtype);
  for (const T one : x) std::printf(" %.9g", (double)as_float(one));
  std::printf("\n");
}

constexpr int64_t N = 5, D = 37, B = 2, H = 4, KV = 2, TOKENS = 70, SIZE = 16, THREADS = 2;

#define RUN(NAME, T)                                                                                                 \
  void rows_##NAME() {                                                                                               \
    auto x = numbers<T>(N * D, 1), g = numbers<T>(N * D, 2), up = numbers<T>(N * D, 3), w = numbers<T>(D, 4);        \
    std::vector<T> y(N * D), dx(N * D), dy(N * D), z = x;                                                            \
    std::vector<float> kept(N), dw(D), losses(N);                                                                    \
    std::vector<double> each(N);                                                                                     \
    const std::vector<int64_t> labels = {0, 5, 36, 7, 8};                                                            \
    afina_cross_entropy_##NAME(z.data(), N, D, labels.data(), 0.1f, 1, each.data(), THREADS);                        \
    for (int64_t i = 0; i < N; i++) losses[i] = (float)each[i];                                                      \
    write("loss", #NAME, losses), write("loss_backward", #NAME, z);                                                  \
    afina_norm_##NAME(x.data(), w.data(), y.data(), kept.data(), N, D, 0.1f, THREADS);                               \
    afina_norm_backward_##NAME(g.data(), x.data(), w.data(), kept.data(), dx.data(), dw.data(), N, D, THREADS);      \
    write("norm", #NAME, y), write("norm_backward", #NAME, dx), write("norm_weight", #NAME, dw);                     \
    afina_gated_##NAME(x.data(), up.data(), y.data(), N * D, THREADS);                                               \
    afina_gated_backward_##NAME(g.data(), x.data(), up.data(), dx.data(), dy.data(), N * D, THREADS);                \
    write("gated", #NAME, y), write("gated_gate", #NAME, dx), write("gated_up", #NAME, dy);                          \
    for (int64_t back = 0; back < 2; back++) {                                                                       \
      const Turned both[2] = {{x.data(), y.data(), 2, {36, 18, 36, 36, 18, 36}},                                     \
                              {g.data(), dx.data(), 2, {36, 18, 36, 36, 18, 36}}};                                   \
      afina_turn_##NAME(both, w.data(), up.data(), 0, 1, 2, 18, back, THREADS);                                      \
      write("turn", #NAME, y), write("turn", #NAME, dx);                                                             \
    }                                                                                                                \
  }                                                                                                                  \
  void attention_##NAME(const uint8_t* allowed) {                                                                    \
    const int64_t many = B * H * TOKENS * SIZE, few = B * KV * TOKENS * SIZE;                                        \
    auto q = numbers<T>(many, 1), g = numbers<T>(many, 2), k = numbers<T>(few, 3), v = numbers<T>(few, 4);           \
    std::vector<T> out(many), dq(many), dk(few), dv(few);                                                            \
    std::vector<float> stats(2 * B * H * TOKENS), partial(4 * few);                                                  \
    Task<T> a{};                                                                                                     \
    a.b = B, a.h = H, a.kv = KV, a.t = TOKENS, a.d = SIZE, a.parts = 2, a.scale = 0.25f, a.causal = 1;               \
    a.allowed = allowed, a.allowed_batch = allowed ? TOKENS : 0, a.threads = THREADS;                                \
    const auto heads = [](std::vector<T>& x, int64_t n) {                                                            \
      return Heads<T>{x.data(), n * TOKENS * SIZE, TOKENS * SIZE, SIZE};                                             \
    };                                                                                                               \
    a.q = heads(q, H), a.k = heads(k, KV), a.v = heads(v, KV), a.out = heads(out, H), a.g = heads(g, H);             \
    a.dq = heads(dq, H), a.dk = heads(dk, KV), a.dv = heads(dv, KV), a.stats = stats.data();                         \
    a.partial = partial.data();                                                                                      \
    afina_attention_##NAME(&a), afina_attention_backward_##NAME(&a);                                                 \
    write("attention", #NAME, out), write("attention_q", #NAME, dq), write("attention_k", #NAME, dk);                \
    write("attention_v", #NAME, dv);                                                                                 \
  }
RUN(bfloat16, half_t)
RUN(float32, float)

int main() {
  std::vector<uint8_t> allowed(B * TOKENS, 1);
  for (int64_t i = 0; i < TOKENS / 3; i++) allowed[i] = 0;
  rows_bfloat16(), rows_float32();
  for (const uint8_t* keys : {(const uint8_t*)nullptr, (const uint8_t*)allowed.data()})
    attention_bfloat16(keys), attention_float32(keys);
  const float odd[LANES] = {-INFINITY, NAN, 200.f, -200.f};
  std::vector<float> powers(LANES);
  store(powers.data(), exp2_(load(odd)));
  powers.resize(4);
  write("powers", "float32", powers);
}
