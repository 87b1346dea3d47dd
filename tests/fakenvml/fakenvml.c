/*
 * A stand-in for libnvidia-ml.so.1 on machines without a GPU.
 *
 * What it pretends is a text file named by FAKE_NVML, read again at every call, so that a test changes a GPU
 * while an agent watches it. One setting a line, "KEY VALUE"; the last line for a key counts. A key with a GPU's
 * number goes before the same key without:
 *
 *     count 4                  how many GPUs there are
 *     driver 580.65.06         version of the driver
 *     error 9                  every call but nvmlErrorString answers this nvmlReturn_t (9: driver not loaded)
 *     hang_ms 500              every look at a GPU takes this long
 *     name NVIDIA H100 PCIe    of all GPUs
 *     2.uuid GPU-...           of one
 *     1.lost 1                 the GPU fell off the bus
 *     0.processes 4242:1048576,77:2048        pid:bytes of compute processes
 *     memory, used (bytes), busy (percent), celsius, milliwatts, milliwatts_limit
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_GPUS 16
#define LINE 1024
#define EXPORT __attribute__((visibility("default")))

struct nvmlDevice_st {
    int index;
};

static struct nvmlDevice_st gpus[MAX_GPUS];
static int users;

/* Copies the value of a key, or the fallback. */
static void setting(const char *key, const char *fallback, char *value, size_t size)
{
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(key);
    char line[LINE];

    snprintf(value, size, "%s", fallback);
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == ' ')
            snprintf(value, size, "%s", line + length + 1);
    }
    fclose(file);
}

static unsigned long long number(const char *key, unsigned long long fallback)
{
    char text[64], value[64];

    snprintf(text, sizeof text, "%llu", fallback);
    setting(key, text, value, sizeof value);
    return strtoull(value, NULL, 10);
}

static void gpu_setting(nvmlDevice_t gpu, const char *key, const char *fallback, char *value, size_t size)
{
    char own[64], common[LINE];

    setting(key, fallback, common, sizeof common);
    snprintf(own, sizeof own, "%d.%s", gpu->index, key);
    setting(own, common, value, size);
}

static unsigned long long gpu_number(nvmlDevice_t gpu, const char *key, unsigned long long fallback)
{
    char text[64], value[64];

    snprintf(text, sizeof text, "%llu", fallback);
    gpu_setting(gpu, key, text, value, sizeof value);
    return strtoull(value, NULL, 10);
}

static int count(void)
{
    unsigned long long n = number("count", 2);

    return n > MAX_GPUS ? MAX_GPUS : (int)n;
}

/* What every call answers unless the library works. */
static nvmlReturn_t state(void)
{
    nvmlReturn_t error = (nvmlReturn_t)number("error", 0);

    return error ? error : users ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

static nvmlReturn_t check(nvmlDevice_t gpu)
{
    nvmlReturn_t error = state();

    if (error)
        return error;
    if (!gpu || gpu->index >= count())
        return NVML_ERROR_INVALID_ARGUMENT;
    return gpu_number(gpu, "lost", 0) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

static nvmlReturn_t text(const char *from, char *to, unsigned int size)
{
    if (strlen(from) >= size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, from);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    nvmlReturn_t error = (nvmlReturn_t)number("error", 0);

    (void)flags;
    if (error)
        return error;
    for (int i = 0; i < MAX_GPUS; i++)
        gpus[i].index = i;
    users++;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    if (!users)
        return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t error)
{
    switch (error) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int size)
{
    char value[80];
    nvmlReturn_t error = state();

    if (error)
        return error;
    setting("driver", "580.65.06", value, sizeof value);
    return text(value, version, size);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n)
{
    nvmlReturn_t error = state();

    if (!error)
        *n = count();
    return error;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *gpu)
{
    nvmlReturn_t error = state();

    usleep(1000 * number("hang_ms", 0));
    if (error)
        return error;
    if ((int)index >= count())
        return NVML_ERROR_INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return check(*gpu);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t gpu, char *uuid, unsigned int size)
{
    char fallback[64], value[96];
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    snprintf(fallback, sizeof fallback, "GPU-00000000-0000-4000-8000-%012x", gpu->index);
    gpu_setting(gpu, "uuid", fallback, value, sizeof value);
    return text(value, uuid, size);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t gpu, char *name, unsigned int size)
{
    char value[96];
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    gpu_setting(gpu, "name", "NVIDIA A100-SXM4-80GB", value, sizeof value);
    return text(value, name, size);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t gpu, nvmlMemory_t *memory)
{
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    memory->total = gpu_number(gpu, "memory", 80ull << 30);
    memory->used = gpu_number(gpu, "used", 0);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t gpu, nvmlUtilization_t *rates)
{
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    rates->gpu = (unsigned int)gpu_number(gpu, "busy", 0);
    rates->memory = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t gpu, nvmlTemperatureSensors_t sensor, unsigned int *celsius)
{
    nvmlReturn_t error = check(gpu);

    (void)sensor;
    if (!error)
        *celsius = (unsigned int)gpu_number(gpu, "celsius", 35);
    return error;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t gpu, unsigned int *milliwatts)
{
    nvmlReturn_t error = check(gpu);

    if (!error)
        *milliwatts = (unsigned int)gpu_number(gpu, "milliwatts", 61000);
    return error;
}

/* Passive cards have no limit to tell: 0 stands for one. */
EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t gpu, unsigned int *milliwatts)
{
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    *milliwatts = (unsigned int)gpu_number(gpu, "milliwatts_limit", 400000);
    return *milliwatts ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t gpu, nvmlPciInfo_t *pci)
{
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    memset(pci, 0, sizeof *pci);
    /* A domain that no machine has, so that /sys knows nothing of it. */
    pci->domain = 0xfafa;
    pci->bus = 0x10 + gpu->index;
    snprintf(pci->busId, sizeof pci->busId, "0000FAFA:%02X:00.0", pci->bus);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t gpu, unsigned int *node)
{
    nvmlReturn_t error = check(gpu);

    if (!error)
        *node = gpu->index < count() / 2 ? 0 : 1;
    return error;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t gpu, unsigned int *n, nvmlProcessInfo_t *list)
{
    char value[LINE], *rest = NULL;
    unsigned int found = 0;
    nvmlReturn_t error = check(gpu);

    if (error)
        return error;
    gpu_setting(gpu, "processes", "", value, sizeof value);
    for (char *item = strtok_r(value, ",", &rest); item; item = strtok_r(NULL, ",", &rest), found++) {
        char *colon = strchr(item, ':');

        if (found >= *n)
            continue;
        memset(&list[found], 0, sizeof list[found]);
        list[found].pid = (unsigned int)strtoul(item, NULL, 10);
        list[found].usedGpuMemory = colon ? strtoull(colon + 1, NULL, 10) : 0;
    }
    error = found > *n ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    *n = found;
    return error;
}
