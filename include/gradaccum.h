/*
 * gradaccum.h - gradient accumulation that anyone can link
 *
 * A training core behind one C header: tensors, reverse-mode autograd, and accumulating optimizers. Its
 * centre is the accumulation window: split a batch into micro-batches in any way, and the update is the
 * same to the last bit.
 *
 * A complete training step:
 *
 *     ga_adamw_options adamw = GA_ADAMW_OPTIONS_INIT;
 *     ga_accumulator_options window = GA_ACCUMULATOR_OPTIONS_INIT;
 *     ga_optimizer *optimizer;
 *     ga_accumulator *accumulator;
 *     ga_report report = GA_REPORT_INIT;
 *     window.max_grad_norm = 1.0;
 *     ga_adamw_create(&optimizer, parameters, parameter_count, &adamw);
 *     ga_accumulator_create(&accumulator, optimizer, &window);
 *     for (i = 0; i < micro_batches; i++) {
 *         ga_scope *scope;
 *         ga_tensor *hidden, *logits, *loss;
 *         ga_scope_open(&scope);
 *         ga_linear(&hidden, x[i], weight1, bias1);
 *         ga_gelu(&hidden, hidden, GA_GELU_TANH);
 *         ga_linear(&logits, hidden, weight2, bias2);
 *         ga_cross_entropy(&loss, logits, y[i], GA_NO_IGNORE_INDEX, GA_REDUCTION_SUM);
 *         ga_accumulate(accumulator, loss, sample_count[i]);
 *         ga_scope_close(scope, NULL, 0);
 *     }
 *     ga_step(accumulator, &report);
 *
 * Ownership. A handle written through an out-parameter is yours: free it once, with the function of its
 *   type. Freeing NULL does nothing. An object keeps alive whatever it needs, so handles may be freed in
 *   any order. A handle that was freed is recognised and refused. Pointers that are passed in are read
 *   during the call only, except by ga_tensor_wrap and ga_tensor_from_dlpack. Pointers that are returned belong to
 *   the library.
 * Scopes. While a scope is open, tensors made on the same thread belong to it; closing it frees those
 *   that are left. In a scope it is therefore fine to overwrite a handle, as the example does.
 * Errors. Every function that can fail returns GA_OK (0) or a negative status, writes its out-parameters
 *   only on success and leaves its objects as they were. ga_last_error() is one line that says what was
 *   wrong and what to do. Nothing ends the process and nothing is printed.
 * Threads. A handle, and the tensors that share its graph or memory, are used by one thread at a time.
 *   Unrelated handles need no locks. ga_last_error(), scopes, ga_set_recording() and ga_set_compute_dtype()
 *   are per thread. The library starts its own workers on first use, and again in the child of a fork().
 * Memory. Row-major. Shapes and strides are in elements, and so is every size unless its name ends in
 *   _bytes. The leading axis of an activation is the sample axis.
 * Stability. Functions and constants are only added, structs only grow at their end. Every struct starts
 *   with struct_size and has an _INIT macro that sets it and the defaults. Of a struct that is larger than the
 *   library's, options must be zero beyond it, and results beyond it are left alone.
 *
 * The first law. Same samples in the same order: any split into micro-batches at sample boundaries and any
 * number of threads gives bit-identical accumulated gradients, and so bit-identical weights. A parameter's
 * gradient is one chain of additions in sample order; losses are sums; the one division, by the weight
 * that really went in, happens at the step.
 *
 * Caveats
 * - Law 1 holds per instruction set. Another CPU generation may round a matrix product differently.
 * - It needs the sample axis in front. A transpose that moves it, and an operation that mixes samples,
 *   are outside of it; so is a computation on a parameter other than a view (transpose, slice, a reshape that
 *   needs no copy) that happens before the parameter meets samples.
 * - It is for losses that are sums. A mean is multiplied by its weight at the start of backward, where a
 *   micro-batch's own rounding comes in. It also leaves out gradients that the caller computes.
 * - Where ga_accumulator_options.isolated is 1, it holds for the same cut into micro-batches.
 * - A parameter that is used at several places of one graph has an accumulator per place, told apart by
 *   their order in the forward pass, so each micro-batch should build the graph in the same order.
 * - Everything is computed with denormals flushed to zero and in the default rounding mode, callbacks
 *   included. The caller's own floating-point mode has no part in it and is the same after a call.
 * - The library must not be called from a signal handler.
 */
#ifndef GRADACCUM_H
#define GRADACCUM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ====== Version ========================================================================================= */

#define GA_VERSION_MAJOR 0
#define GA_VERSION_MINOR 1
#define GA_VERSION_PATCH 0

/* Raised when a program must be built again; it is also the number in the SONAME. */
#define GA_ABI_VERSION 1

/* The version of the loaded library, as "0.1.0". */
const char *ga_version(void);

/* GA_ABI_VERSION of the loaded library: compare it with the macro after a dlopen(). */
int32_t ga_abi_version(void);

/* ====== Status and errors =============================================================================== */

typedef int32_t ga_status;

#define GA_OK 0
#define GA_ERROR_INVALID_ARGUMENT (-1) /* NULL, a dead handle, a value outside of its range               */
#define GA_ERROR_SHAPE (-2)            /* shapes that do not fit each other or the operation              */
#define GA_ERROR_DTYPE (-3)            /* an element type that the operation does not take                */
#define GA_ERROR_STATE (-4)            /* a call that is not due, such as a step on an empty window       */
#define GA_ERROR_OUT_OF_MEMORY (-5)    /* the allocator refused; see ga_accumulate                        */
#define GA_ERROR_OVERFLOW (-6)         /* a size that does not fit the address space                      */
#define GA_ERROR_INDEX (-7)            /* a class or row index outside of its table                       */
#define GA_ERROR_NON_FINITE (-8)       /* a NaN or infinity where a finite number is needed               */
#define GA_ERROR_UNSUPPORTED (-9)      /* not possible on this machine or with these settings             */
#define GA_ERROR_INTERNAL (-10)        /* a defect of the library: please report its sentence             */
#define GA_ERROR_OUTLIER (-11)         /* a window whose loss or norm stands out, where that is an error  */

/* The name of a status, as "GA_ERROR_SHAPE"; never NULL. */
const char *ga_status_name(ga_status status);

/* The sentence of this thread's last error, "" before the first; never NULL, valid until the next error. */
const char *ga_last_error(void);

/* ====== Runtime ========================================================================================= */

/*
 * Sets the number of threads of every later operation, at least 1. The default is GRADACCUM_NUM_THREADS or
 * else the number of CPUs that this process may run on. It changes no bit of any result.
 */
ga_status ga_set_num_threads(int32_t count);

/* The number of threads in use. */
ga_status ga_num_threads(int32_t *out);

/*
 * The instruction set in use: "baseline", "avx2", "avx512" or "avx512_bf16". It is the best that the CPU has, unless
 * GRADACCUM_ISA names a lower one; naming one that the CPU lacks is GA_ERROR_UNSUPPORTED in every call.
 */
ga_status ga_instruction_set(const char **out);

/*
 * Sets what operations of this thread compute in: GA_FLOAT32, the default, GA_BFLOAT16 or GA_FLOAT16. With one of
 * the latter two:
 * - ga_linear, ga_causal_attention and ga_linear_cross_entropy round what they multiply to it, in backward too, and
 *   add up in float32. In bfloat16, where a sample has an odd number of rows, the gradient of a weight multiplies in
 *   float32.
 * - Results of ga_linear, ga_causal_attention and ga_layer_norm are of that type, in half the memory. Elementwise
 *   operations keep the type of their operands; operands of two types give float32.
 * - The rest is float32: parameters, all gradients and their sums, what norms, softmax and losses compute, and
 *   the state of optimizers.
 * What is set holds for the operations that follow, so that parts of a model can each have their own. Backward
 * computes in the type of the forward pass, whatever is set by then. Law 1 holds.
 * float16 ends at 65504, and loses digits below 6e-5: multiply losses by a ga_loss_scaler. Its products are as fast as
 * those of float32, in half the memory. bfloat16 has the range of float32; an instruction set below "avx512_bf16" makes
 * the same products in software, which is slower than float32.
 * Errors: INVALID_ARGUMENT if dtype is no element type, UNSUPPORTED if it is one to compute nothing in.
 */
ga_status ga_set_compute_dtype(int32_t dtype);
ga_status ga_compute_dtype(int32_t *out);

/*
 * Returns size_bytes bytes at a multiple of alignment, or NULL; it may be called from any thread. Memory that is
 * not aligned is given back at once, and the call that needed it is GA_ERROR_UNSUPPORTED.
 */
typedef void *(*ga_allocate_fn)(size_t size_bytes, size_t alignment, void *user);
typedef void (*ga_release_fn)(void *memory, size_t size_bytes, void *user);

/*
 * Makes allocate and release the source of all tensor memory; both NULL brings the default back.
 * GA_ERROR_STATE while memory of the previous source is in use.
 */
ga_status ga_set_allocator(ga_allocate_fn allocate, ga_release_fn release, void *user);

typedef struct ga_memory {
    uint32_t struct_size;
    uint32_t reserved;
    int64_t live_bytes;      /* in tensors, accumulators and optimizer state now                          */
    int64_t peak_bytes;      /* the highest live_bytes since the start or ga_memory_reset_peak()          */
    int64_t arena_bytes;     /* obtained from the allocator and kept for reuse                            */
    int64_t allocator_calls; /* calls of the allocator since the start: constant in steady state          */
} ga_memory;
#define GA_MEMORY_INIT { sizeof(ga_memory), 0, 0, 0, 0, 0 }

/* Fills in what the library's memory is used for. */
ga_status ga_memory_usage(ga_memory *out);

/* Sets peak_bytes to live_bytes. */
ga_status ga_memory_reset_peak(void);

/* Gives memory that is kept for reuse, and not in use, back to the allocator. */
ga_status ga_memory_trim(void);

/* ====== Tensors ========================================================================================= */

typedef struct ga_tensor ga_tensor;
typedef struct ga_scope ga_scope;

/* The structs of DLPack, as in its dlpack.h, which may be included as well and need not be. */
struct DLManagedTensor;
struct DLManagedTensorVersioned;

/* Element types. A bfloat16 or float16 is a uint16_t in memory. */
#define GA_FLOAT32 1
#define GA_BFLOAT16 2
#define GA_FLOAT16 3
#define GA_INT32 4
#define GA_INT64 5

/* Where a tensor lives. The CPU is the only device of this version; any other is GA_ERROR_UNSUPPORTED. */
#define GA_DEVICE_CPU 0

/* The most axes that a tensor has. A scalar has none. */
#define GA_MAX_RANK 8

/* Creates a tensor of zeros. Errors: OVERFLOW, OUT_OF_MEMORY. */
ga_status ga_tensor_create(ga_tensor **out, int32_t device, int32_t dtype, int32_t rank, const int64_t *shape);

/* Creates a tensor with a copy of the contiguous elements at data. Errors: OVERFLOW, OUT_OF_MEMORY. */
ga_status ga_tensor_from_data(ga_tensor **out, int32_t device, int32_t dtype, int32_t rank,
                              const int64_t *shape, const void *data);

/*
 * Creates a tensor on the caller's memory, without a copy.
 * strides: in elements, none negative, or NULL for contiguous. The memory must outlive the tensor and all
 * that was made from it: then release(data, user) is called once, on any thread; release may be NULL.
 */
ga_status ga_tensor_wrap(ga_tensor **out, int32_t device, int32_t dtype, int32_t rank, const int64_t *shape,
                         const int64_t *strides, void *data, void (*release)(void *data, void *user),
                         void *user);

/* Frees the handle; the memory goes when no view, graph or accumulator needs it any more. */
void ga_tensor_free(ga_tensor *tensor);

/* Copies size_bytes bytes of contiguous elements in; size_bytes must be the whole tensor's. */
ga_status ga_tensor_copy_in(ga_tensor *tensor, const void *source, size_t size_bytes);

/* Copies the elements out, contiguous in row-major order; size_bytes must be the whole tensor's. */
ga_status ga_tensor_copy_out(const ga_tensor *tensor, void *destination, size_t size_bytes);

/*
 * The address of the first element, for reading in place while the tensor lives, and for writing unless the tensor is
 * read-only.
 */
ga_status ga_tensor_data(const ga_tensor *tensor, void **out);

/* The single element of a tensor that has one. Errors: SHAPE. */
ga_status ga_tensor_item(const ga_tensor *tensor, double *out);

ga_status ga_tensor_dtype(const ga_tensor *tensor, int32_t *out);
ga_status ga_tensor_rank(const ga_tensor *tensor, int32_t *out);
ga_status ga_tensor_element_count(const ga_tensor *tensor, int64_t *out);

/* Writes rank numbers to out, which has room for capacity. Errors: INVALID_ARGUMENT if that is too few. */
ga_status ga_tensor_shape(const ga_tensor *tensor, int64_t *out, int32_t capacity);
ga_status ga_tensor_strides(const ga_tensor *tensor, int64_t *out, int32_t capacity);

/* Sets every element to value. */
ga_status ga_tensor_fill(ga_tensor *tensor, double value);

/* Fills with normal or uniform random numbers; element i depends on (seed, i) alone. float32 only. */
ga_status ga_tensor_fill_normal(ga_tensor *tensor, double mean, double standard_deviation, uint64_t seed);
ga_status ga_tensor_fill_uniform(ga_tensor *tensor, double low, double high, uint64_t seed);

/*
 * Makes a float32 tensor that no operation produced a leaf for gradients (1) or an ordinary tensor (0). A parameter of
 * an optimizer is frozen by 0: no gradient flows to it, and a step while it is frozen leaves it, its state and the
 * clock of its bias correction alone, whatever was accumulated for it before. It goes on from there after 1. Errors:
 * DTYPE, STATE.
 */
ga_status ga_tensor_set_requires_grad(ga_tensor *tensor, int32_t requires_grad);
ga_status ga_tensor_requires_grad(const ga_tensor *tensor, int32_t *out);

/*
 * Makes the library refuse every later write to the tensor, and to all on the same memory, with
 * GA_ERROR_INVALID_ARGUMENT: for memory that others count on, or that cannot be written to. This cannot be undone.
 * A parameter of an optimizer is written to, so it cannot be read-only. Errors: STATE for one.
 */
ga_status ga_tensor_set_read_only(ga_tensor *tensor);
ga_status ga_tensor_read_only(const ga_tensor *tensor, int32_t *out);

/* Names a tensor for error sentences; at most 63 bytes of the name are kept. */
ga_status ga_tensor_set_name(ga_tensor *tensor, const char *name);

/* A tensor on the same memory that no gradient flows through. */
ga_status ga_tensor_detach(ga_tensor **out, const ga_tensor *tensor);

/*
 * Creates a tensor on the memory of a tensor of another library, without a copy, by DLPack 1.x, or 0.x (_unversioned).
 * managed: what the producer made. With success it is the library's, which calls its deleter once, on any thread, when
 * no view, graph or accumulator needs the memory any more. After an error it is still the caller's, untouched.
 * The tensor is read-only if the struct says so. One without a version cannot say: where the producer's memory must not
 * be written to, call ga_tensor_set_read_only.
 * Errors: UNSUPPORTED for another major version or for a device that is not the CPU; DTYPE for element types that the
 * library lacks; INVALID_ARGUMENT for data, shape or strides that make no tensor here, such as a negative stride, more
 * than GA_MAX_RANK axes or elements that are not aligned; OVERFLOW.
 */
ga_status ga_tensor_from_dlpack(ga_tensor **out, struct DLManagedTensorVersioned *managed);
ga_status ga_tensor_from_dlpack_unversioned(ga_tensor **out, struct DLManagedTensor *managed);

/*
 * Makes a struct of DLPack 1.x, or 0.x (_unversioned), that another library can take over.
 * copy: 0 shares the memory, which then lives as long as either side needs it; 1 hands over a contiguous copy, and says
 * so in the struct. No gradient flows through it.
 * The struct is the caller's to hand over, or to give back by calling the deleter in it, once, on any thread. A
 * read-only tensor says so in the struct; without a version that cannot be said.
 * Errors: UNSUPPORTED for a read-only tensor that is neither copied nor versioned; OUT_OF_MEMORY for the copy.
 */
ga_status ga_tensor_to_dlpack(struct DLManagedTensorVersioned **out, const ga_tensor *tensor, int32_t copy);
ga_status ga_tensor_to_dlpack_unversioned(struct DLManagedTensor **out, const ga_tensor *tensor, int32_t copy);

/*
 * For a program with a Python interpreter in its process, which these find at run time; without one they do nothing.
 * ga_python_release is a release function for ga_tensor_wrap whose user is a PyObject: it drops one reference to it,
 * holding the interpreter's lock. ga_python_capsule_destroy is the destructor of a capsule "dltensor_versioned" or
 * "dltensor", a PyObject, of what ga_tensor_to_dlpack made: it calls the deleter if nobody has taken the struct over.
 * ga_python_array_addresses writes where the elements of numpy arrays are, NULL for None, and returns how many of them it
 * could take: it stops at one that is no numpy.ndarray of this dtype and shape, contiguous and aligned. It is called with
 * the interpreter's lock held. arrays: a tuple of count objects. shapes: for each, the number of its axes and then their
 * lengths. dtype, type: PyObjects, the dtype that all must have and numpy.ndarray. head_bytes: the size of an object.
 */
void ga_python_release(void *data, void *object);
void ga_python_capsule_destroy(void *capsule);
int64_t ga_python_array_addresses(const void **addresses, void *arrays, int64_t count, const int64_t *shapes,
                                  const void *dtype, const void *type, int64_t head_bytes);

/* Opens a scope on this thread. Scopes nest and are closed in reverse order. */
ga_status ga_scope_open(ga_scope **out);

/*
 * Closes the scope and frees the tensors that were made in it, except the keep_count tensors of keep: these
 * move to the scope around it, or to the caller if there is none. Errors: STATE if an inner one is open.
 */
ga_status ga_scope_close(ga_scope *scope, ga_tensor *const *keep, int64_t keep_count);

/* ====== Operations ====================================================================================== */
/*
 * Arithmetic is in float32 or, see ga_set_compute_dtype, in bfloat16 or float16. Operands are of any floating type.
 * Biases and what a normalisation scales with are float32. An operation is recorded if an operand needs a gradient and
 * recording is on.
 */

/* Elementwise, with broadcasting: shapes are aligned at their last axis, and an axis of 1 is repeated. */
ga_status ga_add(ga_tensor **out, const ga_tensor *a, const ga_tensor *b);
ga_status ga_subtract(ga_tensor **out, const ga_tensor *a, const ga_tensor *b);
ga_status ga_multiply(ga_tensor **out, const ga_tensor *a, const ga_tensor *b);
ga_status ga_divide(ga_tensor **out, const ga_tensor *a, const ga_tensor *b);

/* a [..., m, k] times b [..., k, n] gives [..., m, n]; leading axes are broadcast. */
ga_status ga_matmul(ga_tensor **out, const ga_tensor *a, const ga_tensor *b);

/* x [..., in] times the transpose of weight [out, in], plus bias [out] or NULL, gives [..., out]. */
ga_status ga_linear(ga_tensor **out, const ga_tensor *x, const ga_tensor *weight, const ga_tensor *bias);

/* Normalises the last axis of x [..., c] to mean 0 and variance 1, times weight [c], plus bias [c]; either
 * may be NULL. eps is added to the variance. */
ga_status ga_layer_norm(ga_tensor **out, const ga_tensor *x, const ga_tensor *weight, const ga_tensor *bias,
                        double eps);

#define GA_GELU_ERF 0  /* x times the normal distribution function                                        */
#define GA_GELU_TANH 1 /* its approximation by tanh, as in GPT-2                                          */
ga_status ga_gelu(ga_tensor **out, const ga_tensor *x, int32_t approximation);

ga_status ga_relu(ga_tensor **out, const ga_tensor *x);

/* Exponentials that sum to 1 along an axis; a negative axis counts from the last. */
ga_status ga_softmax(ga_tensor **out, const ga_tensor *x, int32_t axis);

#define GA_REDUCTION_SUM 0
#define GA_REDUCTION_MEAN 1

/* An ignore_index that no target can have. */
#define GA_NO_IGNORE_INDEX (-9223372036854775807 - 1)

/*
 * Negative log-likelihood of targets [...] (int32 or int64 classes) under softmax(logits [..., classes]).
 * Targets equal to ignore_index count nothing, neither in the sum nor in the mean's divisor. Errors: INDEX
 * if a target is outside of 0 ... classes - 1.
 */
ga_status ga_cross_entropy(ga_tensor **out, const ga_tensor *logits, const ga_tensor *targets,
                           int64_t ignore_index, int32_t reduction);

/*
 * ga_linear without a bias and ga_cross_entropy one after the other, to the bit in float32: hidden [..., c] times the
 * transpose of weight [classes, c] are the logits, which share their memory with their gradient.
 */
ga_status ga_linear_cross_entropy(ga_tensor **out, const ga_tensor *hidden, const ga_tensor *weight,
                                  const ga_tensor *targets, int64_t ignore_index, int32_t reduction);

/* The squares of prediction - target, of equal shapes, summed or averaged over all elements. */
ga_status ga_mse(ga_tensor **out, const ga_tensor *prediction, const ga_tensor *target, int32_t reduction);

/* Rows of weight [rows, c] picked by indices [...] (int32 or int64): [..., c]. Errors: INDEX. */
ga_status ga_embedding(ga_tensor **out, const ga_tensor *weight, const ga_tensor *indices);

/*
 * Causal multi-head attention: q, k and v [batch, time, channels] are cut into heads along the channels,
 * and position t attends to positions 0 ... t with scores scaled by 1/sqrt(channels/heads). The scores are
 * made block by block; the whole time x time table never exists.
 */
ga_status ga_causal_attention(ga_tensor **out, const ga_tensor *q, const ga_tensor *k, const ga_tensor *v,
                              int32_t heads);

/* The same elements in another shape; one size may be -1. A view where the strides allow it. */
ga_status ga_reshape(ga_tensor **out, const ga_tensor *x, int32_t rank, const int64_t *shape);

/* A view with two axes exchanged; negative axes count from the last. */
ga_status ga_transpose(ga_tensor **out, const ga_tensor *x, int32_t axis_a, int32_t axis_b);

/* A view of the elements start ... stop - 1 along an axis. */
ga_status ga_slice(ga_tensor **out, const ga_tensor *x, int32_t axis, int64_t start, int64_t stop);

/* The sum or mean over axis_count different axes; over all if axis_count is 0. The axes are dropped, or kept
 * with size 1 if keep_axes is not 0. */
ga_status ga_sum(ga_tensor **out, const ga_tensor *x, const int32_t *axes, int32_t axis_count,
                 int32_t keep_axes);
ga_status ga_mean(ga_tensor **out, const ga_tensor *x, const int32_t *axes, int32_t axis_count,
                  int32_t keep_axes);

/* The elements converted to another dtype, to the nearest with ties to even; a gradient flows between
 * floating types. Errors: DTYPE for a conversion to or from integers that is not exact in kind. */
ga_status ga_cast(ga_tensor **out, const ga_tensor *x, int32_t dtype);

/* ====== Autograd ======================================================================================== */

/* Turns recording on this thread on (1, the default) or off (0), as for an evaluation. */
ga_status ga_set_recording(int32_t recording);
ga_status ga_recording(int32_t *out);

/*
 * Writes the gradient of the scalar loss with respect to each of the count leaves inputs to out, as new
 * tensors; zeros where the loss does not depend on one. It touches no accumulator. The graph is used up, also
 * where backward fails half-way.
 */
ga_status ga_gradients(ga_tensor **out, const ga_tensor *loss, ga_tensor *const *inputs, int64_t count);

/* Computes *out from inputs and returns GA_OK, or the status of what failed; the tensors it makes are freed for it. */
typedef ga_status (*ga_block_fn)(ga_tensor **out, ga_tensor *const *inputs, int64_t count, void *user);

/*
 * Runs block on inputs and keeps none of its activations: backward runs it again. Results and gradients have
 * the same bits as without. The block computes the same each time; besides its inputs it may use parameters
 * and tensors without a gradient. After success, release(user) is called once when it is not needed any more;
 * release may be NULL. Errors: those of the block; INVALID_ARGUMENT if it uses another tensor with a gradient.
 */
ga_status ga_checkpoint(ga_tensor **out, ga_tensor *const *inputs, int64_t count, ga_block_fn block, void *user,
                        void (*release)(void *user));

/* ====== Optimizers ====================================================================================== */

typedef struct ga_optimizer ga_optimizer;

/* Stochastic gradient descent, as torch.optim.SGD (weight decay is added to the gradient). */
typedef struct ga_sgd_options {
    uint32_t struct_size;
    int32_t nesterov; /* 0 or 1; 1 needs momentum                                                         */
    double learning_rate;
    double momentum;
    double weight_decay;
} ga_sgd_options;
#define GA_SGD_OPTIONS_INIT { sizeof(ga_sgd_options), 0, 1e-3, 0.0, 0.0 }

/*
 * Adam (Kingma and Ba, arXiv 1412.6980), as torch.optim.Adam: weight decay is added to the gradient. Bias
 * correction counts the updates that had a gradient for the parameter, so it is right for one that gets its first late.
 */
typedef struct ga_adam_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
} ga_adam_options;
#define GA_ADAM_OPTIONS_INIT { sizeof(ga_adam_options), 0, 1e-3, 0.9, 0.999, 1e-8, 0.0 }

/* AdamW (Loshchilov and Hutter, arXiv 1711.05101), as torch.optim.AdamW: weight decay is decoupled. */
typedef struct ga_adamw_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
} ga_adamw_options;
#define GA_ADAMW_OPTIONS_INIT { sizeof(ga_adamw_options), 0, 1e-3, 0.9, 0.999, 1e-8, 1e-2 }

/*
 * Rectified Adam (Liu et al., arXiv 1908.03265), as torch.optim.RAdam: a step of momentum until enough gradients
 * were seen to divide by the root of the second moment.
 */
typedef struct ga_radam_options {
    uint32_t struct_size;
    int32_t decoupled_weight_decay; /* 1: as in AdamW, 0: as in Adam                                    */
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
} ga_radam_options;
#define GA_RADAM_OPTIONS_INIT { sizeof(ga_radam_options), 0, 1e-3, 0.9, 0.999, 1e-8, 0.0 }

/* Adam with Nesterov's momentum (Dozat, ICLR workshop 2016), as torch.optim.NAdam. */
typedef struct ga_nadam_options {
    uint32_t struct_size;
    int32_t decoupled_weight_decay; /* 1: as in AdamW, 0: as in Adam                                    */
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    double momentum_decay; /* how fast the momentum of update t rises to beta1, by 0.96^(t * momentum_decay)*/
} ga_nadam_options;
#define GA_NADAM_OPTIONS_INIT { sizeof(ga_nadam_options), 0, 2e-3, 0.9, 0.999, 1e-8, 0.0, 4e-3 }

/*
 * Lion (Chen et al., arXiv 2302.06675), as its authors' PyTorch version: the sign of a momentum is the direction, and
 * weight decay is decoupled. It wants a learning rate 3 to 10 times smaller than AdamW's.
 */
typedef struct ga_lion_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double beta1; /* the share of the momentum in the direction of an update                            */
    double beta2; /* the share of the momentum in the next momentum                                     */
    double weight_decay;
} ga_lion_options;
#define GA_LION_OPTIONS_INIT { sizeof(ga_lion_options), 0, 1e-4, 0.9, 0.99, 0.0 }

/*
 * LAMB (You et al., arXiv 1904.00962): the direction of AdamW, with a step per parameter that is learning_rate times as
 * long as the parameter; of a parameter or a direction of zeros, learning_rate times the direction.
 */
typedef struct ga_lamb_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
} ga_lamb_options;
#define GA_LAMB_OPTIONS_INIT { sizeof(ga_lamb_options), 0, 1e-3, 0.9, 0.999, 1e-6, 1e-2 }

/*
 * LARS (You et al., arXiv 1708.03888): with g the gradient and p the parameter, a momentum of
 * rate * (g + weight_decay * p), which p loses. The rate is
 * learning_rate * trust_coefficient * |p| / (|g| + weight_decay * |p|), or learning_rate where |p| or |g| is 0.
 */
typedef struct ga_lars_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double momentum;
    double weight_decay;
    double trust_coefficient;
} ga_lars_options;
#define GA_LARS_OPTIONS_INIT { sizeof(ga_lars_options), 0, 1.0, 0.9, 5e-4, 1e-3 }

/*
 * Adafactor (Shazeer and Stern, arXiv 1804.04235), as torch.optim.Adafactor: the second moments of a parameter with two
 * axes or more are kept as means of rows and columns of its last two, and its steps are relative to its size.
 */
typedef struct ga_adafactor_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate; /* the largest relative step, and that of weight decay                        */
    double beta2_decay; /* at most 0: update t moves the second moments by the share t^beta2_decay      */
    double eps1; /* the least root of a second moment, above 0                                          */
    double eps2; /* the least size of a parameter that steps are relative to                            */
    double clipping_threshold; /* the largest root of the mean square of an update, at least 1          */
    double weight_decay;
} ga_adafactor_options;
#define GA_ADAFACTOR_OPTIONS_INIT \
    { sizeof(ga_adafactor_options), 0, 1e-2, -0.8, 1.1920928955078125e-07, 1e-3, 1.0, 0.0 }

/*
 * Muon (Jordan et al., kellerjordan.github.io/posts/muon), as torch.optim.Muon: the momentum of a parameter with two axes,
 * made nearly orthogonal by ns_steps Newton-Schulz iterations, is its direction. All other parameters are updated by
 * AdamW, and so are those that adamw_parameters names by their place, such as an embedding and an output head. All of it
 * is float32, where PyTorch iterates in bfloat16. Besides its state it keeps memory to work in, of two to five times the
 * largest matrix and a few MiB for each thread.
 */
#define GA_MUON_ORIGINAL 0           /* learning_rate times the root of max(1, rows / columns)             */
#define GA_MUON_MATCH_RMS_ADAMW 1    /* times 0.2 and the root of max(rows, columns), as AdamW's steps     */
#define GA_MUON_SPECTRAL_UNCLAMPED 2 /* times the root of rows / columns                                   */
typedef struct ga_muon_options {
    uint32_t struct_size;
    int32_t nesterov; /* 0 or 1                                                                         */
    double learning_rate;
    double weight_decay; /* decoupled                                                                   */
    double momentum; /* in 0 ... 1                                                                      */
    double ns_coefficient_a; /* an iteration makes a x + b x^3 + c x^5 of a singular value              */
    double ns_coefficient_b;
    double ns_coefficient_c;
    double eps; /* the least length that a momentum is divided by, above 0                              */
    int32_t ns_steps; /* in 0 ... 99                                                                    */
    int32_t adjust_lr; /* one of GA_MUON_...                                                            */
    double adamw_learning_rate_ratio; /* AdamW's learning rate over learning_rate                       */
    double adamw_beta1;
    double adamw_beta2;
    double adamw_eps;
    double adamw_weight_decay;
    const int64_t *adamw_parameters; /* read by ga_muon_create; NULL if there are none                  */
    int64_t adamw_parameter_count;
} ga_muon_options;
#define GA_MUON_OPTIONS_INIT \
    { sizeof(ga_muon_options), 1, 1e-3, 0.1, 0.95, 3.4445, -4.775, 2.0315, 1e-7, 5, GA_MUON_ORIGINAL, 1.0, 0.9, 0.999, \
      1e-8, 1e-2, NULL, 0 }

/*
 * AdamW with moments of 8 bits: blocks of 256 elements, each times its largest magnitude (Dettmers et al., arXiv
 * 2110.02861), in the codes of G.711's companding (u-law): a sign, 3 bits of exponent and 4 of mantissa for the first moment,
 * 3 and 5 for the root of the second. A quarter of AdamW's state and about half of its traffic.
 */
typedef struct ga_adamw8bit_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate;
    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    int64_t min_8bit_size; /* parameters with fewer elements keep float32 moments; 0 or more            */
} ga_adamw8bit_options;
#define GA_ADAMW8BIT_OPTIONS_INIT { sizeof(ga_adamw8bit_options), 0, 1e-3, 0.9, 0.999, 1e-8, 1e-2, 4096 }

/* What a rule of the caller is told besides its arrays. */
typedef struct ga_update {
    uint32_t struct_size;
    uint32_t reserved;
    int64_t update;        /* counts from 1 the updates that this parameter has part in                   */
    int64_t parameter;     /* its place among the optimizer's parameters                                  */
    int64_t start;         /* the element of it that the arrays start at: 0 unless elementwise            */
    double learning_rate;
    double gradient_scale; /* to multiply the gradient by: 1 over the window's weight, times the clip factor */
    double weight_decay;   /* that of the options, or of the parameter's group                            */
} ga_update;
#define GA_UPDATE_INIT { sizeof(ga_update), 0, 0, 0, 0, 0.0, 0.0, 0.0 }

/*
 * Updates count elements of a parameter and of its slots, which are arrays of the parameter's size that the library
 * keeps, zeros at first; slots is NULL if there are none. The arrays are valid during the call. It runs with denormals
 * flushed, and must not use its optimizer or the accumulator of that.
 * Returns GA_OK. Anything else ends the step: ga_step returns it (a number that is no ga_status as INVALID_ARGUMENT),
 * the update is not counted and the window is dropped. What update has written until then stays: parameters that it was
 * called for are changed, with their slots, and the others are as they were.
 */
typedef ga_status (*ga_update_fn)(float *parameter, const float *gradient, float *const *slots, int64_t count,
                                  const ga_update *update, void *user);

typedef struct ga_custom_options {
    uint32_t struct_size;
    int32_t elementwise; /* 0: called once per parameter, on the thread of ga_step. 1: every element is   */
                         /* updated alone: called for pieces, on several threads at once                  */
    double learning_rate;
    int64_t slot_count;  /* in 0 ... 64                                                                   */
    double weight_decay; /* what update is told, and a group can have another of                          */
} ga_custom_options;
#define GA_CUSTOM_OPTIONS_INIT { sizeof(ga_custom_options), 0, 1e-3, 0, 0.0 }

/*
 * Creates an optimizer of count different parameters: contiguous float32 leaves. They become parameters if
 * they were not. options NULL takes the defaults. Errors: INVALID_ARGUMENT for an option outside of its range;
 * STATE if a parameter belongs to another optimizer; OUT_OF_MEMORY.
 */
ga_status ga_sgd_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                        const ga_sgd_options *options);
ga_status ga_adam_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                         const ga_adam_options *options);
ga_status ga_adamw_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                          const ga_adamw_options *options);
ga_status ga_radam_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                          const ga_radam_options *options);
ga_status ga_nadam_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                          const ga_nadam_options *options);
ga_status ga_lion_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                         const ga_lion_options *options);
ga_status ga_lamb_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                         const ga_lamb_options *options);
ga_status ga_lars_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                         const ga_lars_options *options);
ga_status ga_adafactor_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                              const ga_adafactor_options *options);
ga_status ga_muon_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                         const ga_muon_options *options);
ga_status ga_adamw8bit_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count,
                              const ga_adamw8bit_options *options);

/*
 * The same with a rule of the caller. After success, release(user) is called once when the optimizer is not needed any
 * more; release may be NULL. Errors: INVALID_ARGUMENT if update is NULL.
 */
ga_status ga_custom_create(ga_optimizer **out, ga_tensor *const *parameters, int64_t count, ga_update_fn update,
                           void *user, void (*release)(void *user), const ga_custom_options *options);

void ga_optimizer_free(ga_optimizer *optimizer);

/*
 * The learning rate as it was set: that of every update, or what a schedule multiplies, see
 * ga_optimizer_next_learning_rate. It takes effect at the next update. Errors: INVALID_ARGUMENT.
 */
ga_status ga_optimizer_set_learning_rate(ga_optimizer *optimizer, double learning_rate);
ga_status ga_optimizer_learning_rate(const ga_optimizer *optimizer, double *out);

/* What some parameters of an optimizer have of their own. */
typedef struct ga_group_options {
    uint32_t struct_size;
    uint32_t reserved;
    double learning_rate_scale; /* what the optimizer's learning rate is multiplied by; 0 or more         */
    double weight_decay;        /* instead of the optimizer's; below 0: the optimizer's                   */
    double max_grad_norm;       /* clip the norm of the group's mean gradient to this, apart from all     */
                                /* others; 0: the accumulator clips it with the rest                      */
} ga_group_options;
#define GA_GROUP_OPTIONS_INIT { sizeof(ga_group_options), 0, 1.0, -1.0, 0.0 }

/*
 * Makes a group of count parameters of the optimizer that are in none; out is its number, from 0. Parameters in no group
 * have what the optimizer and its accumulator were created with. options NULL takes the defaults.
 * Errors: INVALID_ARGUMENT for a tensor that is no parameter of this optimizer or is there twice, or an option outside of
 * its range; STATE if a parameter is in a group.
 */
ga_status ga_optimizer_add_group(ga_optimizer *optimizer, ga_tensor *const *parameters, int64_t count,
                                 const ga_group_options *options, int64_t *out);

/* Changes a group, from the next update on. Errors: INDEX if there is no such group; INVALID_ARGUMENT. */
ga_status ga_optimizer_set_group(ga_optimizer *optimizer, int64_t group, const ga_group_options *options);
ga_status ga_optimizer_group(const ga_optimizer *optimizer, int64_t group, ga_group_options *out);
ga_status ga_optimizer_group_count(const ga_optimizer *optimizer, int64_t *out);

/* ====== Schedules ======================================================================================= */
/*
 * What changes as training goes on reads the optimizer's clock, and only an applied update moves that: by 1, or by the
 * weight of its window, in samples or tokens. A micro-batch does not, nor does a window that is skipped or zeroed.
 */
#define GA_CLOCK_UPDATES 0
#define GA_CLOCK_WEIGHT 1

/* Reads the clock: how many updates were applied, or how much weight. */
ga_status ga_optimizer_clock(const ga_optimizer *optimizer, int32_t clock, double *out);

/*
 * What a schedule multiplies the learning rate by, with t the reading of the clock at the update, 0 at the first one.
 * Durations and times are readings of the clock. Fields that are not named with a kind are to be left as they are.
 */
#define GA_SCHEDULE_CONSTANT 0     /* 1                                                                    */
#define GA_SCHEDULE_LINEAR 1       /* from 1 to end_factor at duration, then that                          */
#define GA_SCHEDULE_COSINE 2       /* the same along half a wave (Loshchilov and Hutter, arXiv 1608.03983) */
#define GA_SCHEDULE_INVERSE_SQRT 3 /* sqrt(timescale / (timescale + t)) (Vaswani et al., arXiv 1706.03762) */
#define GA_SCHEDULE_STEP 4         /* times gamma at the end of each period                                */
#define GA_SCHEDULE_EXPONENTIAL 5  /* gamma^(t / period)                                                   */
#define GA_SCHEDULE_ONE_CYCLE 6    /* up to 1 and down again (Smith and Topin, arXiv 1708.07120): from     */
                                   /* 1 / div_factor to 1 at pct_start of duration, then to                */
                                   /* 1 / div_factor / final_div_factor; anneal says along what            */
#define GA_SCHEDULE_PLATEAU 7      /* times gamma, but not below min_factor, when a value has not improved */
                                   /* for more than patience values, as torch's ReduceLROnPlateau          */
#define GA_SCHEDULE_TABLE 8        /* factors[i] at times[i], and between them                             */

/* How a one-cycle schedule rises and falls. */
#define GA_ANNEAL_COSINE 0
#define GA_ANNEAL_LINEAR 1

/* What a plateau looks at: the mean loss of each applied window, or each ga_optimizer_report_metric. */
#define GA_PLATEAU_WINDOW_LOSS 0
#define GA_PLATEAU_METRIC 1

/* Whether a value is to fall or to rise. */
#define GA_PLATEAU_MIN 0
#define GA_PLATEAU_MAX 1

/* Whether an improvement is one by the share threshold of the best value, or by threshold. */
#define GA_THRESHOLD_RELATIVE 0
#define GA_THRESHOLD_ABSOLUTE 1

typedef struct ga_schedule_options {
    uint32_t struct_size;
    int32_t kind;               /* one of GA_SCHEDULE_...                                                  */
    int32_t clock;              /* one of GA_CLOCK_...                                                     */
    int32_t reserved;
    double start;               /* the reading of the optimizer's clock that is 0 to the schedule          */
    double warmup;              /* how long the factor first rises along a straight line, to what the kind */
                                /* begins with; duration and times include it, other kinds begin after it  */
    double warmup_start_factor; /* in 0 ... 1: what of it the line begins with; 0: no change by update 1   */
    double duration;            /* linear, cosine, one-cycle: above warmup                                 */
    double end_factor;          /* linear, cosine                                                          */
    double period;              /* step, exponential                                                       */
    double gamma;               /* step, exponential: above 0; plateau: also below 1                       */
    double timescale;           /* inverse square root; 0: warmup                                          */
    double pct_start;           /* one-cycle                                                               */
    double div_factor;          /* one-cycle: at least 1                                                   */
    double final_div_factor;    /* one-cycle: at least 1                                                   */
    int32_t anneal;             /* one-cycle: one of GA_ANNEAL_...                                         */
    int32_t plateau_signal;     /* plateau, as what follows: GA_PLATEAU_WINDOW_LOSS or _METRIC             */
    int32_t plateau_mode;       /* GA_PLATEAU_MIN or _MAX                                                  */
    int32_t threshold_mode;     /* one of GA_THRESHOLD_...                                                 */
    double threshold;
    double min_factor;          /* in 0 ... 1                                                              */
    int64_t patience;           /* values without an improvement that are borne                            */
    int64_t cooldown;           /* values after a drop that do not count                                   */
    const double *times;        /* table: they rise; table_count of them                                   */
    const double *factors;      /* table: one for each time; the first and the last hold beyond their ends */
    int64_t table_count;
    int32_t interpolated;       /* table: 1: along straight lines between times, 0: it jumps at each       */
    int32_t reserved2;
} ga_schedule_options;
#define GA_SCHEDULE_OPTIONS_INIT \
    { sizeof(ga_schedule_options), GA_SCHEDULE_CONSTANT, GA_CLOCK_UPDATES, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, \
      0.3, 25.0, 1e4, GA_ANNEAL_COSINE, GA_PLATEAU_WINDOW_LOSS, GA_PLATEAU_MIN, GA_THRESHOLD_RELATIVE, 1e-4, 0.0, 10, \
      0, NULL, NULL, 0, 1, 0 }

/*
 * Lets each update have the learning rate that was set times the schedule's factor; options NULL ends that. They are
 * read by this call. A schedule reads a clock that goes on from where it is; a plateau begins anew.
 * Errors: INVALID_ARGUMENT for a value outside of its range or one that the kind does not have.
 */
ga_status ga_optimizer_set_schedule(ga_optimizer *optimizer, const ga_schedule_options *options);

/*
 * Shows a metric, such as a loss of validation, to a plateau that looks at metrics. One of the warm-up does not count.
 * Errors: STATE if the schedule is no such plateau; NON_FINITE.
 */
ga_status ga_optimizer_report_metric(ga_optimizer *optimizer, double metric);

/*
 * The learning rate of the next update, without what ga_optimizer_set_scaling makes of it: that waits for the weight of
 * the window. Errors: OVERFLOW if it is too large for float32; ga_step is refused then, too.
 */
ga_status ga_optimizer_next_learning_rate(const ga_optimizer *optimizer, double *out);

/* The factor of a schedule at a reading of the clock, 0 or more; a plateau has that of its warm-up. Errors: OVERFLOW. */
ga_status ga_schedule_factor(const ga_schedule_options *options, double clock, double *out);

/*
 * What the learning rate of an update is multiplied by, with x the weight of its window over base_weight, the samples or
 * tokens of the window that hyperparameters were chosen for.
 */
#define GA_SCALING_NONE 0   /* 1                                                                           */
#define GA_SCALING_LINEAR 1 /* x, as fits SGD (Goyal et al., arXiv 1706.02677)                             */
#define GA_SCALING_SQRT 2   /* the root of x, as fits Adam (Malladi et al., arXiv 2205.10287)              */
typedef struct ga_scaling_options {
    uint32_t struct_size;
    int32_t rule;            /* one of GA_SCALING_...                                                      */
    double base_weight;      /* above 0, and to be given if an update is to follow anything                */
    int32_t beta2_half_life; /* 1: beta2 becomes beta2^x in the update, so that second moments have a      */
                             /* half-life in samples or tokens (Marek et al., arXiv 2507.07101), else 0    */
    int32_t reserved;
} ga_scaling_options;
#define GA_SCALING_OPTIONS_INIT { sizeof(ga_scaling_options), GA_SCALING_NONE, 0.0, 0, 0 }

/*
 * Lets updates follow the weight of their window, from the next one on; options NULL ends that. Bias correction is by
 * the product of all betas. beta1 stays. A window of more than 1e9 times base_weight, or less than its 1e-9th, refuses
 * ga_step with GA_ERROR_OVERFLOW and stays as it is.
 * Errors: INVALID_ARGUMENT; also for beta2_half_life with a rule without a beta2 that may change from update to
 * update: all but Adam, AdamW, NAdam, LAMB, AdamW with 8-bit state and, in its AdamW, Muon.
 */
ga_status ga_optimizer_set_scaling(ga_optimizer *optimizer, const ga_scaling_options *options);

/* ====== State of optimizers ============================================================================= */
/*
 * What updates have made of an optimizer, as bytes: the arrays that its rule keeps and their clocks, the clock of
 * schedules, and what a plateau has seen. A program that brings it back together with the weights, into an optimizer that
 * it has created and set up as before, goes on from the end of a window to the bit. The state has no weights,
 * hyperparameters, groups, schedules, scalings or averages, nothing of a window in progress, and not what an accumulator
 * has seen: skips in a row, and the losses and norms that max_loss_z_score and max_norm_z_score look at.
 *
 * The bytes are the same on every machine: words of 8 bytes, little endian, each an integer or a double. A text is its
 * length in bytes and these, a shape is its number of axes and their lengths, and bytes end with zeros up to a whole word.
 *     "ga_optim", version: 1, size of the state in bytes, text: name of the rule as in ga_<rule>_create
 *     updates applied, double: their weight
 *     plateau: double: factor, 1 if it has seen a value, double: the best one or 0, values without an improvement,
 *         values that will not count
 *     number of parameters, and for each
 *         shape, updates, double: updates of the base weight (see beta2_half_life), 1 if its moments hold a part of a
 *             window that it was frozen in (see GA_ACCUMULATE_INTO_MOMENTS)
 *         number of arrays, and for each: text: name as in PyTorch, text: "float32" or "uint8", shape, its elements
 */

/* The size of the state. It is the same at any time. */
ga_status ga_optimizer_state_bytes(const ga_optimizer *optimizer, int64_t *out);

/*
 * Writes the state to out, which has room for size_bytes: what ga_optimizer_state_bytes gives.
 * Errors: INVALID_ARGUMENT if it is another size; STATE from a callback of an accumulate or a step, and in the middle of
 * a window whose gradients go into moments.
 */
ga_status ga_optimizer_save_state(const ga_optimizer *optimizer, void *out, int64_t size_bytes);

/*
 * Goes on from a state, of size_bytes, of an optimizer with the same rule and shapes. Set a schedule before: a new plateau
 * has seen nothing. The whole state is checked, and only then anything changes; elements of arrays may be anything.
 * Errors: INVALID_ARGUMENT for a state of another rule, or one that is cut short or damaged; SHAPE; UNSUPPORTED for one of
 * a newer library; STATE as for saving, and for moments that hold a part of a window if the accumulator takes none in.
 */
ga_status ga_optimizer_load_state(ga_optimizer *optimizer, const void *state, int64_t size_bytes);

/* ====== Averages of weights ============================================================================= */

typedef struct ga_average ga_average;

/* An exponential moving average: what it keeps of itself at an update. */
typedef struct ga_average_options {
    uint32_t struct_size;
    int32_t clock;    /* what half_life is counted in: GA_CLOCK_UPDATES or, in samples or tokens, _WEIGHT  */
    double decay;     /* the share, in 0 ... 1 without 1                                                   */
    double half_life; /* above 0: in place of decay, the time after which it has kept half                 */
    int32_t warmup;   /* 1: update t, counted from 1, keeps (1 + t) / (10 + t) at most, else 0             */
    int32_t reserved;
} ga_average_options;
#define GA_AVERAGE_OPTIONS_INIT { sizeof(ga_average_options), GA_CLOCK_UPDATES, 0.999, 0.0, 0, 0 }

/*
 * Creates an average of an optimizer's parameters, in float32, which starts as they are. It moves once per applied
 * update, in ga_step. An optimizer may have several. options NULL takes the defaults.
 * Errors: INVALID_ARGUMENT; STATE while another average is swapped in; OUT_OF_MEMORY.
 */
ga_status ga_average_create(ga_average **out, ga_optimizer *optimizer, const ga_average_options *options);

/* Frees the average. If it is swapped in, the parameters get their own weights back first. */
void ga_average_free(ga_average *average);

/* A copy of the averaged weights of parameter index, in the optimizer's order. Errors: INDEX, OUT_OF_MEMORY. */
ga_status ga_average_weights(ga_tensor **out, const ga_average *average, int64_t index);

/*
 * Exchanges the parameters' weights with their averages, as for an evaluation, and brings them back to the bit. In
 * between, their optimizer's windows take nothing: accumulate and step are GA_ERROR_STATE. A loss from before either
 * call whose gradient is made from the weights is refused after it.
 * Errors: STATE if an average of the optimizer is swapped in already, from a callback of an accumulate or a step, or,
 * to swap out, if this one is not in.
 */
ga_status ga_average_swap_in(ga_average *average);
ga_status ga_average_swap_out(ga_average *average);

/* Starts anew from the weights as they are, such as after they were loaded. Errors: STATE while one is swapped in. */
ga_status ga_average_reset(ga_average *average);

/* The updates that the average has seen since it was created, reset or loaded. */
ga_status ga_average_updates(const ga_average *average, int64_t *out);

/*
 * Goes on from averages of before: one float32 tensor per parameter, in the optimizer's order and with its shape, which
 * are copied, and the updates that they had seen. All is checked before anything changes.
 * Errors: INVALID_ARGUMENT for another count, or updates below 0 or above 2^53; DTYPE; SHAPE; STATE while an average of
 * the optimizer is swapped in; OUT_OF_MEMORY.
 */
ga_status ga_average_load(ga_average *average, const ga_tensor *const *weights, int64_t count, int64_t updates);

/* ====== Splitting a batch =============================================================================== */
/*
 * Cuts a batch of samples into micro-batches of consecutive samples: micro-batch i holds the samples
 * boundaries[i] ... boundaries[i + 1] - 1. boundaries has one entry more than there are micro-batches, the first 0 and
 * the last samples.
 * boundaries: has room for capacity numbers, of which samples + 1 are always enough; NULL to get out_count alone.
 * out_count: the number of micro-batches.
 * Errors: INVALID_ARGUMENT for a batch of no samples, and if capacity is too small.
 */

/* Into micro_batches, in 1 ... samples, of sizes that differ by 1 at most, the larger ones first. */
ga_status ga_split_by_count(int64_t *boundaries, int64_t capacity, int64_t *out_count, int64_t samples,
                            int64_t micro_batches);

/* Into micro-batches of size samples, at least 1, and a smaller one at the end if that does not divide the batch. */
ga_status ga_split_by_size(int64_t *boundaries, int64_t capacity, int64_t *out_count, int64_t samples, int64_t size);

/*
 * Into micro-batches of as many samples as fit token_budget, at least 1. lengths: the tokens of each sample.
 * padded: 1 if samples are padded to the longest of their micro-batch and all of it counts, else 0.
 * Errors: INVALID_ARGUMENT for a sample that is longer than the budget or has a negative length.
 */
ga_status ga_split_by_tokens(int64_t *boundaries, int64_t capacity, int64_t *out_count, const int64_t *lengths,
                             int64_t samples, int64_t token_budget, int32_t padded);

/* ====== Loss scaling ==================================================================================== */
/*
 * The number that losses are multiplied by, so that gradients in half precision do not vanish: it goes down when they
 * overflow, and up again when they have not for a while.
 *
 * With ga_accumulator_set_loss_scaler everything happens by itself. Each window keeps the scale that it began with, and
 * the step divides by it along with the weight, in the same multiplication. One scaler can serve several accumulators, of
 * which one can skip while another steps. Their windows are counted in rounds, of which each gives one update of the
 * scale, as torch.amp.GradScaler.update(): a round takes in one window of each accumulator, and is over when each has
 * ended one, or when one that has begins another. An overflow tells of its scale and those above, its absence of its
 * scale and those below.
 *
 * A window ends with its step. Where it is dropped instead, by ga_zero, ga_data_end or ga_data_begin, it counts for what
 * had been found of its gradients: by ga_unscale, of which an overflow lowers the scale and a finite norm counts towards
 * growth, as in torch.amp.GradScaler, or by isolated mode, where that has dropped a micro-batch for an overflow. One that
 * is dropped before anything has looked at it tells nothing, whatever it held, and the scale stays.
 *
 * With gradients of your own, and no accumulator:
 *
 *     ga_loss_scaler_scale(scaler, &scale);
 *     ... the backward pass of scale * loss ...
 *     ga_loss_scaler_unscale(scaler, gradients, element_counts, count, GA_FLOAT32, scale, 0, &norm);
 *     if (norm is finite) ... clip and step ...
 *     ga_loss_scaler_update(scaler);
 *
 * Accumulators that share a scaler are used by one thread at a time, as is the scaler.
 */

typedef struct ga_loss_scaler ga_loss_scaler;

typedef struct ga_loss_scaler_options {
    uint32_t struct_size;
    int32_t dynamic;         /* 1; or 0: the scale stays init_scale                                       */
    double init_scale;       /* scales are in 2^-64 ... 2^64                                              */
    double growth_factor;    /* above 1                                                                   */
    double backoff_factor;   /* below 1                                                                   */
    int64_t growth_interval; /* the scale grows after this many updates in a row without an overflow      */
    int64_t hysteresis;      /* it goes down with the last of this many overflows, and each that follows,  */
                             /* counted anew once it has grown                                            */
    double min_scale;        /* it never goes below this                                                  */
    double max_scale;        /* nor above this                                                            */
    int32_t consecutive_hysteresis; /* 1: an update without an overflow begins that count anew as well    */
    int32_t allow_any_scale; /* 0: scales and factors are powers of two, which change no bit of a gradient */
} ga_loss_scaler_options;
#define GA_LOSS_SCALER_OPTIONS_INIT \
    { sizeof(ga_loss_scaler_options), 1, 65536.0, 2.0, 0.5, 2000, 1, 1.0, 16777216.0, 0, 0 }

/* Creates a loss scaler. options NULL takes the defaults. Errors: INVALID_ARGUMENT for an option outside of its range. */
ga_status ga_loss_scaler_create(ga_loss_scaler **out, const ga_loss_scaler_options *options);

/* Frees the handle; accumulators that it was set for go on with it. */
void ga_loss_scaler_free(ga_loss_scaler *scaler);

/*
 * The scale of windows that begin in this round, and of gradients of your own until ga_loss_scaler_update. The next window
 * of an accumulator that has ended one in it begins another round: ga_window_report has its scale.
 */
ga_status ga_loss_scaler_scale(const ga_loss_scaler *scaler, double *out);

/*
 * Divides gradients of your own by the scale that they carry, in place, and looks for NaNs and infinities in the same
 * pass. What was found counts for the next ga_loss_scaler_update, whether you step or not.
 * gradients, element_counts: count contiguous arrays and the number of elements of each; an array may be NULL, and no two
 * share memory.
 * dtype: of all arrays, GA_FLOAT32 or GA_BFLOAT16. scale: what ga_loss_scaler_scale was for them.
 * optimizer: a number of your choice that tells your optimizers apart. An array given under two is divided twice.
 * norm: the 2-norm of all, which is finite exactly if all elements are.
 * Errors: STATE if this optimizer's were unscaled since the last update; DTYPE, for float16 too, in which unscaled
 * gradients vanish: use ga_accumulate_scaled_gradients; INVALID_ARGUMENT for a bad scale, or for arrays that share memory,
 * and nothing was divided.
 */
ga_status ga_loss_scaler_unscale(ga_loss_scaler *scaler, void *const *gradients, const int64_t *element_counts,
                                 int64_t count, int32_t dtype, double scale, int64_t optimizer, double *norm);

/*
 * Ends a round that ga_loss_scaler_unscale had a part in, and updates the scale. Rounds of accumulators alone end by
 * themselves. Errors: STATE if nothing was unscaled, and no window ended, since the last update.
 */
ga_status ga_loss_scaler_update(ga_loss_scaler *scaler);

typedef struct ga_loss_scaler_state {
    uint32_t struct_size;
    uint32_t reserved;
    double scale;
    int64_t growth_tracker;     /* updates without an overflow towards the next growth                    */
    int64_t hysteresis_tracker; /* overflows that are left before the scale goes down, that one included  */
} ga_loss_scaler_state;
#define GA_LOSS_SCALER_STATE_INIT { sizeof(ga_loss_scaler_state), 0, 1.0, 0, 1 }

/*
 * Writes the state that another scaler with the same options goes on from. It is that between two rounds.
 * Errors: STATE in the middle of one, where some accumulators that share the scaler have ended a window and others have
 * not, or gradients were unscaled since the last update: step the others, or call ga_loss_scaler_update first.
 */
ga_status ga_loss_scaler_save(const ga_loss_scaler *scaler, ga_loss_scaler_state *out);

/*
 * Goes on from a state; windows in progress keep their scale, and what is no float32 is rounded to one, as init_scale is.
 * Errors: STATE in the middle of a round, as for ga_loss_scaler_save; INVALID_ARGUMENT for a state that a scaler with
 * these options cannot have.
 */
ga_status ga_loss_scaler_load(ga_loss_scaler *scaler, const ga_loss_scaler_state *state);

/* ====== Accumulation ==================================================================================== */

typedef struct ga_accumulator ga_accumulator;

/* What the sum of the gradients is divided by at the step. */
#define GA_NORMALIZATION_WEIGHT 0 /* the total weight of the window                                       */
#define GA_NORMALIZATION_SUM 1    /* nothing: the update is made of the plain sum                         */

/* What becomes of a window that is not finite, or of such a micro-batch in isolated mode. */
#define GA_ON_NON_FINITE_SKIP 0  /* it is dropped, and the report says so                                 */
#define GA_ON_NON_FINITE_RAISE 1 /* it is dropped, and the call is GA_ERROR_NON_FINITE                    */

/* What the gradients of a micro-batch are added to: see ga_accumulator_create. */
#define GA_ACCUMULATE_INTO_GRADIENTS 0
#define GA_ACCUMULATE_INTO_MOMENTS 1

/* What sums of gradients are kept in: see ga_accumulator_create. */
#define GA_SUM_FLOAT32 0
#define GA_SUM_BFLOAT16_STOCHASTIC 1
#define GA_SUM_BFLOAT16_KAHAN 2
#define GA_SUM_BFLOAT16 3

typedef struct ga_accumulator_options {
    uint32_t struct_size;
    int32_t loss_reduction;     /* what a loss is: GA_REDUCTION_SUM over its weight, or GA_REDUCTION_MEAN  */
    int64_t accumulation_steps; /* micro-batches after which a step is due, at least 1                    */
    double max_grad_norm;       /* clip the global norm to this; 0 does not clip                          */
    double max_grad_value;      /* clip each element to this magnitude; 0 does not clip                   */
    double agc_clipping;        /* clip each unit's norm to this times that of its parameter (0.01 is     */
    double agc_eps;             /* usual), or times agc_eps where that is larger; 0 does not clip         */
    int32_t isolated;           /* 0: micro-batches are added in place; 1: at their commit, see below     */
    int32_t normalization;      /* one of GA_NORMALIZATION_...                                            */
    int32_t on_non_finite;      /* one of GA_ON_NON_FINITE_...                                            */
    int32_t accumulate_into;    /* one of GA_ACCUMULATE_INTO_...                                          */
    int64_t max_consecutive_skips; /* one more skip in a row is an error; 0: no limit                     */
    double max_loss_z_score;    /* skip a window whose loss is this many standard deviations above its    */
    double max_norm_z_score;    /* mean, or whose norm before clipping is; 0: no limit                    */
    int64_t outlier_warmup;     /* applied windows before that, and reach of mean and variance; at least 2 */
    int32_t sum_format;         /* one of GA_SUM_...                                                      */
    int32_t count_underflow;    /* 1: ga_report.underflow is found out                                    */
} ga_accumulator_options;
#define GA_ACCUMULATOR_OPTIONS_INIT { sizeof(ga_accumulator_options), GA_REDUCTION_SUM, 1, 0.0, 0.0, 0.0, 1e-3, \
                                      0, GA_NORMALIZATION_WEIGHT, GA_ON_NON_FINITE_SKIP, \
                                      GA_ACCUMULATE_INTO_GRADIENTS, 0, 0.0, 0.0, 32, GA_SUM_FLOAT32, 0 }

/*
 * Creates the accumulator of an optimizer. options NULL takes the defaults.
 * The mean gradient of a window is clipped once, at its step, in one way: as torch.nn.utils.clip_grad_norm_
 * (max_grad_norm) or clip_grad_value_ (max_grad_value), or adaptively (agc_clipping; Brock et al., arXiv 2102.06171),
 * where a unit is what one index of the leading axis has, such as the weights of one output of ga_linear; a parameter
 * of less than two axes is one unit.
 * isolated: each micro-batch goes to memory of its own first, one more gradient in size. At its commit it is added to
 * the window, or dropped if it is not finite, and until then it can be aborted; the others count, with their weights
 * and losses alone. Its gradients are summed before they are added, so of law 1 the number of threads remains, and the
 * same cut into micro-batches: another cut may round differently.
 * max_consecutive_skips counts windows that were not finite or outliers, from one applied window to the next, and apart
 * from them micro-batches dropped in a row. The sentence names the first bad parameter, and the micro-batch: that is
 * known in isolated mode, and otherwise from the second skip in a row on, when sums are looked at after each.
 * Running means and variances are those of the applied windows up to outlier_warmup of them, and then go on with a
 * share of 1 / outlier_warmup for each new one.
 * accumulate_into moments (AdamA; Zhang et al., arXiv 2305.19982) is for Adam without weight decay and AdamW: a micro-batch
 * goes into their moments when it is committed, and its gradients are freed. They are in memory from where the backward
 * pass makes them to the commit, instead of all the time; float32 gradients of the caller are not copied at all. As in
 * isolated mode, a micro-batch that is not finite, or too large to be squared in float32, is dropped without a trace,
 * which takes one more pass over its gradients, and it can be aborted until its commit. One that weighs nothing is not
 * taken in; where its weight of 0 comes later, it stays for the next window that has a weight. With one micro-batch to a
 * window it is the same update, to the bit.
 * What it gives up: law 1, except for the number of threads, as the second moment has the sum of the squares of the
 * micro-batches' gradients; law 2, as nothing is divided by the window's weight; and dropping a window, so that ga_zero and
 * GA_TAIL_DROP are GA_ERROR_STATE once something was committed. It needs GA_NORMALIZATION_SUM, and excludes clipping, also
 * that of groups, limits on outliers, and a scaling's beta2_half_life. gradient_norm and ga_gradient_norms are 0, and
 * ga_accumulated_gradient is GA_ERROR_STATE.
 * sum_format: bfloat16 takes less memory than float32, and rounds a sum each time that a sample, or a row of an embedding,
 * is added: at random with no error on average (STOCHASTIC, 2 bytes), to the nearest with the excess kept beside the sum
 * and taken from the next addition (KAHAN; Kahan, CACM 8(1), 1965; 4 bytes, as many as float32), or to the nearest alone
 * (2 bytes), where additions of less than about 1/512 of the sum are lost: ga_stagnation counts them. Law 1 holds: the
 * random bits are those of (update, parameter, element, sample). The sums of an embedding by rows, where its table has
 * another use, stay float32. In isolated mode a micro-batch is one addition, and so is a call with gradients of the caller.
 * The step converts as many elements at a time as stay in the cache, or whole parameters for rules that need them. It
 * excludes moments, max_grad_value and agc_clipping.
 * Errors: STATE if the optimizer has an accumulator, or its rule has no moments to accumulate into; INVALID_ARGUMENT for
 * an option outside of its range, more than one way to clip, or an option that accumulate_into or sum_format excludes.
 */
ga_status ga_accumulator_create(ga_accumulator **out, ga_optimizer *optimizer,
                                const ga_accumulator_options *options);

/*
 * Frees the accumulator. Micro-batches in its window are lost, and ga_last_error() then says how many: settle them
 * first with ga_step, ga_data_end or ga_zero.
 */
void ga_accumulator_free(ga_accumulator *accumulator);

/*
 * Sets the number of micro-batches in a window, at least 1, from the next window on: one in progress keeps its own.
 * Reads that of the window in progress, or of the next one if nothing has begun.
 */
ga_status ga_accumulator_set_accumulation_steps(ga_accumulator *accumulator, int64_t accumulation_steps);
ga_status ga_accumulator_accumulation_steps(const ga_accumulator *accumulator, int64_t *out);

/*
 * Lets the number of micro-batches in a window follow a ramp, until it is set: a window gets the number that holds
 * where the optimizer's clock stands when it begins, accumulation_steps[i] from times[i] on.
 * clock: GA_CLOCK_UPDATES, or GA_CLOCK_WEIGHT in samples or tokens. times: count readings of it, rising, at least 1;
 * before the first, its number holds. interpolated: 1 for straight lines between the times, rounded down, else 0.
 * Errors: INVALID_ARGUMENT for times that do not rise or a number below 1.
 */
ga_status ga_accumulator_set_ramp(ga_accumulator *accumulator, int32_t clock, int32_t interpolated,
                                  const double *times, const int64_t *accumulation_steps, int64_t count);

/* The weight of a micro-batch that gets it later: see ga_micro_batch_set_weight. */
#define GA_WEIGHT_LATER (-1e300)

/*
 * Runs backward from the scalar loss and adds the gradients to the window, in place, as a micro-batch of its own or to
 * the one that is open.
 * weight: the samples or tokens that the loss stands for: 0, or in 1e-30 ... 1e30 with its window, or
 * GA_WEIGHT_LATER. The loss is their sum; where the option says that it is their mean, it is multiplied by the weight
 * first. Weights of several losses of one micro-batch add up.
 * The graph is used up: a loss is accumulated once.
 * Errors: SHAPE if the loss is no scalar; INVALID_ARGUMENT for a negative or non-finite weight, for that of a mean
 * which times the loss scale is beyond float32, for a loss that depends on no parameter or on one of no or of another
 * accumulator; OVERFLOW for a weight out of its range; NON_FINITE if the loss is, where isolated mode does not drop
 * it; STATE if the graph is used up, if a parameter or what else a gradient is made from has changed since the forward
 * pass, if the loss was made by a mean (ga_mean or a GA_REDUCTION_MEAN) and the option says sum, if the weight of a
 * mean is to come later than its commit, or if the micro-batch was given the weight of its means. The window is then
 * as it was. The exception is what fails in the middle of backward, as by OUT_OF_MEMORY: the window is broken until
 * ga_zero(), or in isolated mode the micro-batch until it is aborted. In isolated mode also the errors of
 * ga_micro_batch_commit.
 */
ga_status ga_accumulate(ga_accumulator *accumulator, const ga_tensor *loss, double weight);

/*
 * Adds gradients that the caller computed, one contiguous array per parameter in the optimizer's order.
 * gradients[i] NULL: nothing for that parameter. dtype: of all arrays, a floating type. loss is for the
 * report. Gradients and loss are sums over the weight, or means where the option says so.
 * weight: as in ga_accumulate.
 * Errors: INVALID_ARGUMENT for a bad weight or a count that is not the optimizer's; OVERFLOW for a weight out of its
 * range; DTYPE; NON_FINITE if the loss is, where isolated mode does not drop it; STATE as in ga_accumulate.
 */
ga_status ga_accumulate_gradients(ga_accumulator *accumulator, const void *const *gradients, int64_t count,
                                  int32_t dtype, double loss, double weight);

/*
 * Adds the gradient of one parameter to the open micro-batch, for a loop whose gradients appear one after another: each
 * can be freed at once. The loss and the weight are given once, by ga_accumulate_gradients with NULL for every gradient,
 * which the micro-batch cannot be committed without.
 * index: of the parameter, in the optimizer's order. gradient: a contiguous array of the floating type dtype. scale: what
 * it is multiplied by, which is the weight where it is a mean, else 1.
 * Errors: STATE if no micro-batch is open or it has failed half-way; INDEX; DTYPE; INVALID_ARGUMENT for a scale that is
 * not finite; OUT_OF_MEMORY, and nothing was added.
 */
ga_status ga_accumulate_gradient(ga_accumulator *accumulator, int64_t index, const void *gradient, int32_t dtype,
                                 double scale);

/*
 * The same with gradients that carry a loss scale, in 2^-64 ... 2^64: whatever the window's own is, 1 included, the sums
 * come to the same. ga_accumulate_gradients is for gradients without one. In float16 and bfloat16 too: they are converted
 * to float32 first, and their scale is taken out on the way into the sums, of whatever sum_format.
 * Errors: those of ga_accumulate_gradients; INVALID_ARGUMENT for a bad gradient_scale, or where the window's scale over it,
 * times the weight of a mean, is beyond float32.
 */
ga_status ga_accumulate_scaled_gradients(ga_accumulator *accumulator, const void *const *gradients, int64_t count,
                                         int32_t dtype, double gradient_scale, double loss, double weight);

/*
 * Begins a micro-batch: all that is accumulated until its commit belongs to it and counts as one. Without this, each
 * call of ga_accumulate is a micro-batch. Micro-batches are numbered from 0 in each window, aborted ones included.
 * Errors: STATE if one is open.
 */
ga_status ga_micro_batch_begin(ga_accumulator *accumulator);

/*
 * Ends the open micro-batch, which then counts. In isolated mode this adds its gradients to the window, or drops it if
 * they or a loss are not finite.
 * Errors: STATE if none is open, if nothing was accumulated in it, or if the weight of a mean is missing: it stays
 * open; INVALID_ARGUMENT if moments have no float32 for a weight that came later, and it stays open; NON_FINITE where the
 * policy or max_consecutive_skips says so: it was dropped.
 */
ga_status ga_micro_batch_commit(ga_accumulator *accumulator);

/*
 * Takes the open micro-batch back: the window is as it was before. Errors: STATE if none is open, or if something was
 * added in place, where isolated is 0: it stays open, to be committed or dropped with the window by ga_zero.
 */
ga_status ga_micro_batch_abort(ga_accumulator *accumulator);

/*
 * Gives a micro-batch the weight that was GA_WEIGHT_LATER when it was accumulated, before the step. Where losses are
 * means, it is given before the commit, in isolated mode, and after the last of them.
 * Errors: INDEX if the window has no micro-batch of this number; STATE if it has its weight or was aborted;
 * INVALID_ARGUMENT for a bad weight, OVERFLOW for one out of the range of ga_accumulate.
 */
ga_status ga_micro_batch_set_weight(ga_accumulator *accumulator, int64_t micro_batch, double weight);

/*
 * 1 once the window has accumulation_steps micro-batches, else 0. A step may be taken earlier, and more may be
 * accumulated: the divisor is the weight that went in.
 */
ga_status ga_step_due(const ga_accumulator *accumulator, int32_t *out);

/* What became of a window, and why a step did, or did not, change the parameters. */
#define GA_STEP_APPLIED 0
#define GA_STEP_SKIPPED_NON_FINITE 1 /* a gradient held a NaN or infinity, or their mean is beyond float32  */
#define GA_STEP_SKIPPED_ZERO_WEIGHT 2 /* the total weight was 0: nothing was changed                       */
#define GA_STEP_SKIPPED_OUTLIER 3    /* the loss or the norm stood out: nothing was changed               */
#define GA_STEP_PENDING 4            /* the window goes on: ga_window_report, GA_TAIL_CARRY               */
#define GA_STEP_DROPPED 5            /* the data ended, and the window was dropped: GA_TAIL_DROP          */
#define GA_STEP_EMPTY 6              /* the data ended, and there was nothing in the window               */
#define GA_MICRO_BATCH_NON_FINITE 7  /* a micro-batch is dropped: only a ga_skip_fn sees this             */
#define GA_STEP_SKIPPED_OVERFLOW 8   /* a gradient held a NaN or infinity under a loss scale              */

typedef struct ga_report {
    uint32_t struct_size;
    int32_t outcome;       /* one of GA_STEP_...                                                          */
    double loss;           /* mean over the window, by weight                                             */
    double weight;         /* total of the window                                                         */
    int64_t micro_batches; /* in the window, without those that were aborted                              */
    double gradient_norm;  /* global 2-norm of what the update is made of, before clipping                */
    double clip_factor;    /* the norm after clipping over the norm before: 1 if nothing was clipped       */
    double learning_rate;  /* of this update                                                              */
    int64_t update_count;  /* applied updates so far                                                      */
    int64_t aborted_micro_batches; /* or dropped, in isolated mode                                        */
    int64_t accumulation_steps;    /* of this window                                                      */
    double loss_scale;             /* what losses were multiplied by before backward                      */
    double loss_z_score;           /* standard deviations above the mean; 0 where not looked at, or not   */
    double gradient_norm_z_score;  /* yet                                                                 */
    int64_t consecutive_skips;     /* of windows in a row, this one included, as not finite or an outlier */
    int64_t non_finite_parameter;   /* the first with a NaN or an infinity; -1: none, or it was the loss  */
    int64_t non_finite_micro_batch; /* where that came in; -1: none, or not known                         */
    int64_t accumulator_bytes;     /* sums of gradients, and of one micro-batch in isolated mode          */
    int64_t tensor_bytes;          /* of all tensors of the process, these among them                     */
    double forward_backward_seconds; /* from each loss's first recorded operation to the end of its       */
                                     /* backward, or of the micro-batch that was begun and committed      */
    double step_seconds;
    int64_t retries;               /* how often the window was computed again, by a ga_retry_fn           */
    double underflow;              /* with count_underflow: of the gradients that backward rounds to the half */
                                   /* format of ga_set_compute_dtype, the share of numbers other than 0     */
                                   /* that become 0; a higher loss scale makes it smaller                   */
} ga_report;
#define GA_REPORT_INIT { sizeof(ga_report), 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0.0, \
                         0.0, 0, 0.0 }

/*
 * Ends the window: divides by its weight, clips, updates the parameters and empties the accumulators.
 * report: filled in, or NULL. A window that is not finite, is an outlier or weighs nothing is dropped, changes nothing
 * else and is no error: outcome says so.
 * Errors: STATE if the window is empty, a micro-batch is open, a weight is missing or an average is swapped in,
 * OVERFLOW if a schedule or a scaling makes the learning rate too large and OUT_OF_MEMORY, with sums in bfloat16 alone:
 * it stays as it is; NON_FINITE or OUTLIER where a policy or max_consecutive_skips says so, and those of a ga_update_fn:
 * it was dropped.
 */
ga_status ga_step(ga_accumulator *accumulator, ga_report *report);

/* Reports what the window holds so far; outcome is GA_STEP_PENDING. Weights to come are not in it. */
ga_status ga_window_report(const ga_accumulator *accumulator, ga_report *report);

/* What to do about a window, or in isolated mode a micro-batch, that would be skipped. */
#define GA_DECISION_SKIP 0  /* it is dropped, and the report says so                                       */
#define GA_DECISION_RAISE 1 /* it is dropped, and the call is GA_ERROR_NON_FINITE or GA_ERROR_OUTLIER     */
#define GA_DECISION_APPLY 2 /* the update is made nonetheless: only for GA_STEP_SKIPPED_OUTLIER           */

/*
 * Returns one of GA_DECISION_... for what report says: GA_STEP_SKIPPED_NON_FINITE, GA_STEP_SKIPPED_OVERFLOW under a loss
 * scale, GA_STEP_SKIPPED_OUTLIER or GA_MICRO_BATCH_NON_FINITE. Calls from it that accumulate, step or drop are
 * GA_ERROR_STATE.
 */
typedef int32_t (*ga_skip_fn)(const ga_report *report, void *user);

/*
 * Lets decide choose, in place of on_non_finite and of the skip of outliers; NULL ends that. decide and user are used
 * until then, or until the accumulator is freed.
 */
ga_status ga_accumulator_set_skip_handler(ga_accumulator *accumulator, ga_skip_fn decide, void *user);

/*
 * Multiplies losses by the scale of a scaler, from the next window on; NULL ends that. Sums then hold scaled gradients,
 * and the step divides by the scale along with the weight. All numbers that are reported, losses, norms and
 * ga_accumulated_gradient, are without the scale.
 * A window that overflows is skipped (GA_STEP_SKIPPED_OVERFLOW), and does not count for max_consecutive_skips where the
 * scale can go below its own; in isolated mode its micro-batch is dropped, and the window is updated without it. The scale
 * goes down in either case. The report names the first bad parameter and the micro-batch in which its gradient came: given
 * gradients are looked at while they are added, and the sums that the library's backward pass has added to are read once per
 * micro-batch. A sum that only got beyond float32 by adding up has no micro-batch. A loss that is not finite is no overflow,
 * as no scale makes it finite.
 * Errors: STATE if the window holds micro-batches.
 */
ga_status ga_accumulator_set_loss_scaler(ga_accumulator *accumulator, ga_loss_scaler *scaler);

/*
 * Called from a step whose window overflowed, where the scale can go lower: the scale has been lowered, whatever
 * hysteresis says, and the window is empty. Accumulates the same micro-batches again and returns 1, and the step goes on
 * with them; or returns 0 and the window is skipped. report: of the window that was dropped. It must not step.
 */
typedef int32_t (*ga_retry_fn)(const ga_report *report, void *user);

/*
 * Lets retry compute a window again that overflowed, also one of which isolated mode has dropped a micro-batch; NULL ends
 * that. With GA_ACCUMULATE_INTO_MOMENTS it is not called, as moments cannot be emptied. retry and user are used until
 * then, or until the accumulator is freed.
 */
ga_status ga_accumulator_set_retry_handler(ga_accumulator *accumulator, ga_retry_fn retry, void *user);

/*
 * Ends the additions to the window and gives the global 2-norm of its mean gradient, without the loss scale and before
 * clipping. This reads the sums once, and ga_step and ga_window_report go on with what was found. Nothing has to be
 * unscaled for a step: this is for those that want the norm before it, such as to ga_zero the window. The loss scaler then
 * learns what was found: an overflow lowers the scale as that of a skipped window does, and a finite norm counts towards
 * its growth.
 * Errors: STATE if the window is empty or was unscaled before, a micro-batch is open, or a weight is missing.
 */
ga_status ga_unscale(ga_accumulator *accumulator, double *norm);

/* What becomes of a window when the data ends. */
#define GA_TAIL_STEP 0  /* it is stepped, divided by the weight that went in, however short it is           */
#define GA_TAIL_CARRY 1 /* it stays, and what comes next is added to it                                   */
#define GA_TAIL_DROP 2  /* it is dropped                                                                  */

/*
 * Says that data begins, such as an epoch. Errors: STATE if the window holds micro-batches of earlier data that
 * ga_data_end did not carry over: they would go into the next update unnoticed.
 */
ga_status ga_data_begin(ga_accumulator *accumulator);

/*
 * Says that the data ends, and with tail what becomes of a window that was not stepped.
 * report: filled in with the step or with what the window held, or NULL. An empty window is no error.
 * Errors: those of ga_step; GA_TAIL_DROP has none of them.
 */
ga_status ga_data_end(ga_accumulator *accumulator, int32_t tail, ga_report *report);

/*
 * Writes the 2-norm of each parameter's mean gradient in the window of the last step, before clipping, in the
 * optimizer's order: 0 where nothing was added or nothing weighed, not finite where the gradient is not.
 * count: the optimizer's number of parameters. Errors: INVALID_ARGUMENT if it is another; STATE before the first step.
 */
ga_status ga_gradient_norms(const ga_accumulator *accumulator, double *out, int64_t count);

/*
 * Writes what became of additions to each parameter's sum in bfloat16 in the window of the last step, in the optimizer's
 * order: additions of numbers other than 0 to elements, and how many of them have changed nothing. Rounding at random
 * leaves many as they are by design; otherwise their share tells how much of the gradient is lost.
 * count: the optimizer's number of parameters. Errors: INVALID_ARGUMENT if it is another; STATE before the first step, or
 * for sums in float32.
 */
ga_status ga_stagnation(const ga_accumulator *accumulator, int64_t *additions, int64_t *unchanged, int64_t count);

/*
 * Drops what was accumulated, an open micro-batch included; parameters, optimizer state and counters stay. The loss scaler
 * learns what ga_unscale has found in the window, or isolated mode of a micro-batch that it dropped; an overflow that
 * neither has found does not lower the scale.
 */
ga_status ga_zero(ga_accumulator *accumulator);

/* A copy of the accumulated sum of parameter index, in the optimizer's order, of what was committed. Errors: INDEX. */
ga_status ga_accumulated_gradient(ga_tensor **out, const ga_accumulator *accumulator, int64_t index);

#ifdef __cplusplus
}
#endif

#endif /* GRADACCUM_H */
