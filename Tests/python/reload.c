/*
 * Opens the library, uses it and closes it, three times: dlclose must leave nothing that points into the void, and
 * the next dlopen must find it working.
 */
#include <dlfcn.h>
#include <stdio.h>

#include "gradaccum.h"

int main(int argc, char **argv) {
    int round;

    for (round = 0; round < 3 && argc == 2; round++) {
        const int64_t shape[1] = {100000};
        ga_status (*create)(ga_tensor **, int32_t, int32_t, int32_t, const int64_t *);
        ga_status (*fill)(ga_tensor *, double);
        void (*release)(ga_tensor *);
        ga_tensor *tensor;
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);

        if (library == NULL) {
            puts(dlerror());
            return 1;
        }
        *(void **)&create = dlsym(library, "ga_tensor_create");
        *(void **)&fill = dlsym(library, "ga_tensor_fill");
        *(void **)&release = dlsym(library, "ga_tensor_free");
        if (create(&tensor, GA_DEVICE_CPU, GA_FLOAT32, 1, shape) != GA_OK || fill(tensor, 1.5) != GA_OK)
            return 2;
        release(tensor);
        dlclose(library);
    }
    return 0;
}
