// What a copy moves, from where to where, and its toll.
typedef enum { ON_DEVICE, PINNED, PAGEABLE } Place;
typedef struct {
  Place to, from;
  size_t bytes;
} Copy;

// Pageable memory is none that the driver knows.
static Place place_of(CUdeviceptr pointer) {
  CUmemorytype type = 0;
  is_inside = 1;
  CUresult result = p_cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer);
  is_inside = 0;
  if (result != CUDA_SUCCESS) return PAGEABLE;
  return type == CU_MEMORYTYPE_DEVICE ? ON_DEVICE : type == CU_MEMORYTYPE_HOST ? PINNED : PAGEABLE;
}

// A pointer to the host's memory may be one that the device knows too, but is not the device's for that.
static Place place_on_host(const void *pointer) {
  return place_of((CUdeviceptr)pointer) == PINNED ? PINNED : PAGEABLE;
}

static Place place_by_type(CUmemorytype type, const void *host, CUdeviceptr device) {
  if (type == CU_MEMORYTYPE_HOST) return place_on_host(host);
  return type == CU_MEMORYTYPE_UNIFIED ? place_of(device) : ON_DEVICE;  // arrays are the device's
}

#define PLACES(shape) \
  place_by_type(shape->dstMemoryType, shape->dstHost, shape->dstDevice), \
      place_by_type(shape->srcMemoryType, shape->srcHost, shape->srcDevice)

static Copy copy_of(const Call *call, const char *parameters) {
  const void *at = parameters + call->bytes, *description = *(const void *const *)at;
  const CUDA_MEMCPY2D *flat = description;
  const CUDA_MEMCPY3D *solid = description;
  const CUDA_MEMCPY3D_PEER *peers = description;
  const cuMemcpyAsync_params *any = (const void *)parameters;
  if (!description && call->action >= DO_COPY_2D) return (Copy){PAGEABLE, PAGEABLE, 0};  // the driver refused it
  switch (call->action) {
    case DO_COPY_2D: return (Copy){PLACES(flat), flat->WidthInBytes * flat->Height};
    case DO_COPY_3D: return (Copy){PLACES(solid), solid->WidthInBytes * solid->Height * solid->Depth};
    case DO_COPY_PEER_3D: return (Copy){PLACES(peers), peers->WidthInBytes * peers->Height * peers->Depth};
    case DO_COPY: return (Copy){place_of(any->dst), place_of(any->src), any->ByteCount};
    case DO_D2D: return (Copy){ON_DEVICE, ON_DEVICE, *(const size_t *)at};
    default: break;
  }
  Place host = place_on_host(*(const void *const *)(parameters + call->host));
  size_t bytes = *(const size_t *)at;
  return call->action == DO_H2D ? (Copy){ON_DEVICE, host, bytes} : (Copy){host, ON_DEVICE, bytes};
}

// NUM_COPIES: none that the GPU takes part in.
static int kind_of_copy(const Copy *copy) {
  if (copy->to == ON_DEVICE)
    return copy->from == ON_DEVICE ? D2D : copy->from == PINNED ? H2D_PINNED : H2D_PAGEABLE;
  if (copy->from != ON_DEVICE) return NUM_COPIES;
  return copy->to == PINNED ? D2H_PINNED : D2H_PAGEABLE;
}

// Straight lines between the points, as profile.py's copy_toll_us has it.
static double copy_toll_us(const Tolls *tolls, int kind, double bytes) {
  const double(*points)[2] = tolls->points[kind];
  int n = tolls->num_points[kind], i = 1;
  if (n == 0) return 0;
  if (n == 1 || bytes <= points[0][0]) return points[0][1];
  while (i < n - 1 && bytes > points[i][0]) i++;
  double slope = (points[i][1] - points[i - 1][1]) / (points[i][0] - points[i - 1][0]);
  double us = points[i - 1][1] + slope * (bytes - points[i - 1][0]);
  return us > 0 ? us : 0;
}
