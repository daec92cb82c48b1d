/* A driver's library of two GPUs: what pynvml needs of libnvidia-ml.so.1, in NVML's own types and
 * codes. The second GPU refuses its power, and is lost once it was asked for its temperature. */
#include <stdint.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INVALID = 2, LOST = 15 };
typedef struct { unsigned number; int is_lost; const char *uuid, *bus_id; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;
typedef union { double d; unsigned ui; unsigned long long ull; } value_t;
typedef struct {
    uint32_t id, scope;
    int64_t at, latency;
    int type, code;
    value_t value;
} field_t;

static device_t devices[2] = {
    {0, 0, "GPU-00000000-0000-0000-0000-00000000000a", "00000000:18:00.0"},
    {1, 0, "GPU-00000000-0000-0000-0000-00000000000b", "00000000:2A:00.0"},
};
static unsigned long long energy_mj = 1000000;

#define ALIVE(d) if ((d)->is_lost) return LOST

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "refused"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **found) {
    if (index > 1) return INVALID;
    *found = &devices[index];
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **found) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(devices[i].uuid, uuid)) return *found = &devices[i], OK;
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device_t **found) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(devices[i].bus_id, bus_id)) return *found = &devices[i], OK;
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(device_t *d, char *text, unsigned size) { return strcpy(text, d->uuid), OK; }
int nvmlDeviceGetName(device_t *d, char *text, unsigned size) {
    return strcpy(text, "NVIDIA H200"), OK;
}
int nvmlDeviceIsMigDeviceHandle(device_t *d, unsigned *is_slice) { return *is_slice = 0, OK; }
int nvmlDeviceGetMigMode(device_t *d, unsigned *now, unsigned *next) { return NOT_SUPPORTED; }

int nvmlDeviceGetPowerUsage(device_t *d, unsigned *mw) {
    ALIVE(d);
    *mw = 412345;
    return d->number ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetTotalEnergyConsumption(device_t *d, unsigned long long *mj) {
    ALIVE(d);
    return *mj = energy_mj += 500, OK;
}
int nvmlDeviceGetUtilizationRates(device_t *d, rates_t *rates) {
    ALIVE(d);
    return rates->gpu = 87, rates->memory = 21, OK;
}
int nvmlDeviceGetClockInfo(device_t *d, int kind, unsigned *mhz) {
    ALIVE(d);
    return *mhz = kind == 1 ? 1980 : kind == 2 ? 3201 : 0, OK;
}
int nvmlDeviceGetTemperature(device_t *d, int sensor, unsigned *celsius) {
    ALIVE(d);
    d->is_lost = d->number;
    return *celsius = 44, OK;
}
int nvmlDeviceGetMemoryInfo(device_t *d, memory_t *memory) {
    return memory->total = 3ull << 30, memory->used = 1ull << 30, memory->free = 2ull << 30, OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(device_t *d, unsigned long long *mask) {
    return *mask = 0x4, OK;
}

int nvmlDeviceGetPciInfo_v3(device_t *d, pci_t *info) {
    return strcpy(info->bus_id, d->bus_id), OK;
}
int nvmlDeviceGetNvLinkState(device_t *d, unsigned link, unsigned *is_active) {
    if (link >= 4) return INVALID;
    return *is_active = link < 3, OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(device_t *d, unsigned link, int *type) {
    return *type = 0, OK;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t *d, unsigned link, pci_t *info) {
    return strcpy(info->bus_id, devices[!d->number].bus_id), OK;
}
int nvmlDeviceGetFieldValues(device_t *d, int count, field_t *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].code = fields[i].id == 164 && fields[i].scope < 3 ? OK : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.ui = 26562;
    }
    return OK;
}
int nvmlDeviceGetMaxPcieLinkGeneration(device_t *d, unsigned *found) { return *found = 5, OK; }
int nvmlDeviceGetMaxPcieLinkWidth(device_t *d, unsigned *found) { return *found = 16, OK; }
int nvmlDeviceGetTopologyCommonAncestor(device_t *a, device_t *b, int *level) {
    return *level = 40, OK;
}
int nvmlDeviceGetP2PStatus(device_t *a, device_t *b, int what, int *status) {
    return *status = what == 0 ? 0 : 5, OK;
}
