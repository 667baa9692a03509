// Work shared out among threads.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

#include "abridged_kernels.h"

namespace abridged {

constexpr int64_t WORTH_A_THREAD = 1 << 17;  // products: some microseconds

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// torch's own OpenMP runtime, so that no second pool of threads competes with its workers.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
extern Team team;

template <typename Work>
void in_parallel(int64_t threads, const Work& work) {
  if (threads <= 1) {
    work();
  } else if (team) {
    team([](void* data) { (*static_cast<const Work*>(data))(); }, const_cast<Work*>(&work), unsigned(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }
}

// work(first, last) for all of [0, count), in pieces that threads take as they come free.
template <typename Work>
void share(int64_t threads, int64_t count, int64_t piece, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t pieces = (count + piece - 1) / piece;
  in_parallel(threads < pieces ? threads : pieces, [&] {
    for (int64_t i; (i = next.fetch_add(1)) < pieces;)
      work(i * piece, (i + 1) * piece < count ? (i + 1) * piece : count);
  });
}

}  // namespace abridged
