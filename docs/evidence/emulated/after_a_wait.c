// Built and loaded by after_a_wait.py.
#include <stdint.h>
#include <time.h>

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

// As the injection library waits: the thread is busy until the time has passed. Nanoseconds that it took.
uint64_t wait_ns(uint64_t wanted_ns) {
  uint64_t begin = now_ns(), now = begin;
  while (now - begin < wanted_ns) now = now_ns();
  return now - begin;
}

// Nanoseconds to read all of a ring of pointers, one a cache line, after such a wait.
uint64_t walk_ns(void **place, uint64_t num_lines, uint64_t wanted_ns) {
  wait_ns(wanted_ns);
  uint64_t begin = now_ns();
  for (uint64_t i = 0; i < num_lines; i++) place = *place;
  uint64_t took = now_ns() - begin;
  return place ? took : 0;
}
