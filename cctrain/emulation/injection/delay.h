// The delay before a collective: a kernel of one thread that waits as long as a word of device memory says, so that
// one captured in a graph follows the tolls of the day.
static const char DELAY_PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry cctrain_delay(.param .u64 duration_ns)\n{\n"
    ".reg .u64 %rd<5>;\n.reg .pred %p<2>;\n"
    "ld.param.u64 %rd1, [duration_ns];\nld.volatile.global.u64 %rd2, [%rd1];\nmov.u64 %rd3, %globaltimer;\n"
    "AGAIN:\nmov.u64 %rd4, %globaltimer;\nsub.u64 %rd4, %rd4, %rd3;\nsetp.lt.u64 %p1, %rd4, %rd2;\n@%p1 bra AGAIN;\n"
    "ret;\n}\n";
#define MAX_CONTEXTS 16
static struct { CUcontext context; CUfunction function; CUdeviceptr duration_ns; CUstream stream; } delays[MAX_CONTEXTS];
static _Atomic int num_delays, is_delay_lost;
static pthread_mutex_t delays_lock = PTHREAD_MUTEX_INITIALIZER;

// Calls that may wait break another thread's capture, or the next call of this one's, unless they say that they do not.
static void begin_own(CUstreamCaptureMode *mode) {
  is_inside = 1;
  *mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  p_cuThreadExchangeStreamCaptureMode(mode);
}

static void end_own(CUstreamCaptureMode *mode) {
  p_cuThreadExchangeStreamCaptureMode(mode);
  is_inside = 0;
}

// On a stream of its own: the others may be capturing, or run a collective whose peers wait for this process.
static void write_duration(int i, double us) {
  uint64_t ns = (uint64_t)(us * 1e3);
  p_cuMemcpyHtoDAsync_v2(delays[i].duration_ns, &ns, sizeof ns, delays[i].stream);
  p_cuStreamSynchronize(delays[i].stream);
}

static int find_delay(CUcontext context) {
  for (int i = 0; i < atomic_load(&num_delays); i++)
    if (delays[i].context == context) return i;
  return -1;
}

// Needs the context to be current. Loads a module and allocates, so it is done once.
static void prepare_delay(CUcontext context) {
  CUstreamCaptureMode mode;
  CUmodule module;
  pthread_mutex_lock(&delays_lock);
  begin_own(&mode);
  int i = atomic_load(&num_delays);
  if (find_delay(context) >= 0 || atomic_load(&is_delay_lost)) {
  } else if (i < MAX_CONTEXTS && p_cuStreamCreate(&delays[i].stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS &&
             p_cuModuleLoadData(&module, DELAY_PTX) == CUDA_SUCCESS &&
             p_cuModuleGetFunction(&delays[i].function, module, "cctrain_delay") == CUDA_SUCCESS &&
             p_cuMemAlloc_v2(&delays[i].duration_ns, sizeof(uint64_t)) == CUDA_SUCCESS) {
    write_duration(i, 0);
    void *arguments[] = {&delays[i].duration_ns};  // loaded lazily, so launched once where nothing can wait for it
    p_cuLaunchKernel(delays[i].function, 1, 1, 1, 1, 1, 1, 0, delays[i].stream, arguments, NULL);
    write_duration(i, atomic_load(&active)->collective_us);
    delays[i].context = context;
    atomic_store(&num_delays, i + 1);
  } else {
    atomic_store(&is_delay_lost, 1);
  }
  end_own(&mode);
  pthread_mutex_unlock(&delays_lock);
}

// NCCL records an event after each collective that is captured, for which the next one waits. With a delay in between, a
// graph of 150 took the GPU 3.7 times as long, and its launch the host 20 times (docs/evidence/tolls/delay.txt): the
// delay waits for what the event waits for. Returns how many events the stream does not wait for until they are given
// back.
#define MAX_BEFORE 16
static size_t take_events(CUstream stream, CUgraphNode *events) {
  CUstreamCaptureStatus status;
  const CUgraphNode *before;
  CUgraphNode others[MAX_BEFORE];
  size_t num_before, num_events = 0, num_others = 0;
  if (p_cuStreamGetCaptureInfo_v2(stream, &status, NULL, NULL, &before, &num_before) != CUDA_SUCCESS) return 0;
  if (status != CU_STREAM_CAPTURE_STATUS_ACTIVE || num_before > MAX_BEFORE) return 0;
  for (size_t i = 0; i < num_before; i++) {
    CUgraphNodeType type;
    CUgraphNode found[MAX_BEFORE] = {before[i]};
    size_t num_found = 1;
    if (p_cuGraphNodeGetType(before[i], &type) != CUDA_SUCCESS) return 0;
    if (type == CU_GRAPH_NODE_TYPE_EVENT_RECORD) {
      events[num_events++] = before[i];
      num_found = MAX_BEFORE;
      if (p_cuGraphNodeGetDependencies(before[i], found, &num_found) != CUDA_SUCCESS) return 0;
      if (num_found == MAX_BEFORE) return 0;  // of more it would tell as many
    }
    for (size_t j = 0; j < num_found; j++) {
      size_t k = 0;
      while (k < num_others && others[k] != found[j]) k++;
      if (k == MAX_BEFORE) return 0;
      others[k] = found[j];
      num_others += k == num_others;
    }
  }
  if (!num_events || !num_others) return 0;
  int is_set = p_cuStreamUpdateCaptureDependencies(stream, others, num_others, CU_STREAM_SET_CAPTURE_DEPENDENCIES) ==
               CUDA_SUCCESS;
  return is_set ? num_events : 0;
}

static void give_back_events(CUstream stream, CUgraphNode *events, size_t num_events) {
  if (num_events) p_cuStreamUpdateCaptureDependencies(stream, events, num_events, CU_STREAM_ADD_CAPTURE_DEPENDENCIES);
}

// Returns whether the stream's next kernel is behind a delay.
static int delay_on_gpu(CUcontext context, CUstream stream, const Tolls *tolls, int is_captured) {
  static _Atomic int is_said;
  if (!is_captured && tolls->collective_us <= 0) return 0;
  int i = find_delay(context);
  if (i < 0) {
    if (!atomic_exchange(&is_said, 1))
      refuse("a collective could not be delayed%s: the delay kernel does not load", "");
    return 0;
  }
  is_inside = 1;
  CUgraphNode events[MAX_BEFORE];
  size_t num_events = is_captured ? take_events(stream, events) : 0;
  void *arguments[] = {&delays[i].duration_ns};
  CUresult result = p_cuLaunchKernel(delays[i].function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL);
  give_back_events(stream, events, num_events);
  is_inside = 0;
  if (result != CUDA_SUCCESS) {
    if (!is_captured && !atomic_exchange(&is_said, 1))
      refuse("a collective could not be delayed%s: the delay kernel does not start", "");
    return 0;
  }
  if (!is_captured) add(&counters->injected_ns[COLLECTIVE], (uint64_t)(tolls->collective_us * 1e3));
  return 1;
}

// NCCL's kernels are named nccl...; from C++ that is mangled to _Z, the name's length, and the name.
static int is_collective(const char *symbol) {
  if (!symbol) return 0;
  if (symbol[0] == '_' && symbol[1] == 'Z')
    for (symbol += 2; *symbol >= '0' && *symbol <= '9';) symbol++;
  return !strncmp(symbol, "nccl", 4);
}
