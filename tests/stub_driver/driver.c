/* Stands in for the CUDA driver, and for the little of CUPTI that inject.c uses, where there is no GPU.

   A call goes as the real one does: CUPTI's callback at its begin with the call's real parameters, the work, the callback
   at its end; calls made from within a callback have callbacks of their own. Work is a line in a log. Streams are
   numbers; what is launched or copied on a capturing one becomes a node of its graph. What CUDA prohibits while a stream
   captures is prohibited here, and breaks the capture: with no relaxed mode, whatever may synchronize.

   STUB_DRIVER_TAKEN   1: CUPTI has a subscriber already
   STUB_DRIVER_DEAF    1: CUPTI enables no callback
   STUB_DRIVER_NO_PTX  1: no module loads
   STUB_DRIVER_LOSSY   1: the old query cannot tell what a stream waits for */

#define _GNU_SOURCE
#include "cuda_headers.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The driver's own names: cuda.h renames the older of them. */
#undef cuMemcpyHtoD
#undef cuMemAlloc
#undef cuStreamUpdateCaptureDependencies
#undef cuGraphNodeGetDependencies

enum { NUM_STREAMS = 128, NUM_NODES = 64, OWN = 100 };
enum { PINNED = 0x50000000, DEVICE = 0x60000000, PAGEABLE = 0x70000000, SIZE_OF_EACH = 0x10000000 };

typedef struct {
    char symbol[64];
    const uint64_t *duration_ns; /* that a delay kernel reads when it runs */
    CUgraphNodeType type;
    CUgraphNode before[NUM_NODES]; /* for which it waits, while it is captured */
    size_t num_before;
} Node;
typedef struct {
    Node nodes[NUM_NODES];
    int num_nodes;
} Graph;
typedef struct {
    int is_capturing, is_broken;
    CUstreamCaptureMode mode;
    pthread_t thread;
    Graph graph;
    CUgraphNode before[NUM_NODES]; /* for which its next call waits */
    size_t num_before;
} Stream;
typedef struct {
    const char *name;
    uintptr_t stream, to, from;
    size_t bytes;
    const char *symbol;
    void **arguments;
    Graph *graph;
} Call;

static Stream streams[NUM_STREAMS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t memory[64]; /* what cuMemAlloc gives away */
static int num_allocated;
static char *logged;
static size_t logged_size;
static FILE *log_file;
static uint64_t (*injected_ns)(void);
static uintptr_t destroyed_context;
static __thread CUcontext contexts[8] = {(CUcontext)0x100};
static __thread int context;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

#include "cupti.h"

/* ---- What the driver does */

static void note(const Call *call, const char *what, const Node *node) {
    pthread_mutex_lock(&lock);
    if (!log_file)
        log_file = open_memstream(&logged, &logged_size);
    fprintf(log_file, "%s\t%s\t%lu\t%s\t%lu\t%ld\t", call->name, node && node->symbol[0] ? node->symbol : "-",
            (unsigned long)call->stream, what, injected_ns ? (unsigned long)injected_ns() : 0,
            node && node->duration_ns ? (long)*node->duration_ns : -1);
    for (size_t i = 0; node && !strcmp(what, "captured") && i < node->num_before; i++)
        fprintf(log_file, "%s%s", i ? "; " : "", ((Node *)node->before[i])->symbol);
    fprintf(log_file, "\n");
    fflush(log_file);
    pthread_mutex_unlock(&lock);
}

static int begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

/* Whether the call may synchronize, and the mode of this thread and the captures under way do not allow it. */
static int is_prohibited(const Call *call) {
    int is_unsafe = begins(call->name, "cuMemAlloc") || begins(call->name, "cuModuleLoad") ||
                    begins(call->name, "cuStreamSynchronize") || begins(call->name, "cuStreamCreate") ||
                    !strcmp(call->name, "cuMemcpyHtoD_v2");
    int is_broken = 0;
    for (int i = 0; i < NUM_STREAMS && is_unsafe; i++) {
        Stream *each = &streams[i];
        if (!each->is_capturing || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
            continue;
        int is_own = pthread_equal(each->thread, pthread_self());
        if (is_own ? each->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                   : each->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL)
            each->is_broken = is_broken = 1;
    }
    return is_broken;
}

static CUresult begin_capture(Stream *stream, CUstreamCaptureMode mode) {
    if (stream->is_capturing)
        return CUDA_ERROR_ILLEGAL_STATE;
    *stream = (Stream){.is_capturing = 1, .mode = mode, .thread = pthread_self()};
    return CUDA_SUCCESS;
}

static CUresult end_capture(Stream *stream, Graph *graph) {
    if (!stream->is_capturing)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(stream->thread, pthread_self()))
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    stream->is_capturing = 0;
    if (stream->is_broken)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (graph)
        *graph = stream->graph;
    return CUDA_SUCCESS;
}

static CUresult on_capturing(const Call *call, Stream *stream, const Node *node) {
    if (begins(call->name, "cuStreamSynchronize")) {
        stream->is_broken = 1;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->graph.num_nodes == NUM_NODES)
        return CUDA_ERROR_OUT_OF_MEMORY;
    Node *added = &stream->graph.nodes[stream->graph.num_nodes++];
    *added = *node;
    /* NCCL records its event on a stream of its own, for which this one then waits as well. */
    int is_event = begins(call->name, "cuEventRecordWithFlags");
    for (size_t i = 0; i < stream->num_before; i++)
        if (!is_event || ((Node *)stream->before[i])->type != CU_GRAPH_NODE_TYPE_EVENT_RECORD)
            added->before[added->num_before++] = stream->before[i];
    added->type = is_event ? CU_GRAPH_NODE_TYPE_EVENT_RECORD : CU_GRAPH_NODE_TYPE_KERNEL;
    stream->num_before = is_event ? stream->num_before : 0;
    stream->before[stream->num_before++] = (CUgraphNode)added;
    note(call, "captured", added);
    return CUDA_SUCCESS;
}

static CUresult work(const Call *call, CUstreamCaptureMode mode) {
    Stream *stream = &streams[call->stream % NUM_STREAMS];
    Node node = {.symbol = ""};
    if (call->symbol)
        snprintf(node.symbol, sizeof node.symbol, "%s", call->symbol);
    if (call->symbol && call->arguments && !strcmp(call->symbol, "cctrain_delay"))
        node.duration_ns = *(const uint64_t **)call->arguments[0];
    if (begins(call->name, "cuStreamBeginCapture"))
        return begin_capture(stream, mode);
    if (begins(call->name, "cuStreamEndCapture"))
        return end_capture(stream, call->graph);
    if (is_prohibited(call))
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->is_capturing)
        return on_capturing(call, stream, &node);
    note(call, "done", &node);
    if (begins(call->name, "cuGraphInstantiate"))
        *(Graph *)call->to = *call->graph;
    if (begins(call->name, "cuGraphLaunch") && call->graph)
        for (int i = 0; i < call->graph->num_nodes; i++)
            note(call, "replayed", &call->graph->nodes[i]);
    return CUDA_SUCCESS;
}

static CUresult met(const Call *call, const void *parameters, CUstreamCaptureMode mode) {
    CUresult result = CUDA_SUCCESS;
    CUpti_CallbackId id = 0;
    for (CUpti_CallbackId each = 1; each < CUPTI_DRIVER_TRACE_CBID_SIZE; each++)
        if (NAMES[each] && !strcmp(NAMES[each], call->name))
            id = each;
    int is_launch = begins(call->name, "cuLaunch");
    CUpti_CallbackData data = {
        .callbackSite = CUPTI_API_ENTER,
        .functionName = call->name,
        .functionParams = parameters,
        .functionReturnValue = &result,
        /* CUPTI says what it is of launches only. */
        .symbolName = is_launch ? call->symbol : (const char *)8,
        .context = contexts[context],
    };
    if (id && is_enabled[id] && subscriber)
        subscriber(NULL, CUPTI_CB_DOMAIN_DRIVER_API, id, &data);
    result = work(call, mode);
    data.callbackSite = CUPTI_API_EXIT;
    if (id && is_enabled[id] && subscriber)
        subscriber(NULL, CUPTI_CB_DOMAIN_DRIVER_API, id, &data);
    return result;
}

/* ---- The driver's functions that are found by their names */

CUresult cuInit(unsigned flags) {
    (void)flags;
    const char *path = getenv("CUDA_INJECTION64_PATH");
    void *library = path && *path ? dlopen(path, RTLD_NOW) : NULL;
    if (path && *path && !library)
        fprintf(stderr, "stub driver: %s\n", dlerror());
    int (*initialize)(void) = library ? (int (*)(void))dlsym(library, "InitializeInjection") : NULL;
    if (initialize)
        initialize();
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
    cuStreamSynchronize_params parameters = {stream};
    Call call = {.name = "cuStreamSynchronize", .stream = (uintptr_t)stream};
    return met(&call, &parameters, 0);
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = streams[(uintptr_t)stream % NUM_STREAMS].is_capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                                                    : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

#include "captures.h"

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    if (attribute != CU_POINTER_ATTRIBUTE_MEMORY_TYPE || pointer < PINNED || pointer >= PAGEABLE)
        return CUDA_ERROR_INVALID_VALUE;
    *(CUmemorytype *)data = pointer < DEVICE ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    cuModuleLoadData_params parameters = {module, image};
    Call call = {.name = "cuModuleLoadData"};
    *module = (CUmodule)1;
    return is_set("STUB_DRIVER_NO_PTX") ? CUDA_ERROR_INVALID_PTX : met(&call, &parameters, 0);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    (void)module;
    *function = (CUfunction)name;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    cuMemAlloc_v2_params parameters = {pointer, bytes};
    Call call = {.name = "cuMemAlloc_v2"};
    *pointer = (CUdeviceptr)&memory[num_allocated++ % 64];
    return met(&call, &parameters, 0);
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    static uintptr_t num_created = OWN;
    cuStreamCreate_params parameters = {stream, flags};
    Call call = {.name = "cuStreamCreate"};
    *stream = (CUstream)num_created++;
    return met(&call, &parameters, 0);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    cuMemcpyHtoDAsync_v2_params parameters = {to, from, bytes, stream};
    Call call = {.name = "cuMemcpyHtoDAsync_v2", .stream = (uintptr_t)stream, .to = (uintptr_t)to,
                 .from = (uintptr_t)from, .bytes = bytes};
    CUresult result = met(&call, &parameters, 0);
    if (result == CUDA_SUCCESS)
        memcpy((void *)to, from, bytes);
    return result;
}

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **arguments, void **extra) {
    cuLaunchKernel_params parameters = {function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra};
    Call call = {.name = "cuLaunchKernel", .stream = (uintptr_t)stream, .symbol = (const char *)function,
                 .arguments = arguments};
    return met(&call, &parameters, 0);
}

CUresult cuCtxPushCurrent_v2(CUcontext pushed) {
    if ((uintptr_t)pushed == destroyed_context)
        return CUDA_ERROR_INVALID_CONTEXT;
    contexts[++context] = pushed;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *popped) {
    *popped = contexts[context];
    contexts[context--] = NULL;
    return CUDA_SUCCESS;
}

/* ---- For the tests */

void *stub_new_graph(void) { return calloc(1, sizeof(Graph)); }
int stub_depth_of_contexts(void) { return context; }
void stub_destroy_context(uintptr_t which) { destroyed_context = which; }
void stub_watch(uint64_t (*read)(void)) { injected_ns = read; }
const char *stub_log(void) { return logged ? logged : ""; }
const char *stub_name(int id) { return NAMES[id] ? NAMES[id] : ""; }

/* Any call by its name; what it has no parameter for is left out. */
CUresult stub_call(const char *name, uintptr_t stream, uintptr_t to, uintptr_t from, size_t bytes, const char *symbol,
                   void *graph, int mode) {
    CUstream s = (CUstream)stream;
    CUlaunchConfig config = {.hStream = s};
    CUmemorytype by_address = CU_MEMORYTYPE_UNIFIED;
    int is_to_host = to < DEVICE || to >= PAGEABLE, is_from_host = from < DEVICE || from >= PAGEABLE;
    /* A 2D copy says what memory it is of, a 3D one leaves that to the address. */
    CUDA_MEMCPY2D flat = {.dstMemoryType = is_to_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE,
                          .srcMemoryType = is_from_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_ARRAY,
                          .dstHost = (void *)to, .dstDevice = to, .srcHost = (void *)from,
                          .WidthInBytes = bytes / 8, .Height = 8};
    CUDA_MEMCPY3D solid = {.dstMemoryType = by_address, .srcMemoryType = by_address, .dstDevice = to,
                           .srcDevice = from, .WidthInBytes = bytes / 8, .Height = 2, .Depth = 4};
    CUDA_MEMCPY3D_PEER peers = {.dstMemoryType = by_address, .srcMemoryType = by_address, .dstDevice = to,
                                .srcDevice = from, .WidthInBytes = bytes / 8, .Height = 4, .Depth = 2};
    int is_described = to || from;
    Call call = {.name = name, .stream = stream, .to = to, .from = from, .bytes = bytes, .symbol = symbol,
                 .graph = graph};
#define MET(which, ...)                                                                                                \
    if (!strcmp(name, #which)) {                                                                                       \
        which##_params parameters = {__VA_ARGS__};                                                                     \
        return met(&call, &parameters, (CUstreamCaptureMode)mode);                                                     \
    }
#define BOTH(which, ...) MET(which, __VA_ARGS__) MET(which##_ptsz, __VA_ARGS__)
#define BOTH_SYNC(which, ...) MET(which, __VA_ARGS__) MET(which##_ptds, __VA_ARGS__)
    BOTH(cuLaunchKernel, .hStream = s)
    BOTH(cuLaunchKernelEx, .config = &config)
    BOTH(cuLaunchCooperativeKernel, .hStream = s)
    BOTH(cuMemsetD8Async, .hStream = s)
    BOTH(cuMemsetD16Async, .hStream = s)
    BOTH(cuMemsetD32Async, .hStream = s)
    BOTH(cuMemsetD2D8Async, .hStream = s)
    BOTH(cuMemsetD2D16Async, .hStream = s)
    BOTH(cuMemsetD2D32Async, .hStream = s)
    MET(cuGraphLaunch, .hGraph = graph, .hStream = s)
    MET(cuGraphLaunch_ptsz, .hGraphExec = graph, .hStream = s)
    MET(cuGraphInstantiate_v2, .phGraphExec = (CUgraphExec *)&to, .hGraph = graph)
    MET(cuGraphInstantiateWithFlags, .phGraphExec = (CUgraphExec *)&to, .hGraph = graph)
    MET(cuGraphDestroy, .hGraph = graph)
    MET(cuGraphExecDestroy, .hGraphExec = graph)
    BOTH(cuGraphInstantiateWithParams, .phGraphExec = (CUgraphExec *)&to, .hGraph = graph)
    BOTH(cuStreamSynchronize, .hStream = s)
    BOTH_SYNC(cuMemcpyHtoD_v2, .dstDevice = to, .srcHost = (void *)from, .ByteCount = bytes)
    BOTH_SYNC(cuMemcpyDtoH_v2, .dstHost = (void *)to, .srcDevice = from, .ByteCount = bytes)
    BOTH_SYNC(cuMemcpyDtoD_v2, .dstDevice = to, .srcDevice = from, .ByteCount = bytes)
    BOTH_SYNC(cuMemcpy, .dst = to, .src = from, .ByteCount = bytes)
    BOTH_SYNC(cuMemcpyPeer, .dstDevice = to, .srcDevice = from, .ByteCount = bytes)
    BOTH(cuMemcpyHtoDAsync_v2, .dstDevice = to, .srcHost = (void *)from, .ByteCount = bytes, .hStream = s)
    BOTH(cuMemcpyDtoHAsync_v2, .dstHost = (void *)to, .srcDevice = from, .ByteCount = bytes, .hStream = s)
    BOTH(cuMemcpyDtoDAsync_v2, .dstDevice = to, .srcDevice = from, .ByteCount = bytes, .hStream = s)
    BOTH(cuMemcpyAsync, .dst = to, .src = from, .ByteCount = bytes, .hStream = s)
    BOTH(cuMemcpyPeerAsync, .dstDevice = to, .srcDevice = from, .ByteCount = bytes, .hStream = s)
    BOTH_SYNC(cuMemcpy2D_v2, .pCopy = is_described ? &flat : NULL)
    BOTH_SYNC(cuMemcpy2DUnaligned_v2, .pCopy = is_described ? &flat : NULL)
    BOTH_SYNC(cuMemcpy3D_v2, .pCopy = &solid)
    BOTH_SYNC(cuMemcpy3DPeer, .pCopy = &peers)
    BOTH(cuMemcpy2DAsync_v2, .pCopy = &flat, .hStream = s)
    BOTH(cuMemcpy3DAsync_v2, .pCopy = &solid, .hStream = s)
    BOTH(cuMemcpy3DPeerAsync, .pCopy = &peers, .hStream = s)
    BOTH(cuStreamBeginCapture_v2, .hStream = s, .mode = (CUstreamCaptureMode)mode)
    BOTH(cuStreamBeginCaptureToGraph, .hStream = s, .mode = (CUstreamCaptureMode)mode)
    BOTH(cuStreamEndCapture, .hStream = s, .phGraph = (CUgraph *)&graph)
    MET(cuMemcpyHtoD, .srcHost = (void *)from, .ByteCount = (unsigned)bytes)
    return met(&call, NULL, (CUstreamCaptureMode)mode);
}
