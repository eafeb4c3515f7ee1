/* The little of CUPTI that inject.c uses. */

static CUpti_CallbackFunc subscriber;
static char is_enabled[CUPTI_DRIVER_TRACE_CBID_SIZE];
static const char *const NAMES[CUPTI_DRIVER_TRACE_CBID_SIZE] = {
#include "callbacks.inc"
};

static int is_set(const char *name) { return getenv(name) && atoi(getenv(name)); }

CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *handle, CUpti_CallbackFunc callback, void *data) {
    (void)data;
    if (is_set("STUB_DRIVER_TAKEN"))
        return CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED;
    *handle = (CUpti_SubscriberHandle)&subscriber;
    subscriber = callback;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiUnsubscribe(CUpti_SubscriberHandle handle) {
    (void)handle;
    subscriber = NULL;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiEnableCallback(uint32_t enable, CUpti_SubscriberHandle handle, CUpti_CallbackDomain domain,
                                CUpti_CallbackId id) {
    (void)handle;
    if (is_set("STUB_DRIVER_DEAF") || domain != CUPTI_CB_DOMAIN_DRIVER_API)
        return CUPTI_ERROR_INVALID_PARAMETER;
    is_enabled[id] = (char)enable;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiGetCallbackName(CUpti_CallbackDomain domain, uint32_t id, const char **name) {
    (void)domain;
    *name = id < CUPTI_DRIVER_TRACE_CBID_SIZE ? NAMES[id] : NULL;
    return *name ? CUPTI_SUCCESS : CUPTI_ERROR_INVALID_PARAMETER;
}

CUptiResult cuptiGetResultString(CUptiResult result, const char **text) {
    *text = result == CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED ? "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED"
                                                                      : "CUPTI_ERROR_UNKNOWN";
    return CUPTI_SUCCESS;
}
