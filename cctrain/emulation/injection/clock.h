// Time, which is asked for twice a launch and has to cost little.
static uint64_t clock_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// The processor's own counter: in some virtual machines the clock is a system call of a microsecond, twice a launch.
static double ns_per_tick = 1;

static uint64_t ticks(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return clock_ns(CLOCK_MONOTONIC);
#endif
}

// The clock and the counter at one moment: the closest of several readings, as this thread may be interrupted.
static void read_both(uint64_t *ns, uint64_t *count) {
  uint64_t closest = UINT64_MAX;
  for (int i = 0; i < 50; i++) {
    uint64_t before = ticks(), clock = clock_ns(CLOCK_MONOTONIC), apart = ticks() - before;
    if (apart < closest) closest = apart, *ns = clock, *count = before + apart / 2;
  }
}

static void calibrate(void) {
  uint64_t begin_ns, begin, end_ns, end;
  read_both(&begin_ns, &begin);
  while (clock_ns(CLOCK_MONOTONIC) < begin_ns + 20000000u) {
  }
  read_both(&end_ns, &end);
  ns_per_tick = (double)(end_ns - begin_ns) / (double)(end - begin);
}

static uint64_t now_ns(void) { return (uint64_t)((double)ticks() * ns_per_tick); }
