/* Stands in for NVIDIA's NVML on machines without a GPU. It is steered by environment variables, read at every call:

   STUB_NVML_GPUS            how many there are (1)
   STUB_NVML_FAIL            "FUNCTION=CODE FUNCTION/GPU=CODE ...": the error codes that these return
   STUB_NVML_POWER_MW        power of each GPU (500000)
   STUB_NVML_ENERGY_STEP_MJ  what each reading adds to a GPU's energy; without it energy is power times Unix time
   STUB_NVML_SM_CLOCK_MHZ (1900), STUB_NVML_MEMORY_CLOCK_MHZ (3201), STUB_NVML_TEMPERATURE_C (60),
   STUB_NVML_CLOCKS_EVENT_REASONS (0)
   STUB_NVML_ENVIRONMENT, STUB_NVML_CC_FEATURE, STUB_NVML_DEVTOOLS, STUB_NVML_MULTI_GPU, STUB_NVML_READY (0)

   A function compiled with -DFUNCTION=another_name is missing. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum error { UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };
enum clock { MEMORY = 2 };
enum { MOST_GPUS = 64 };

static int users;
static uint64_t energy_mj[MOST_GPUS];

static long long setting(const char *name, long long otherwise) {
    const char *value = getenv(name);
    return value && *value ? atoll(value) : otherwise;
}

static int code_of(const char *key) {
    const char *list = getenv("STUB_NVML_FAIL");
    size_t length = strlen(key);
    for (const char *at = list; at && (at = strstr(at, key)); at += length)
        if ((at == list || at[-1] == ' ') && at[length] == '=')
            return atoi(at + length + 1);
    return 0;
}

static int failure(const char *function) { return users ? code_of(function) : UNINITIALIZED; }

/* Handles count from 1, so that none is NULL. */
static unsigned index_of(const void *gpu) { return (unsigned)(uintptr_t)gpu - 1; }

static int gpu_failure(const char *function, const void *gpu) {
    char key[128];
    snprintf(key, sizeof key, "%s/%u", function, index_of(gpu));
    int code = failure(function);
    return code ? code : code_of(key);
}

#define TRY(call) do { int code = (call); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    TRY(code_of(__func__));
    users++;
    return 0;
}

int nvmlShutdown(void) {
    TRY(failure(__func__));
    users--;
    return 0;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    TRY(failure(__func__));
    snprintf(text, size, "570.00.stub");
    return 0;
}

int nvmlSystemGetConfComputeSettings(unsigned *settings) {
    TRY(failure(__func__));
    settings[1] = setting("STUB_NVML_ENVIRONMENT", 0);
    settings[2] = setting("STUB_NVML_CC_FEATURE", 0);
    settings[3] = setting("STUB_NVML_DEVTOOLS", 0);
    settings[4] = setting("STUB_NVML_MULTI_GPU", 0);
    return 0;
}

int nvmlSystemGetConfComputeGpusReadyState(unsigned *ready) {
    TRY(failure(__func__));
    *ready = setting("STUB_NVML_READY", 0);
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    TRY(failure(__func__));
    *count = setting("STUB_NVML_GPUS", 1);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    TRY(failure(__func__));
    if (index >= setting("STUB_NVML_GPUS", 1) || index >= MOST_GPUS)
        return INVALID_ARGUMENT;
    *gpu = (void *)(uintptr_t)(index + 1);
    return 0;
}

/* UUIDs are GPU-stub-0, GPU-stub-1 and so on. */
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    TRY(failure(__func__));
    unsigned index;
    if (sscanf(uuid, "GPU-stub-%u", &index) != 1 || nvmlDeviceGetHandleByIndex_v2(index, gpu))
        return NOT_FOUND;
    return 0;
}

int nvmlDeviceGetName(const void *gpu, char *text, unsigned size) {
    TRY(gpu_failure(__func__, gpu));
    snprintf(text, size, "Stub GPU");
    return 0;
}

int nvmlDeviceGetMemoryInfo(const void *gpu, uint64_t *total_free_used) {
    TRY(gpu_failure(__func__, gpu));
    total_free_used[0] = total_free_used[1] = 80ull << 30;
    total_free_used[2] = 0;
    return 0;
}

int nvmlDeviceGetPowerUsage(const void *gpu, unsigned *milliwatts) {
    TRY(gpu_failure(__func__, gpu));
    *milliwatts = setting("STUB_NVML_POWER_MW", 500000);
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(const void *gpu, uint64_t *millijoules) {
    TRY(gpu_failure(__func__, gpu));
    uint64_t step = setting("STUB_NVML_ENERGY_STEP_MJ", 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (step)
        *millijoules = energy_mj[index_of(gpu)] += step;
    else
        *millijoules = (now.tv_sec + now.tv_nsec / 1e9) * setting("STUB_NVML_POWER_MW", 500000);
    return 0;
}

int nvmlDeviceGetClockInfo(const void *gpu, int type, unsigned *megahertz) {
    TRY(gpu_failure(__func__, gpu));
    *megahertz = type == MEMORY ? setting("STUB_NVML_MEMORY_CLOCK_MHZ", 3201) : setting("STUB_NVML_SM_CLOCK_MHZ", 1900);
    return 0;
}

int nvmlDeviceGetTemperature(const void *gpu, int sensor, unsigned *celsius) {
    (void)sensor;
    TRY(gpu_failure(__func__, gpu));
    *celsius = setting("STUB_NVML_TEMPERATURE_C", 60);
    return 0;
}

int nvmlDeviceGetTemperatureV(const void *gpu, int *version_sensor_celsius) {
    TRY(gpu_failure(__func__, gpu));
    version_sensor_celsius[2] = setting("STUB_NVML_TEMPERATURE_C", 60);
    return 0;
}

static int reasons(const char *function, const void *gpu, uint64_t *bits) {
    TRY(gpu_failure(function, gpu));
    *bits = setting("STUB_NVML_CLOCKS_EVENT_REASONS", 0);
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(const void *gpu, uint64_t *bits) { return reasons(__func__, gpu, bits); }

int nvmlDeviceGetCurrentClocksThrottleReasons(const void *gpu, uint64_t *bits) { return reasons(__func__, gpu, bits); }
