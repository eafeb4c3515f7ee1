// The injection library and, for benchmarks/injector.py, a callback beside its own that returns at once: what meeting a
// call costs then is CUPTI's.
#include "../cctrain/emulation/injection/inject.c"

static void CUPTIAPI do_nothing(void *data, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *call) {
  (void)data, (void)domain, (void)id, (void)call;
}

// Meet the same calls with that callback, or with the library's own again. Returns how many kinds, 0 where CUPTI
// refuses.
int cctrain_meet_with(int is_empty) {
  CUpti_CallbackFunc callback = (CUpti_CallbackFunc)(is_empty ? do_nothing : on_call);
  if (cuptiUnsubscribe(subscriber) != CUPTI_SUCCESS) return 0;
  return cuptiSubscribe(&subscriber, callback, NULL) == CUPTI_SUCCESS ? cctrain_meet(1) : 0;
}
