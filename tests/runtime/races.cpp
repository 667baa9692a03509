// Lists of instructions run by several teams at once, for ThreadSanitizer to watch (`make sanitize`): two matrices that
// read the same, attention that appends, a norm and a sum, again and again, each time with the same result.
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "abridged_kernels.h"

extern "C" {
void* abridged_program(int32_t path, int64_t threads);
void abridged_program_end(void* program);
void abridged_program_run(void* program);
int32_t abridged_program_linear(void*, const void* x, void* y, const void* packed, const float* scale,
                                const int8_t* offset, const float* bias, const float* input_scale,
                                const int32_t* input_zero_point, int64_t tokens, int64_t rows, int64_t columns,
                                int64_t row_bytes, int64_t num_scales, int32_t book, int32_t input_bits,
                                int32_t function, int32_t together);
void abridged_program_norm(void*, const float* x, float* y, const float* weight, const float* bias, int64_t rows,
                           int64_t width, float eps, int32_t centred);
void abridged_program_attend(void*, const float* query, const float* key, const float* value, float* y,
                             const void* place, int64_t batch, int64_t heads, int64_t key_heads, int64_t width,
                             float scale);
void abridged_program_add(void*, const float* x, float* y, int64_t count, float by);
}

namespace {

constexpr int64_t WIDTH = 256, HEADS = 4, TOKENS = 9;

struct Place {  // as in program.cpp
  void *keys, *values;
  int64_t key_batch_stride, key_head_stride, value_batch_stride, value_head_stride, seen;
  int32_t type;
};

bool same_each_time() {
  std::vector<uint8_t> codes(WIDTH * WIDTH / 4);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(i * 37 % 256) & 0x55;  // three levels
  std::vector<float> scale(WIDTH, 0.01f), ones(WIDTH, 1.0f), x(WIDTH), y(WIDTH), query(WIDTH), key(WIDTH), value(WIDTH),
      seen(WIDTH), keys(WIDTH * TOKENS), values(WIDTH * TOKENS), first;
  const int64_t head = TOKENS * WIDTH / HEADS;
  const Place place{keys.data(), values.data(), 0, head, 0, head, TOKENS, abridged::FLOAT32};
  void* program = abridged_program(abridged::PORTABLE, 4);
  const auto linear = [&](const std::vector<float>& from, std::vector<float>& to, int bits, bool together) {
    return abridged_program_linear(program, from.data(), to.data(), codes.data(), scale.data(), nullptr, nullptr, nullptr,
                                   nullptr, 1, WIDTH, WIDTH, WIDTH / 4, WIDTH, abridged::TERNARY, bits,
                                   abridged::IDENTITY, together);
  };
  abridged_program_norm(program, x.data(), y.data(), ones.data(), nullptr, 1, WIDTH, 1e-5f, 1);
  if (linear(y, query, 8, false) || linear(y, key, 8, true) || linear(y, value, 0, true)) return false;
  abridged_program_attend(program, query.data(), key.data(), value.data(), seen.data(), &place, 1, HEADS, HEADS, WIDTH / HEADS,
                          0.1f);
  if (linear(seen, y, 8, false)) return false;
  abridged_program_add(program, y.data(), x.data(), WIDTH, 1.0f);
  bool good = true;
  for (int round = 0; round < 200; ++round) {
    for (int64_t i = 0; i < WIDTH; ++i) x[size_t(i)] = std::sin(float(i));
    abridged_program_run(program);
    if (first.empty()) first = x;
    good = good && x == first;
  }
  abridged_program_end(program);
  return good;
}

}  // namespace

int main() {
  bool good[3] = {};
  std::vector<std::thread> teams;
  for (bool& one : good) teams.emplace_back([&one] { one = same_each_time(); });
  for (std::thread& team : teams) team.join();
  if (good[0] && good[1] && good[2]) return 0;
  std::puts("a list of instructions gave another result than before");
  return 1;
}
