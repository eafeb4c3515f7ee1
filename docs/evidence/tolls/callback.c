// What the library itself does at both ends of a launch that pays nothing, without CUPTI and with all of it in the caches.
//     H=$(python -c "from cctrain.emulation.build import find_cupti; print(*(f'-I{x}' for x in find_cupti().headers))")
//     gcc -O2 -std=gnu11 -Icctrain/emulation/injection $H docs/evidence/tolls/callback.c -o callback -ldl -lpthread
//     ./callback
#include "inject.c"

CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *a, CUpti_CallbackFunc b, void *c) { return (void)a, (void)b, (void)c, 0; }
CUptiResult cuptiEnableCallback(uint32_t a, CUpti_SubscriberHandle b, CUpti_CallbackDomain c, CUpti_CallbackId d) {
  return (void)a, (void)b, (void)c, (void)d, 0;
}
CUptiResult cuptiGetCallbackName(CUpti_CallbackDomain a, uint32_t b, const char **c) { return (void)a, (void)b, *c = NULL, 0; }
CUptiResult cuptiGetResultString(CUptiResult a, const char **b) { return (void)a, *b = "", 0; }

enum { KERNELS = 512, LAUNCHES = 2000000 };

int main(void) {
  static char names[KERNELS][96];
  CUlaunchConfig config = {0};
  struct { const CUlaunchConfig *config; CUfunction f; void **kernel, **extra; } parameters = {.config = &config};
  CUresult result = CUDA_SUCCESS;
  CUpti_CallbackData data = {.functionParams = &parameters, .functionReturnValue = &result};
  CUpti_CallbackFunc volatile callback = on_call;
  CUpti_CallbackId id = 1;
  for (int i = 0; i < KERNELS; i++) snprintf(names[i], sizeof names[i], "_ZN2at6native%d", i);
  calls[id] = find_call("cuLaunchKernelEx", &is_per_thread[id]);
  calibrate();
  for (int round = 0; round < 5; round++) {
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < LAUNCHES; i++) {
      data.symbolName = names[i % KERNELS];
      data.callbackSite = CUPTI_API_ENTER;
      callback(NULL, CUPTI_CB_DOMAIN_DRIVER_API, id, &data);
      data.callbackSite = CUPTI_API_EXIT;
      callback(NULL, CUPTI_CB_DOMAIN_DRIVER_API, id, &data);
    }
    printf("%.1f ns a launch\n", (double)(clock_ns(CLOCK_MONOTONIC) - begin) / LAUNCHES);
  }
}
