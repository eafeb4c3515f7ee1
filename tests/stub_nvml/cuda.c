/* Stands in for the CUDA driver where it is asked about its devices; whatever else is called is missing.

   STUB_CUDA_MULTICAST  a digit for each GPU: whether it has multicast ("1")
   STUB_CUDA_FAIL       the error code of cuInit (0)
   STUB_CUDA_HANG       1: cuInit never returns */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MULTICAST_SUPPORTED = 132, INVALID_VALUE = 1 };

static const char *text(const char *name, const char *otherwise) { return getenv(name) ? getenv(name) : otherwise; }

int cuInit(unsigned flags) {
    (void)flags;
    while (atoi(text("STUB_CUDA_HANG", "0")))
        sleep(1);
    return atoi(text("STUB_CUDA_FAIL", "0"));
}

int cuDeviceGetCount(int *count) {
    *count = (int)strlen(text("STUB_CUDA_MULTICAST", "1"));
    return 0;
}

int cuDeviceGet(int *device, int index) {
    *device = index;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = text("STUB_CUDA_MULTICAST", "1")[device] == '1';
    return attribute == MULTICAST_SUPPORTED ? 0 : INVALID_VALUE;
}
