/* What a capturing stream waits for, asked and changed. */

CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                   const CUgraphNode **before, size_t *num_before) {
    (void)id, (void)graph;
    Stream *stream = &streams[(uintptr_t)handle % NUM_STREAMS];
    if (is_set("STUB_DRIVER_LOSSY"))
        return CUDA_ERROR_LOSSY_QUERY;
    *status = stream->is_broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    *before = stream->is_broken ? (CUgraphNode *)8 : stream->before; /* then it is anything */
    *num_before = stream->is_broken ? 1 : stream->num_before;
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode *before, size_t *num_before) {
    size_t all = ((Node *)node)->num_before;
    *num_before = all < *num_before ? all : *num_before;
    memcpy(before, ((Node *)node)->before, *num_before * sizeof *before);
    return CUDA_SUCCESS;
}

CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode *nodes, size_t num_nodes, unsigned flags) {
    Stream *stream = &streams[(uintptr_t)handle % NUM_STREAMS];
    if (!stream->is_capturing)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES)
        stream->num_before = 0;
    for (size_t i = 0; i < num_nodes; i++)
        stream->before[stream->num_before++] = nodes[i];
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType *type) {
    *type = ((Node *)node)->type;
    return CUDA_SUCCESS;
}

/* As after the event of a collective that was captured on another stream. */
void stub_wait_for_last_alone(int number) {
    Stream *stream = &streams[number];
    stream->before[0] = stream->before[stream->num_before - 1];
    stream->num_before = 1;
}
