// The toll collector: makes a process's driver calls cost what a profile says, and counts them.
//
// The CUDA driver loads this library by itself where CUDA_INJECTION64_PATH names it, before the program's first CUDA
// call, so that every caller is met: PyTorch, cuBLAS, Triton, NCCL. CUPTI then calls `on_call` at both ends of the
// driver calls listed in CALLS. While CUPTI has a subscriber, and ever after, the driver launches a graph in a time that
// grows with its kernels (benchmarks/graph_launch.py), whichever callbacks are enabled. A toll is a spin of the calling
// thread, as CC's own work is: before the call where the GPU must not see the work earlier (launches), after it where
// the host gets the answer late (waits, copies). Calls on a stream that is capturing pay nothing and are counted as
// nodes of the graph; its collectives are counted at each launch of it, as each waits on the GPU then. Copies that are
// handed over by the batch are counted (other_copies) and pay nothing.
//
// Environment: CCTRAIN_TOLLS, the tolls at start, as `cctrain_set_tolls` takes them; CCTRAIN_CROSSINGS, a directory in
// which each process keeps its counters in a file of its own, mapped, so that they survive however it ends.
#define _GNU_SOURCE  // strtod_l
#include "cuda_headers.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { H2D_PINNED, H2D_PAGEABLE, D2H_PINNED, D2H_PAGEABLE, D2D, NUM_COPIES };
enum { LAUNCH, GRAPH_LAUNCH, WAIT, COPY, ALLOC, COLLECTIVE, HOST, NUM_CLASSES };
#define MAX_POINTS 16
#define MAX_TOLL_US 1e9  // as profile.py has it
#define MAX_COPY_BYTES 1099511627776.0

// ---- What is counted: the layout is that of the mapped file, and of injector.py.
typedef struct {
  _Atomic uint64_t launches, graph_launches, graph_nodes, waits;
  _Atomic uint64_t copies[NUM_COPIES], bytes[NUM_COPIES], other_copies;
  _Atomic uint64_t allocs_host, allocs_device, collectives;
  _Atomic uint64_t in_driver_ns, blocked_ns;  // within the calls; within waits and copies, tolls left out
  _Atomic uint64_t injected_ns[NUM_CLASSES];
} Counters;

// ---- What is paid. Replaced whole, never changed: another thread may be reading it.
typedef struct {
  double launch_us, graph_launch_us, wait_us, alloc_host_us, alloc_device_us, collective_us;
  double host_ratio;
  int blocks[NUM_COPIES];  // an asynchronous copy waits for its stream
  int num_points[NUM_COPIES];
  double points[NUM_COPIES][MAX_POINTS][2];  // bytes, us
  unsigned generation;
} Tolls;

static Counters in_memory, *counters = &in_memory;
static Tolls nothing = {.host_ratio = 1};
static _Atomic(Tolls *) active = &nothing;
static char status[256] = "the driver has not loaded it: CUDA is not initialised, or CUDA_INJECTION64_PATH was not set";
static _Atomic int num_capturing;

static __thread int is_inside;          // this thread is in a call of our own
#define TIMED_LAUNCH 17                 // of so many launches one is timed, for all; prime, so as to meet all of a step's
static __thread uint64_t entered_ns;    // 0: not timed
static __thread unsigned num_launched;
static __thread int is_in_capture;      // the call it is in, on a stream that captures
static __thread double owed_ns;         // what our own system calls took it, to be left out of its next tolls
#define LONG_ABSENCE_NS 100000
#define LONG_CALL_NS 20000              // in a shorter one the driver spins: no sleep and wake-up is so quick
static __thread uint64_t left_ns;       // when this thread last came back from the driver
static __thread uint64_t known_cpu_ns, known_ns;  // its CPU time, and when it was asked for; it has worked since then
static __thread unsigned left_generation;

#include "clock.h"

static void add(_Atomic uint64_t *counter, uint64_t amount) {
  atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

// Spins, less what this thread has already lost to our own work.
static void pay(int toll_class, double us) {
  if (us <= 0) return;
  double ns = us * 1e3, paid = ns < owed_ns ? ns : owed_ns;
  uint64_t end = now_ns() + (uint64_t)(ns - paid);
  owed_ns -= paid;
  while (now_ns() < end) {
  }
  add(&counters->injected_ns[toll_class], (uint64_t)ns);
}

// A file of this process in the directory of crossings; NULL where there is none.
static FILE *open_crossings(const char *ending) {
  const char *directory = getenv("CCTRAIN_CROSSINGS");
  char path[4096];
  if (!directory || !*directory) return NULL;
  if (snprintf(path, sizeof path, "%s/%d.%s", directory, (int)getpid(), ending) >= (int)sizeof path) return NULL;
  return fopen(path, "a+e");
}

// What went wrong, for whoever asks, for the program's stderr, and for whoever counts what the process leaves behind.
static int refuse(const char *format, const char *detail) {
  snprintf(status, sizeof status, format, detail);
  fprintf(stderr, "cctrain: emulation is not at work: %s\n", status);
  FILE *left = open_crossings("refused");
  if (left) {
    fprintf(left, "%s\n", status);
    fclose(left);
  }
  return 0;
}

#include "driver.h"
#include "delay.h"
#include "graphs.h"
#include "calls.h"

static int is_captured(const Call *call, CUstream stream) {
  CUstreamCaptureStatus captured = CU_STREAM_CAPTURE_STATUS_NONE;
  if (atomic_load_explicit(&num_capturing, memory_order_relaxed) <= 0 || call->stream < 0) return 0;
  is_inside = 1;
  CUresult result = p_cuStreamIsCapturing(stream, &captured);
  is_inside = 0;
  return result == CUDA_SUCCESS && captured != CU_STREAM_CAPTURE_STATUS_NONE;
}

#include "copies.h"

// ---- Both ends of a call.
// What the thread did itself since it left the driver, stretched. Short absences are taken for work: asking for the
// thread's own time is a system call, which after each launch would cost more than many a toll. Only a long one may
// have been a wait for another thread.
static void stretch_host(const Tolls *tolls) {
  if (tolls->host_ratio <= 1 || left_generation != tolls->generation) return;
  uint64_t begin = now_ns();
  double worked_ns = (double)(begin - left_ns);
  if (worked_ns > LONG_ABSENCE_NS) {
    uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    double cpu_ns = (double)(cpu - known_cpu_ns) - (double)(left_ns - known_ns);
    worked_ns = cpu_ns < 0 ? 0 : cpu_ns < worked_ns ? cpu_ns : worked_ns;
    known_cpu_ns = cpu;
    known_ns = now_ns();
    owed_ns += (double)(known_ns - begin);
  }
  pay(HOST, worked_ns / 1e3 * (tolls->host_ratio - 1));
}

static void leave_host(const Tolls *tolls, int may_have_waited) {
  if (tolls->host_ratio > 1) {
    uint64_t begin = left_ns = now_ns();
    if (may_have_waited || left_generation != tolls->generation) {
      known_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
      known_ns = left_ns = now_ns();
      owed_ns += (double)(left_ns - begin);
    }
  }
  left_generation = tolls->generation;
}

static void on_enter(const Call *call, CUpti_CallbackId id, const CUpti_CallbackData *data, const Tolls *tolls) {
  CUstream stream = stream_of(call, id, data->functionParams);
  int captured = is_in_capture = is_captured(call, stream);
  if (left_generation != tolls->generation) owed_ns = 0;  // it was owed under other tolls, or under none
  if (!captured) stretch_host(tolls);
  if (call->action == DO_LAUNCH || call->action == DO_FILL || call->action == DO_D2D) {
    if (call->action == DO_LAUNCH && is_collective(data->symbolName)) {  // of others CUPTI gives no symbol
      // With the first, whatever its toll: in the middle of a tolled step it would take that step's time and memory.
      if (!captured && find_delay(data->context) < 0) prepare_delay(data->context);
      uint64_t begin = now_ns();
      int is_delayed = delay_on_gpu(data->context, stream, tolls, captured);
      uint64_t took_ns = now_ns() - begin;
      owed_ns += (double)(took_ns < LONG_CALL_NS ? took_ns : LONG_CALL_NS);  // a longer one waited for the GPU
      if (!captured)
        add(&counters->collectives, 1);
      else if (is_delayed)
        atomic_fetch_add(&num_captured_collectives, 1);
    }
    if (!captured) pay(LAUNCH, tolls->launch_us);
  } else if (call->action == DO_GRAPH_LAUNCH) {
    if (!captured) pay(GRAPH_LAUNCH, tolls->graph_launch_us);
  } else if (call->action == DO_DESTROY_GRAPH) {  // before another can have its place
    know_graph(*(const void *const *)data->functionParams, 0);
  } else if (call->action == DO_BEGIN_CAPTURE) {
    if (find_delay(data->context) < 0) prepare_delay(data->context);
  }
  entered_ns = call->action == DO_LAUNCH && ++num_launched % TIMED_LAUNCH ? 0 : now_ns();
}

// Returns how long it waited for the stream.
static uint64_t copied(const Call *call, CUstream stream, const char *parameters, const Tolls *tolls) {
  uint64_t begin = now_ns(), waited_ns = 0;
  Copy copy = copy_of(call, parameters);
  int kind = kind_of_copy(&copy);
  owed_ns += (double)(now_ns() - begin);
  if (kind == NUM_COPIES) {
    add(&counters->other_copies, 1);
    return 0;
  }
  add(&counters->copies[kind], 1);
  add(&counters->bytes[kind], copy.bytes);
  if (kind == D2D) {
    add(&counters->launches, 1);
    if (call->action != DO_D2D) pay(LAUNCH, tolls->launch_us);  // its direction was not known when it began
    return 0;
  }
  if (call->is_async && tolls->blocks[kind]) {
    CUstreamCaptureMode mode;
    begin = now_ns();
    begin_own(&mode);
    p_cuStreamSynchronize(stream);
    end_own(&mode);
    waited_ns = now_ns() - begin;
    add(&counters->injected_ns[COPY], waited_ns);
  }
  pay(COPY, copy_toll_us(tolls, kind, (double)copy.bytes));
  return waited_ns;
}

// Whether a capture ended with this result of cuStreamEndCapture, if as a broken one.
static int is_over(CUresult result) {
  return result == CUDA_SUCCESS || result == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED ||
         result == CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
}

// What the graph has in it that waits on the GPU.
static void launched_graph(const cuGraphLaunch_params *parameters, CUresult result, const Tolls *tolls) {
  unsigned num_collectives = result == CUDA_SUCCESS ? collectives_of(parameters->hGraph) : 0;
  add(&counters->graph_launches, 1);
  add(&counters->collectives, num_collectives);
  add(&counters->injected_ns[COLLECTIVE], (uint64_t)(num_collectives * tolls->collective_us * 1e3));
}

static void ended_capture(const cuStreamEndCapture_params *parameters, CUresult result) {
  if (!is_over(result)) return;
  atomic_fetch_sub(&num_capturing, 1);
  unsigned num_collectives = atomic_exchange(&num_captured_collectives, 0);
  if (result == CUDA_SUCCESS && parameters->phGraph) know_graph(*parameters->phGraph, num_collectives);
}

static void instantiated(const cuGraphInstantiateWithFlags_params *parameters, CUresult result) {  // all begin alike
  if (result == CUDA_SUCCESS) know_graph(*parameters->phGraphExec, collectives_of(parameters->hGraph));
}

static void on_exit_of(const Call *call, CUpti_CallbackId id, const CUpti_CallbackData *data, const Tolls *tolls) {
  uint64_t lasted = entered_ns ? now_ns() - entered_ns : 0, waited_ns = lasted;
  CUstream stream = stream_of(call, id, data->functionParams);
  CUresult result = *(const CUresult *)data->functionReturnValue;
  int is_launch = call->action == DO_LAUNCH;
  if (lasted) add(&counters->in_driver_ns, is_launch ? lasted * TIMED_LAUNCH : lasted);
  if (is_in_capture) {
    if (call->action <= DO_OTHER_COPY && call->action != DO_WAIT) add(&counters->graph_nodes, 1);
    leave_host(tolls, lasted > LONG_CALL_NS);  // what the host did while it captured is not paid later, either
    return;
  }
  switch (call->action) {
    case DO_LAUNCH: case DO_FILL: add(&counters->launches, 1); break;
    case DO_GRAPH_LAUNCH: launched_graph(data->functionParams, result, tolls); break;
    case DO_WAIT:
      add(&counters->waits, 1);
      add(&counters->blocked_ns, lasted);
      pay(WAIT, tolls->wait_us);
      break;
    case DO_H2D: case DO_D2H: case DO_D2D: case DO_COPY: case DO_COPY_2D: case DO_COPY_3D: case DO_COPY_PEER_3D:
      if (call->action != DO_D2D) add(&counters->blocked_ns, lasted);
      waited_ns += copied(call, stream, data->functionParams, tolls);
      break;
    case DO_OTHER_COPY: add(&counters->other_copies, 1); break;
    case DO_ALLOC_HOST: add(&counters->allocs_host, 1); pay(ALLOC, tolls->alloc_host_us); break;
    case DO_ALLOC_DEVICE: add(&counters->allocs_device, 1); pay(ALLOC, tolls->alloc_device_us); break;
    case DO_BEGIN_CAPTURE: if (result == CUDA_SUCCESS) atomic_fetch_add(&num_capturing, 1); break;
    case DO_END_CAPTURE: ended_capture(data->functionParams, result); break;
    case DO_INSTANTIATE: instantiated(data->functionParams, result); break;
    default: break;
  }
  leave_host(tolls, waited_ns > LONG_CALL_NS);
}

static void CUPTIAPI on_call(void *unused, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *raw) {
  (void)unused, (void)domain;
  const CUpti_CallbackData *data = raw;
  if (is_inside || id >= CUPTI_DRIVER_TRACE_CBID_SIZE || !calls[id]) return;
  const Tolls *tolls = atomic_load_explicit(&active, memory_order_acquire);
  if (data->callbackSite == CUPTI_API_ENTER)
    on_enter(calls[id], id, data, tolls);
  else
    on_exit_of(calls[id], id, data, tolls);
}

// ---- The interface, for ctypes.

// One number of the text, from 0 to `most`; moves the text behind it.
static int take_number(const char **text, double most, double *number) {
  static _Atomic(locale_t) with_points;  // the program's own may have a decimal comma
  if (!atomic_load(&with_points)) atomic_store(&with_points, newlocale(LC_NUMERIC_MASK, "C", (locale_t)0));
  char *end;
  *number = strtod_l(*text, &end, atomic_load(&with_points));
  int is_number = end != *text && *number >= 0 && *number <= most;  // a NaN is neither
  *text = end;
  return is_number;
}

static int take_tolls(const char *text, Tolls *tolls) {
  double *scalars[] = {&tolls->launch_us, &tolls->graph_launch_us, &tolls->wait_us, &tolls->alloc_host_us,
                       &tolls->alloc_device_us, &tolls->collective_us, &tolls->host_ratio};
  double number;
  for (size_t i = 0; i < sizeof scalars / sizeof *scalars; i++)
    if (!take_number(&text, MAX_TOLL_US, scalars[i])) return 0;
  for (int kind = 0; kind < D2D; kind++) {
    double(*points)[2] = tolls->points[kind];
    if (!take_number(&text, 1, &number) || number != (tolls->blocks[kind] = (int)number)) return 0;
    if (!take_number(&text, MAX_POINTS, &number) || number != (tolls->num_points[kind] = (int)number)) return 0;
    for (int i = 0; i < tolls->num_points[kind]; i++) {
      if (!take_number(&text, MAX_COPY_BYTES, &points[i][0]) || !take_number(&text, MAX_TOLL_US, &points[i][1])) return 0;
      if (i && points[i][0] <= points[i - 1][0]) return 0;
    }
  }
  return text[strspn(text, " \n")] == 0;
}

// Numbers between spaces: launch, graph launch, wait, host allocation, device allocation, collective (us), host ratio;
// then for h2d pinned, h2d pageable, d2h pinned, d2h pageable: whether it blocks (0 or 1), number of points, and each
// point's bytes and us. Returns 1, or 0 for a text that is not so, which changes nothing.
int cctrain_set_tolls(const char *text) {
  static unsigned generation;
  Tolls *tolls = calloc(1, sizeof *tolls);  // never freed: a thread may hold it; a run has dozens, `tolls` thousands
  if (!tolls || !take_tolls(text, tolls)) {
    free(tolls);
    return 0;
  }
  pthread_mutex_lock(&delays_lock);  // a delay that is prepared meanwhile has these tolls, or is among those below
  tolls->generation = ++generation;
  atomic_store_explicit(&active, tolls, memory_order_release);
  for (int i = 0; i < atomic_load(&num_delays); i++) {
    CUstreamCaptureMode mode;
    CUcontext unused;
    begin_own(&mode);
    if (p_cuCtxPushCurrent_v2(delays[i].context) == CUDA_SUCCESS) {  // else it is gone
      write_duration(i, tolls->collective_us);
      p_cuCtxPopCurrent_v2(&unused);
    }
    end_own(&mode);
  }
  pthread_mutex_unlock(&delays_lock);
  return 1;
}

// Copies the counters. Returns how many bytes they take; `size` must not be less.
size_t cctrain_read_counters(void *target, size_t size) {
  if (size >= sizeof *counters) memcpy(target, counters, sizeof *counters);
  return sizeof *counters;
}

static CUpti_SubscriberHandle subscriber;

// Meet the driver's calls from now on, or let them pass (to measure what meeting them costs). Returns how many kinds.
int cctrain_meet(int is_on) {
  int met = 0;
  for (CUpti_CallbackId id = 1; id < CUPTI_DRIVER_TRACE_CBID_SIZE; id++)
    met += calls[id] && cuptiEnableCallback(is_on, subscriber, CUPTI_CB_DOMAIN_DRIVER_API, id) == CUPTI_SUCCESS;
  return met;
}

// "" while all is well, else what is wrong.
const char *cctrain_status(void) { return status; }

static void map_counters(void) {
  FILE *file = open_crossings("counters");
  if (!file) return;
  if (posix_fallocate(fileno(file), 0, sizeof *counters) == 0) {  // on a full disk a sparse file is a SIGBUS later
    void *mapped = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    if (mapped != MAP_FAILED) counters = mapped;
  }
  fclose(file);
}

// Called by the driver, once, before the process's first CUDA call returns.
int InitializeInjection(void) {
  const char *tolls = getenv("CCTRAIN_TOLLS"), *why = NULL;
  CUptiResult result;
  if (!find_driver()) return refuse("the CUDA driver lacks a function that it needs%s: it is too old", "");
  if ((result = cuptiSubscribe(&subscriber, (CUpti_CallbackFunc)on_call, NULL)) != CUPTI_SUCCESS) {
    cuptiGetResultString(result, &why);
    return refuse("CUPTI takes one subscriber and refused this one (%s): is a profiler running?", why ? why : "?");
  }
  calibrate();
  map_counters();
  if (tolls && *tolls && !cctrain_set_tolls(tolls))
    return refuse("CCTRAIN_TOLLS=%s is not what cctrain_set_tolls takes", tolls);
  for (CUpti_CallbackId id = 1; id < CUPTI_DRIVER_TRACE_CBID_SIZE; id++) {
    const char *name = NULL;
    if (cuptiGetCallbackName(CUPTI_CB_DOMAIN_DRIVER_API, id, &name) != CUPTI_SUCCESS || !name) continue;
    calls[id] = find_call(name, &is_per_thread[id]);
  }
  int met = cctrain_meet(1);
  if (!met) return refuse("CUPTI let none of the driver's calls be met%s", "");
  status[0] = 0;
  return 1;
}
