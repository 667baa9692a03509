// A step of one token as a list of instructions, which a team of threads runs through in one go.
//
// What is short (norms, activations, positions, tokens made ready) one thread does alone, between what all share: rows of
// matrices, heads of attention. Python builds the list once, by the functions at the end, and owns all memory that is
// named there; what changes from token to token it writes into that memory.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <new>

#include "numbers.hpp"
#include "product.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace abridged {
namespace {

inline void wait_a_little(int64_t times) {
#if defined(__x86_64__) || defined(_M_X64)
  if (times < 4096) return _mm_pause();
#else
  if (times < 4096) return;
#endif
  std::this_thread::yield();  // there may be more threads than cores
}

// What all threads do at a time, after what one of them does alone.
struct Phase {
  std::vector<std::function<void()>> alone;
  std::function<void(int64_t)> piece;
  int64_t pieces = 0;
};

// Where a layer's keys and values are: Python writes one for each before a step.
struct Place {
  void *keys, *values;  // of the first token that is seen; the last of `seen` tokens is the new one
  int64_t key_batch_stride, key_head_stride, value_batch_stride, value_head_stride, seen;
  int32_t type;  // of their numbers
};

class Program {
 public:
  Program(int32_t path, int64_t threads) : path_(path), threads_(threads) { phases_.emplace_back(); }

  int32_t path() const { return path_; }

  void alone(std::function<void()> what) {
    group_.clear();
    phases_.back().alone.push_back(std::move(what));
  }

  void shared(int64_t pieces, std::function<void(int64_t)> piece) {
    group_.clear();
    phases_.back().piece = std::move(piece), phases_.back().pieces = pieces;
    phases_.emplace_back();
  }

  // Matrices that follow each other, none of which reads what another makes, are multiplied together.
  void product(const Product& p, bool together) {
    if (!together || group_.empty()) {
      group_.clear();
      phases_.emplace_back();
    }
    group_.push_back(std::make_shared<Product>(p));
    Phase& phase = phases_[phases_.size() - 2];
    Product& added = *group_.back();
    const auto alike = [&](const std::shared_ptr<Product>& other) { return other->reads_alike(added); };
    const auto first = std::find_if(group_.begin(), group_.end() - 1, alike);
    if (first != group_.end() - 1) {
      added.share_with(**first);
    } else {
      memory_.emplace_back(new uint8_t[added.bytes() + 64]);
      const auto address = reinterpret_cast<uintptr_t>(memory_.back().get());
      added.lend(memory_.back().get() + (64 - address % 64) % 64);
      phase.alone.push_back([one = group_.back()] { one->make_ready(0, one->linear().tokens); });
    }
    struct Rows { std::shared_ptr<Product> product; int64_t first, last; };
    std::vector<Rows> rows;
    for (const auto& one : group_) {
      const int64_t count = one->linear().rows, piece = one->piece(threads_);
      for (int64_t row = 0; row < count; row += piece)
        rows.push_back({one, row, row + piece < count ? row + piece : count});
    }
    phase.pieces = int64_t(rows.size());
    phase.piece = [rows](int64_t i) { rows[size_t(i)].product->multiply(rows[size_t(i)].first, rows[size_t(i)].last); };
  }

  // The first thread to come leads: it does what is done alone, opens each phase, and waits until its pieces are done. The
  // others help with pieces, and nobody waits for one who comes late or has none.
  void run() {
    ticket_.store(CLOSED), done_.store(0);
    std::atomic<bool> led{false};
    in_parallel(threads_, [&] { led.exchange(true) ? help() : lead(); });
  }

 private:
  // A ticket is the number of a phase and, in its lower half, of the next piece. None is taken of a closed one.
  static constexpr uint64_t PHASE = uint64_t(1) << 32, CLOSED = ~uint64_t(0) - PHASE + 1, OVER = CLOSED - PHASE;

  void lead() {
    for (size_t i = 0; i < phases_.size(); ++i) {
      const Phase& phase = phases_[i];
      for (const auto& what : phase.alone) what();
      if (phase.pieces == 0) continue;
      done_.store(0, std::memory_order_relaxed);
      ticket_.store(i * PHASE, std::memory_order_release);
      while (take(i)) {}
      for (int64_t times = 0; done_.load(std::memory_order_acquire) < phase.pieces; ++times) wait_a_little(times);
    }
    ticket_.store(OVER, std::memory_order_release);
  }

  void help() {
    uint64_t finished = CLOSED / PHASE;  // a phase of which there is no piece left
    for (int64_t times = 0;;) {
      const uint64_t now = ticket_.load(std::memory_order_acquire), phase = now / PHASE;
      if (phase == OVER / PHASE) return;
      if (phase == finished || phase == CLOSED / PHASE) {
        wait_a_little(times++);
      } else if (!take(phase)) {
        finished = phase, times = 0;
      }
    }
  }

  // Do one piece of the phase that is open now; false where `expected` has none left.
  bool take(uint64_t expected) {
    const uint64_t got = ticket_.fetch_add(1, std::memory_order_acq_rel), phase = got / PHASE;
    if (phase >= phases_.size()) return false;  // closed, or over
    const int64_t piece = int64_t(got % PHASE);
    if (piece >= phases_[phase].pieces) return phase != expected;
    phases_[phase].piece(piece);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  int32_t path_;
  int64_t threads_;
  std::vector<Phase> phases_;
  std::vector<std::shared_ptr<Product>> group_;
  std::vector<std::unique_ptr<uint8_t[]>> memory_;
  std::atomic<uint64_t> ticket_{CLOSED};
  std::atomic<int64_t> done_{0};
};

// The sum of term(i) over all of [0, n), in lanes since compilers may not reorder one sum.
template <typename Term>
float sum_of(int64_t n, const Term& term) {
  float lanes[16] = {}, sum = 0;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += term(i + j);
  for (; i < n; ++i) lanes[0] += term(i);
  for (float lane : lanes) sum += lane;
  return sum;
}

// y = (x, less its mean or not) over its size * weight + bias.
void normalize(const float* x, float* y, const float* weight, const float* bias, int64_t rows, int64_t width, float eps,
               bool centred) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    const float mean = centred ? sum_of(width, [x](int64_t i) { return x[i]; }) / float(width) : 0.0f;
    const float squares = sum_of(width, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    const float by = 1.0f / std::sqrt(squares / float(width) + eps);
    for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - mean) * by * weight[i] + (bias ? bias[i] : 0.0f);
  }
}

// The first `turned` numbers of each row: `sin` has the sign of what is added.
void turn(float* x, int64_t rows, int64_t width, const float* cos, const float* sin, int64_t turned, bool pairs) {
  for (int64_t row = 0; row < rows; ++row, x += width) {
    const int64_t half = turned / 2, step = pairs ? 2 : 1, apart = pairs ? 1 : half;
    for (int64_t k = 0; k < half; ++k) {
      const int64_t i = k * step, j = i + apart;
      const float a = x[i], b = x[j];
      x[i] = a * cos[i] + b * sin[i];
      x[j] = b * cos[j] + a * sin[j];
    }
  }
}

template <typename T>
void narrow_row(const float* from, int64_t width, T* to) {
  for (int64_t i = 0; i < width; ++i) narrow(from[i], to + i);
}

// By its own largest value, which a NaN is, to integers of 8 bits behind their scale.
void narrow_row(const float* from, int64_t width, int8_t* to) {
  float largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    const float size = std::fabs(from[i]);
    largest = largest < size || size != size ? size : largest;
  }
  const float scale = largest / 127, inverse = scale > 0 && std::isfinite(scale) ? 1 / scale : 0;
  std::memcpy(to, &scale, sizeof scale);
  for (int64_t i = 0; i < width; ++i) to[BEFORE<int8_t> + i] = inverse > 0 ? int8_t(std::nearbyint(from[i] * inverse)) : 0;
}

template <typename T>
void append(const float* from, T* to, int64_t batch, int64_t heads, int64_t width, int64_t batch_stride,
            int64_t head_stride, int64_t token) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h, from += width)
      narrow_row(from, width, to + b * batch_stride + h * head_stride + token * (BEFORE<T> + width));
}

void append(const float* key, const float* value, const Place& p, int64_t batch, int64_t heads, int64_t width) {
  const auto both = [&](auto* keys, auto* values) {
    append(key, keys, batch, heads, width, p.key_batch_stride, p.key_head_stride, p.seen - 1);
    append(value, values, batch, heads, width, p.value_batch_stride, p.value_head_stride, p.seen - 1);
  };
  switch (p.type) {
    case FLOAT32: return both(static_cast<float*>(p.keys), static_cast<float*>(p.values));
    case BFLOAT16: return both(static_cast<uint16_t*>(p.keys), static_cast<uint16_t*>(p.values));
    default: return both(static_cast<int8_t*>(p.keys), static_cast<int8_t*>(p.values));
  }
}

}  // namespace
}  // namespace abridged

using namespace abridged;

// An empty list; null where there is no memory.
ABRIDGED_API void* abridged_program(int32_t path, int64_t threads) { return new (std::nothrow) Program(path, threads); }

ABRIDGED_API void abridged_program_end(void* program) { delete static_cast<Program*>(program); }

ABRIDGED_API void abridged_program_run(void* program) { static_cast<Program*>(program)->run(); }

// 0: done; 2: as abridged_linear. `together`: with the matrix before, of which it reads nothing.
ABRIDGED_API int32_t abridged_program_linear(void* program, const void* x, void* y, const void* packed,
                                             const float* scale, const int8_t* offset, const float* bias,
                                             const float* input_scale,
                                             const int32_t* input_zero_point, int64_t tokens, int64_t rows,
                                             int64_t columns, int64_t row_bytes, int64_t num_scales, int32_t book,
                                             int32_t input_bits, int32_t function, int32_t together) {
  const Linear l{x, y, static_cast<const uint8_t*>(packed), scale, offset, bias, input_scale, input_zero_point,
                 tokens, rows, columns, row_bytes, num_scales, book, FLOAT32, input_bits, function};
  Program& to = *static_cast<Program*>(program);
  const Product product(l, to.path());
  if (!product.possible()) return 2;
  to.product(product, together);
  return 0;
}

// x and y (rows, width) may be the same.
ABRIDGED_API void abridged_program_norm(void* program, const float* x, float* y, const float* weight, const float* bias,
                                        int64_t rows, int64_t width, float eps, int32_t centred) {
  static_cast<Program*>(program)->alone([=] { normalize(x, y, weight, bias, rows, width, eps, centred); });
}

// y (batch, count, width): `count` heads out of each row of x, head h from offset + h * stride on.
ABRIDGED_API void abridged_program_heads(void* program, const float* x, float* y, int64_t batch, int64_t columns,
                                         int64_t offset, int64_t stride, int64_t count, int64_t width) {
  static_cast<Program*>(program)->alone([=] {
    for (int64_t i = 0; i < batch * count; ++i)
      std::memcpy(y + i * width, x + i / count * columns + offset + i % count * stride, size_t(width) * sizeof(float));
  });
}

// Rotary positions of x (rows, width): cos and sin (turned,), and whether neighbours are turned together or halves.
ABRIDGED_API void abridged_program_turn(void* program, float* x, int64_t rows, int64_t width, const float* cos,
                                        const float* sin, int64_t turned, int32_t pairs) {
  static_cast<Program*>(program)->alone([=] { turn(x, rows, width, cos, sin, turned, pairs); });
}

// query (batch, heads, width), key and value (batch, key_heads, width): the last two join those at `place`, and y
// (batch, heads, width) is what the query sees there.
ABRIDGED_API void abridged_program_attend(void* program, const float* query, const float* key, const float* value,
                                          float* y, const void* place, int64_t batch, int64_t heads, int64_t key_heads,
                                          int64_t width, float scale) {
  Program& to = *static_cast<Program*>(program);
  const Place& at = *static_cast<const Place*>(place);
  to.alone([=, &at] { append(key, value, at, batch, key_heads, width); });
  const Kernels& kernels = kernels_of(to.path());
  to.shared(batch * key_heads, [=, &at, &kernels](int64_t head) {
    const Attention a{query, at.keys, at.values, y, batch, heads, key_heads, at.seen, width, at.key_batch_stride,
                      at.key_head_stride, at.value_batch_stride, at.value_head_stride, scale, at.type};
    kernels.attend(a, head, head + 1);
  });
}

// As Activation says.
ABRIDGED_API void abridged_program_activate(void* program, const float* gate, const float* up, float* y, int64_t rows,
                                            int64_t count, int64_t gate_row, int64_t gate_step, int64_t up_row,
                                            int64_t up_step, int32_t function) {
  Program& to = *static_cast<Program*>(program);
  const Activation a{gate, up, y, rows, count, gate_row, gate_step, up_row, up_step, function};
  to.alone([a, activate = kernels_of(to.path()).activate] { activate(a); });
}

// y += by * x.
ABRIDGED_API void abridged_program_add(void* program, const float* x, float* y, int64_t count, float by) {
  static_cast<Program*>(program)->alone([=] {
    for (int64_t i = 0; i < count; ++i) y[i] += by * x[i];
  });
}
