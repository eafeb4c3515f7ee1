// The driver's own functions, called from within callbacks.
#define DRIVER(name) static typeof(&name) p_##name
DRIVER(cuStreamSynchronize);
DRIVER(cuStreamIsCapturing);
DRIVER(cuStreamCreate);
DRIVER(cuThreadExchangeStreamCaptureMode);
DRIVER(cuPointerGetAttribute);
DRIVER(cuModuleLoadData);
DRIVER(cuModuleGetFunction);
DRIVER(cuMemAlloc_v2);
DRIVER(cuMemcpyHtoDAsync_v2);
DRIVER(cuLaunchKernel);
DRIVER(cuCtxPushCurrent_v2);
DRIVER(cuCtxPopCurrent_v2);
DRIVER(cuGraphNodeGetType);
#undef DRIVER
// CUDA 13's headers have these in later versions only, which earlier drivers lack.
static CUresult (*p_cuStreamGetCaptureInfo_v2)(CUstream, CUstreamCaptureStatus *, cuuint64_t *, CUgraph *,
                                               const CUgraphNode **, size_t *);
static CUresult (*p_cuStreamUpdateCaptureDependencies)(CUstream, CUgraphNode *, size_t, unsigned);
static CUresult (*p_cuGraphNodeGetDependencies)(CUgraphNode, CUgraphNode *, size_t *);

static int find_driver(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return 0;
#define FIND(name) if (!(p_##name = (typeof(p_##name))dlsym(driver, #name))) return 0
  FIND(cuStreamSynchronize);
  FIND(cuStreamIsCapturing);
  FIND(cuStreamCreate);
  FIND(cuThreadExchangeStreamCaptureMode);
  FIND(cuPointerGetAttribute);
  FIND(cuModuleLoadData);
  FIND(cuModuleGetFunction);
  FIND(cuMemAlloc_v2);
  FIND(cuMemcpyHtoDAsync_v2);
  FIND(cuLaunchKernel);
  FIND(cuCtxPushCurrent_v2);
  FIND(cuCtxPopCurrent_v2);
  FIND(cuGraphNodeGetType);
  FIND(cuStreamGetCaptureInfo_v2);
  FIND(cuStreamUpdateCaptureDependencies);
  FIND(cuGraphNodeGetDependencies);
#undef FIND
  return 1;
}
