// What a processor's AVX2 multiplies: bytes in pairs, which 16 bits sum. Every thread works in registers alone.
// Prints 10^9 products a second of all threads. Usage: limit THREADS
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

constexpr long ROUNDS = 20'000'000;
constexpr int SUMS = 12, PRODUCTS = 32;  // as many sums as hide the latency of one; products of an instruction

#define ADD(product, sum)                    \
  "vpmaddubsw %%ymm0, %%ymm1, %%ymm" #product "\n" \
  "vpaddw %%ymm" #product ", %%ymm" #sum ", %%ymm" #sum "\n"

static void multiply() {
  for (long i = 0; i < ROUNDS; ++i)
    __asm__ volatile(ADD(2, 4) ADD(3, 5) ADD(2, 6) ADD(3, 7) ADD(2, 8) ADD(3, 9) ADD(2, 10) ADD(3, 11) ADD(2, 12)
                         ADD(3, 13) ADD(2, 14) ADD(3, 15)::
                             : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                               "xmm12", "xmm13", "xmm14", "xmm15");
}

int main(int, char** arguments) {
  const int count = std::atoi(arguments[1]);
  const auto begun = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(multiply);
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  std::printf("%.2f\n", 1e-9 * double(ROUNDS) * SUMS * PRODUCTS * count / seconds);
}
