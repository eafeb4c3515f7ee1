/* Stands in for NVIDIA's NVML on machines without a GPU. It is steered by environment variables, read at every call:

   STUB_NVML_GPUS            how many there are (1)
   STUB_NVML_FAIL            "FUNCTION=CODE FUNCTION/GPU=CODE ...": the error codes that these return
   STUB_NVML_POWER_MW        power of each GPU (500000)
   STUB_NVML_ENERGY_STEP_MJ  what each reading adds to a GPU's energy; without it energy is power times Unix time
   STUB_NVML_SM_CLOCK_MHZ (1900), STUB_NVML_MEMORY_CLOCK_MHZ (3201), STUB_NVML_TEMPERATURE_C (60),
   STUB_NVML_CLOCKS_EVENT_REASONS (0)
   STUB_NVML_ENVIRONMENT, STUB_NVML_CC_FEATURE, STUB_NVML_DEVTOOLS, STUB_NVML_MULTI_GPU, STUB_NVML_READY (0)
   STUB_NVML_CPU_CAPS (0)
   STUB_NVML_PROTECTED_GIB   protected memory of each GPU (0); STUB_NVML_PROTECTED_GIB_1 of the second, and so on
   STUB_NVML_NVLE            whether NVLink is encrypted (0); STUB_NVML_NVLE_1 of the second GPU, and so on
   STUB_NVML_NVLINKS         active links of each GPU (0), to a switch; with STUB_NVML_DIRECT=1 to the next GPU
   STUB_NVML_ANCESTOR        topology level between two GPUs (50: the system)

   A function compiled with -DFUNCTION=another_name is missing. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum error { UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };
enum clock { MEMORY = 2 };
enum { MOST_GPUS = 64, DISABLED_BY_REGISTRY = 4, TO_GPU = 0, TO_SWITCH = 2 };

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

/* A setting of all GPUs, or of this one alone. */
static long long setting_of(const char *name, const void *gpu) {
    char own[128];
    snprintf(own, sizeof own, "%s_%u", name, index_of(gpu));
    return setting(own, setting(name, 0));
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

int nvmlSystemGetCudaDriverVersion(int *version) {
    TRY(failure(__func__));
    *version = 13020;
    return 0;
}

/* The older function: no version before it, no mode of several GPUs after it. */
int nvmlSystemGetConfComputeState(unsigned *state) {
    TRY(failure(__func__));
    state[0] = setting("STUB_NVML_ENVIRONMENT", 0);
    state[1] = setting("STUB_NVML_CC_FEATURE", 0);
    state[2] = setting("STUB_NVML_DEVTOOLS", 0);
    return 0;
}

int nvmlSystemGetConfComputeCapabilities(unsigned *cpu_gpus) {
    TRY(failure(__func__));
    cpu_gpus[0] = setting("STUB_NVML_CPU_CAPS", 0);
    cpu_gpus[1] = 1;
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

int nvmlDeviceGetUUID(const void *gpu, char *text, unsigned size) {
    TRY(gpu_failure(__func__, gpu));
    snprintf(text, size, "GPU-stub-%u", index_of(gpu));
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

int nvmlDeviceGetMaxClockInfo(const void *gpu, int type, unsigned *megahertz) {
    TRY(gpu_failure(__func__, gpu));
    *megahertz = type == MEMORY ? 3201 : 1980;
    return 0;
}

int nvmlDeviceGetApplicationsClock(const void *gpu, int type, unsigned *megahertz) {
    TRY(gpu_failure(__func__, gpu));
    *megahertz = type == MEMORY ? 3200 : 1970;
    return 0;
}

int nvmlDeviceGetEnforcedPowerLimit(const void *gpu, unsigned *milliwatts) {
    TRY(gpu_failure(__func__, gpu));
    *milliwatts = 700000;
    return 0;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(const void *gpu, struct pci *pci) {
    TRY(gpu_failure(__func__, gpu));
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x10 + index_of(gpu);
    return 0;
}

int nvmlDeviceGetConfComputeMemSizeInfo(const void *gpu, uint64_t *protected_unprotected_kib) {
    TRY(gpu_failure(__func__, gpu));
    protected_unprotected_kib[0] = (uint64_t)setting_of("STUB_NVML_PROTECTED_GIB", gpu) << 20;
    protected_unprotected_kib[1] = (80ull << 20) - protected_unprotected_kib[0];
    return 0;
}

int nvmlDeviceGetNvLinkInfo(const void *gpu, unsigned *version_encrypted) {
    TRY(gpu_failure(__func__, gpu));
    version_encrypted[1] = setting_of("STUB_NVML_NVLE", gpu);
    return 0;
}

int nvmlDeviceGetNvLinkState(const void *gpu, unsigned link, unsigned *active) {
    TRY(gpu_failure(__func__, gpu));
    *active = link < setting("STUB_NVML_NVLINKS", 0);
    return 0;
}

int nvmlDeviceGetNvLinkVersion(const void *gpu, unsigned link, unsigned *version) {
    (void)link;
    TRY(gpu_failure(__func__, gpu));
    *version = 4;
    return 0;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(const void *gpu, unsigned link, int *type) {
    (void)link;
    TRY(gpu_failure(__func__, gpu));
    *type = setting("STUB_NVML_DIRECT", 0) ? TO_GPU : TO_SWITCH;
    return 0;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(const void *gpu, unsigned link, struct pci *pci) {
    (void)link;
    TRY(gpu_failure(__func__, gpu));
    memset(pci, 0, sizeof *pci);
    pci->bus = setting("STUB_NVML_DIRECT", 0) ? 0x10 + (index_of(gpu) ^ 1) : 0xf0;
    return 0;
}

int nvmlDeviceGetP2PStatus(const void *one, const void *other, int capability, int *status) {
    (void)other, (void)capability;
    TRY(gpu_failure(__func__, one));
    *status = setting("STUB_NVML_NVLINKS", 0) ? 0 : DISABLED_BY_REGISTRY;
    return 0;
}

int nvmlDeviceGetTopologyCommonAncestor(const void *one, const void *other, int *level) {
    (void)other;
    TRY(gpu_failure(__func__, one));
    *level = setting("STUB_NVML_ANCESTOR", 50);
    return 0;
}

/* Signed by nobody: "report of GPU n for " and the nonce. */
struct report { unsigned is_cec, size, cec_size; uint8_t nonce[32], report[0x2000], cec[0x1000]; };

int nvmlDeviceGetConfComputeGpuAttestationReport(const void *gpu, struct report *report) {
    TRY(gpu_failure(__func__, gpu));
    report->is_cec = 0;
    report->cec_size = 0;
    report->size = snprintf((char *)report->report, sizeof report->report, "report of GPU %u for ", index_of(gpu));
    memcpy(report->report + report->size, report->nonce, sizeof report->nonce);
    report->size += sizeof report->nonce;
    return 0;
}

struct certificate { unsigned size, attestation_size; uint8_t chain[0x1000], attestation_chain[0x1400]; };

int nvmlDeviceGetConfComputeGpuCertificate(const void *gpu, struct certificate *certificate) {
    TRY(gpu_failure(__func__, gpu));
    certificate->size = snprintf((char *)certificate->chain, sizeof certificate->chain, "chain %u", index_of(gpu));
    certificate->attestation_size =
        snprintf((char *)certificate->attestation_chain, sizeof certificate->attestation_chain, "attestation chain");
    return 0;
}
