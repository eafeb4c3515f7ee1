// The driver calls that are met, and where their arguments lie.
typedef enum { NONE, DO_LAUNCH, DO_FILL, DO_GRAPH_LAUNCH, DO_WAIT, DO_H2D, DO_D2H, DO_D2D, DO_COPY, DO_COPY_2D,
               DO_COPY_3D, DO_COPY_PEER_3D, DO_OTHER_COPY, DO_ALLOC_HOST, DO_ALLOC_DEVICE, DO_BEGIN_CAPTURE,
               DO_END_CAPTURE, DO_INSTANTIATE, DO_DESTROY_GRAPH, DO_NOTHING } Action;
typedef struct {
  const char *name;  // without the endings _ptds and _ptsz; and without _v2 where no parameter is read
  Action action;
  int16_t stream, host, bytes;  // offsets in the call's parameters, -1 where it has none; `bytes` of 2D and 3D copies:
                                // that of the pointer to their description
  int8_t is_stream_in_config, is_async;
} Call;

#define AT(call, field) offsetof(call##_params, field)
static const Call CALLS[] = {
    {"cuLaunchKernel", DO_LAUNCH, AT(cuLaunchKernel, hStream), -1, -1},
    {"cuLaunchKernelEx", DO_LAUNCH, AT(cuLaunchKernelEx, config), -1, -1, 1},
    {"cuLaunchCooperativeKernel", DO_LAUNCH, AT(cuLaunchCooperativeKernel, hStream), -1, -1},
    {"cuLaunchCooperativeKernelMultiDevice", DO_LAUNCH, -1, -1, -1},
    {"cuMemsetD8", DO_FILL, -1, -1, -1},
    {"cuMemsetD16", DO_FILL, -1, -1, -1},
    {"cuMemsetD32", DO_FILL, -1, -1, -1},
    {"cuMemsetD2D8", DO_FILL, -1, -1, -1},
    {"cuMemsetD2D16", DO_FILL, -1, -1, -1},
    {"cuMemsetD2D32", DO_FILL, -1, -1, -1},
    {"cuMemsetD8Async", DO_FILL, AT(cuMemsetD8Async, hStream), -1, -1},
    {"cuMemsetD16Async", DO_FILL, AT(cuMemsetD16Async, hStream), -1, -1},
    {"cuMemsetD32Async", DO_FILL, AT(cuMemsetD32Async, hStream), -1, -1},
    {"cuMemsetD2D8Async", DO_FILL, AT(cuMemsetD2D8Async, hStream), -1, -1},
    {"cuMemsetD2D16Async", DO_FILL, AT(cuMemsetD2D16Async, hStream), -1, -1},
    {"cuMemsetD2D32Async", DO_FILL, AT(cuMemsetD2D32Async, hStream), -1, -1},
    {"cuGraphLaunch", DO_GRAPH_LAUNCH, AT(cuGraphLaunch, hStream), -1, -1},
    {"cuStreamSynchronize", DO_WAIT, AT(cuStreamSynchronize, hStream), -1, -1},
    {"cuEventSynchronize", DO_WAIT, -1, -1, -1},
    {"cuCtxSynchronize", DO_WAIT, -1, -1, -1},
    {"cuMemcpyHtoD_v2", DO_H2D, -1, AT(cuMemcpyHtoD_v2, srcHost), AT(cuMemcpyHtoD_v2, ByteCount)},
    {"cuMemcpyDtoH_v2", DO_D2H, -1, AT(cuMemcpyDtoH_v2, dstHost), AT(cuMemcpyDtoH_v2, ByteCount)},
    {"cuMemcpyDtoD_v2", DO_D2D, -1, -1, AT(cuMemcpyDtoD_v2, ByteCount)},
    {"cuMemcpyHtoDAsync_v2", DO_H2D, AT(cuMemcpyHtoDAsync_v2, hStream), AT(cuMemcpyHtoDAsync_v2, srcHost),
     AT(cuMemcpyHtoDAsync_v2, ByteCount), 0, 1},
    {"cuMemcpyDtoHAsync_v2", DO_D2H, AT(cuMemcpyDtoHAsync_v2, hStream), AT(cuMemcpyDtoHAsync_v2, dstHost),
     AT(cuMemcpyDtoHAsync_v2, ByteCount), 0, 1},
    {"cuMemcpyDtoDAsync_v2", DO_D2D, AT(cuMemcpyDtoDAsync_v2, hStream), -1, AT(cuMemcpyDtoDAsync_v2, ByteCount), 0, 1},
    {"cuMemcpy", DO_COPY, -1, -1, AT(cuMemcpy, ByteCount)},
    {"cuMemcpyAsync", DO_COPY, AT(cuMemcpyAsync, hStream), -1, AT(cuMemcpyAsync, ByteCount), 0, 1},
    {"cuMemcpyPeer", DO_D2D, -1, -1, AT(cuMemcpyPeer, ByteCount)},
    {"cuMemcpyPeerAsync", DO_D2D, AT(cuMemcpyPeerAsync, hStream), -1, AT(cuMemcpyPeerAsync, ByteCount), 0, 1},
    {"cuMemcpy2D_v2", DO_COPY_2D, -1, -1, AT(cuMemcpy2D_v2, pCopy)},
    {"cuMemcpy2DUnaligned_v2", DO_COPY_2D, -1, -1, AT(cuMemcpy2DUnaligned_v2, pCopy)},
    {"cuMemcpy2DAsync_v2", DO_COPY_2D, AT(cuMemcpy2DAsync_v2, hStream), -1, AT(cuMemcpy2DAsync_v2, pCopy), 0, 1},
    {"cuMemcpy3D_v2", DO_COPY_3D, -1, -1, AT(cuMemcpy3D_v2, pCopy)},
    {"cuMemcpy3DAsync_v2", DO_COPY_3D, AT(cuMemcpy3DAsync_v2, hStream), -1, AT(cuMemcpy3DAsync_v2, pCopy), 0, 1},
    {"cuMemcpy3DPeer", DO_COPY_PEER_3D, -1, -1, AT(cuMemcpy3DPeer, pCopy)},
    {"cuMemcpy3DPeerAsync", DO_COPY_PEER_3D, AT(cuMemcpy3DPeerAsync, hStream), -1, AT(cuMemcpy3DPeerAsync, pCopy),
     0, 1},
    {"cuMemcpyBatchAsync", DO_OTHER_COPY, -1, -1, -1},
    {"cuMemcpy3DBatchAsync", DO_OTHER_COPY, -1, -1, -1},
    {"cuMemcpyWithAttributesAsync", DO_OTHER_COPY, -1, -1, -1},
    {"cuMemcpy3DWithAttributesAsync", DO_OTHER_COPY, -1, -1, -1},
    {"cuMemAllocHost", DO_ALLOC_HOST, -1, -1, -1},
    {"cuMemHostAlloc", DO_ALLOC_HOST, -1, -1, -1},
    {"cuMemHostRegister", DO_ALLOC_HOST, -1, -1, -1},
    {"cuMemAlloc", DO_ALLOC_DEVICE, -1, -1, -1},
    {"cuMemAllocPitch", DO_ALLOC_DEVICE, -1, -1, -1},
    {"cuMemAllocManaged", DO_ALLOC_DEVICE, -1, -1, -1},
    {"cuMemCreate", DO_ALLOC_DEVICE, -1, -1, -1},
    {"cuStreamBeginCapture", DO_BEGIN_CAPTURE, -1, -1, -1},
    {"cuStreamBeginCaptureToGraph", DO_BEGIN_CAPTURE, -1, -1, -1},
    {"cuStreamBeginRecaptureToGraph", DO_BEGIN_CAPTURE, -1, -1, -1},
    {"cuStreamEndCapture", DO_END_CAPTURE, -1, -1, -1},
    {"cuGraphInstantiate", DO_INSTANTIATE, -1, -1, -1},
    {"cuGraphInstantiateWithFlags", DO_INSTANTIATE, -1, -1, -1},
    {"cuGraphInstantiateWithParams", DO_INSTANTIATE, -1, -1, -1},
    {"cuGraphDestroy", DO_DESTROY_GRAPH, -1, -1, -1},
    {"cuGraphExecDestroy", DO_DESTROY_GRAPH, -1, -1, -1},
    // Long calls that pay no toll: met, so that their time is not taken for that of host code.
    {"cuMemFree", DO_NOTHING, -1, -1, -1},
    {"cuMemFreeHost", DO_NOTHING, -1, -1, -1},
    {"cuMemHostUnregister", DO_NOTHING, -1, -1, -1},
    {"cuMemRelease", DO_NOTHING, -1, -1, -1},
    {"cuMemMap", DO_NOTHING, -1, -1, -1},
    {"cuMemUnmap", DO_NOTHING, -1, -1, -1},
    {"cuMemSetAccess", DO_NOTHING, -1, -1, -1},
    {"cuModuleLoadData", DO_NOTHING, -1, -1, -1},
    {"cuModuleLoadDataEx", DO_NOTHING, -1, -1, -1},
    {"cuLibraryLoadData", DO_NOTHING, -1, -1, -1},
    {"cuModuleGetFunction", DO_NOTHING, -1, -1, -1},
};
static const Call *calls[CUPTI_DRIVER_TRACE_CBID_SIZE];
static int8_t is_per_thread[CUPTI_DRIVER_TRACE_CBID_SIZE];  // its stream 0 is the thread's own

static const Call *find_call(const char *name, int8_t *is_ptsz) {
  size_t length = strlen(name);
  *is_ptsz = length > 5 && (!strcmp(name + length - 5, "_ptsz") || !strcmp(name + length - 5, "_ptds"));
  if (*is_ptsz) length -= 5;
  size_t stem = length > 3 && name[length - 3] == '_' && name[length - 2] == 'v' ? length - 3 : length;
  for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
    const Call *call = &CALLS[i];
    size_t same = call->stream < 0 && call->bytes < 0 ? stem : length;  // another version has other parameters
    if (strlen(call->name) == same && !strncmp(call->name, name, same)) return call;
  }
  return NULL;
}

static CUstream stream_of(const Call *call, CUpti_CallbackId id, const char *parameters) {
  CUstream stream = 0;
  if (call->is_stream_in_config) {
    const CUlaunchConfig *config = *(const CUlaunchConfig *const *)(parameters + call->stream);
    stream = config ? config->hStream : 0;
  } else if (call->stream >= 0)
    stream = *(const CUstream *)(parameters + call->stream);
  return !stream && is_per_thread[id] ? CU_STREAM_PER_THREAD : stream;
}
