/* streamssm: push audio, sensor rows or tokens through a state-space model, in chunks of any length.
 *
 *   streamssm_model *model;
 *   streamssm_stream *stream;
 *   float memory[100];
 *   streamssm_frames speech = {memory, 100, 0};
 *
 *   if (streamssm_open("vad.onnx", NULL, &model)) return complain(streamssm_message());
 *   streamssm_stream_open(model, NULL, &stream);
 *   streamssm_push(stream, samples, count, &speech);   // memory now holds speech.count frames
 *   streamssm_stream_close(stream);
 *   streamssm_close(model);
 *
 * However a sequence is cut into pushes, the results are the same to the byte.
 *
 * OWNERSHIP. What a function opens, its _close gives back; NULL may be closed. Handles may be closed in any
 *   order: a model lives until its last stream, pool and detector are closed. What you pass in is read during
 *   the call and never kept; results go to memory of yours (streamssm_frames). Pointers that the library
 *   returns say beside them how long they hold.
 * THREADS. A model may be used by any number of threads at a time. A stream or a detector belongs to one
 *   thread at a time; different ones of one model may run in parallel. A pool takes _push, _waiting and
 *   _ready from any thread at any time; its other functions belong to one thread at a time. Nothing here
 *   starts a thread. streamssm_set_logger belongs before the first open, which also sets
 *   ORT_DISABLE_TELEMETRY=1 in the environment, if it is not set, before it loads ONNX Runtime.
 * FAILURE. A function that returns a status other than STREAMSSM_OK has changed nothing: a chunk is taken
 *   whole or refused whole, and its stream is as it was. The library never exits, throws or prints.
 * MEMORY. After streamssm_stream_open a push allocates nothing here; ONNX Runtime does in each run, for its
 *   own use (docs/embedding.md says how much). The first call in a thread may, where the library was loaded
 *   by dlopen: the C library makes room for the thread's message.
 *
 * ONNX Runtime, 1.20 or later, is looked for at run time; its headers are not needed. Sizes count items and
 * frames, as the model's info says: an item has info->width numbers, a frame of an output output->width.
 */
#ifndef STREAMSSM_H
#define STREAMSSM_H

#include <stddef.h>
#include <stdint.h>

#if defined(STREAMSSM_STATIC) || !defined(__GNUC__)
#define STREAMSSM_API
#else
#define STREAMSSM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a program must be compiled anew; compare with streamssm_abi(). */
#define STREAMSSM_ABI 1

typedef enum streamssm_status {
  STREAMSSM_OK = 0,
  STREAMSSM_ERROR_ARGUMENT = 1,  /* NULL, or out of range */
  STREAMSSM_ERROR_INPUT = 2,     /* NaN, infinity, or a token that is none */
  STREAMSSM_ERROR_ENDED = 3,     /* the stream was flushed; reset it first */
  STREAMSSM_ERROR_ROOM = 4,      /* your memory is too small; what is needed stands in its count */
  STREAMSSM_ERROR_FULL = 5,      /* no free slot, or too many items wait: step the pool */
  STREAMSSM_ERROR_FILE = 6,      /* missing, cut short, or no streamssm model */
  STREAMSSM_ERROR_FORMAT = 7,    /* a model or snapshot of a newer version */
  STREAMSSM_ERROR_INTEGRITY = 8, /* the content does not have the recorded sha256 */
  STREAMSSM_ERROR_SNAPSHOT = 9,  /* damaged, or of another model */
  STREAMSSM_ERROR_RUNTIME = 10,  /* ONNX Runtime is missing or too old */
  STREAMSSM_ERROR_RUN = 11,      /* ONNX Runtime cannot run the model */
  STREAMSSM_ERROR_MEMORY = 12,   /* out of memory */
  STREAMSSM_ERROR_CLOSED = 13,   /* a closed handle was used; only debug builds can tell */
  STREAMSSM_ERROR_INTERNAL = 14  /* a defect of the library */
} streamssm_status;

typedef struct streamssm_model streamssm_model;
typedef struct streamssm_stream streamssm_stream;
typedef struct streamssm_pool streamssm_pool;
typedef struct streamssm_detector streamssm_detector;

/* What the last call that failed in this thread has to say: the value seen, and the remedy. Holds until the
 * next call that fails in this thread; "" if none has. */
STREAMSSM_API const char *streamssm_message(void);
STREAMSSM_API const char *streamssm_status_name(streamssm_status status);
STREAMSSM_API uint32_t streamssm_abi(void);
STREAMSSM_API const char *streamssm_version(void);

/* Gets what is worth knowing and no failure, from ONNX Runtime too: 0 debug, 1 information, 2 warning, 3
 * error. May be called by any thread that uses the library. NULL, the default: nothing is told. */
typedef void (*streamssm_logger)(void *user, int level, const char *text);
STREAMSSM_API void streamssm_set_logger(streamssm_logger logger, void *user);

/* ---- Models ------------------------------------------------------------------------------------------- */

typedef enum streamssm_kernels {
  STREAMSSM_KERNELS_FUSED = 0,   /* whole stretches of the model as one: the default, and Python's */
  STREAMSSM_KERNELS_UNFUSED = 1, /* one kernel for each operator */
  STREAMSSM_KERNELS_PLAIN = 2    /* the plain operators in the file: slow, for comparison */
} streamssm_kernels;

typedef struct streamssm_options {
  size_t size;         /* sizeof(streamssm_options); what is zero has its default */
  const char *runtime; /* path of ONNX Runtime's library. NULL: one that is loaded already, else what the
                          loader finds under libonnxruntime.so.1 or libonnxruntime.so */
  int32_t kernels;     /* streamssm_kernels */
} streamssm_options;

/* Open a model file, or one that lies in memory, which may go when this returns. NULL options: all defaults.
 */
STREAMSSM_API streamssm_status streamssm_open(const char *path, const streamssm_options *options,
                                              streamssm_model **model);
STREAMSSM_API streamssm_status streamssm_open_memory(const void *data, size_t bytes,
                                                     const streamssm_options *options,
                                                     streamssm_model **model);
STREAMSSM_API void streamssm_close(streamssm_model *model);

typedef enum streamssm_type { STREAMSSM_FLOAT32 = 0, STREAMSSM_INT64 = 1 } streamssm_type;

typedef struct streamssm_output {
  const char *name, *kind; /* kind: "probability", "logits", "features" or "samples" */
  size_t width;            /* floats of a frame */
  int64_t up, down;        /* up / down frames for each input item */
  const char *const *labels;
  size_t label_count;
} streamssm_output;

typedef struct streamssm_info {
  const char *name, *description, *license, *sha256;
  const char *input_kind; /* "samples", "features" or "tokens" */
  streamssm_type type;    /* of the numbers of an item */
  size_t width;           /* numbers of an item */
  double rate;            /* items per second; 0: no clock */
  int64_t vocabulary;     /* tokens go from 0 to one less; 0: not tokens */
  int64_t hop, block;     /* a block is a multiple of the hop; the default one */
  int64_t lookahead;      /* items that a result waits for */
  int64_t parameters;
  size_t state_bytes; /* of one stream */
  const streamssm_output *outputs;
  size_t output_count;
  const char *event_label; /* NULL: no rule for events, or one for all classes (not applied here) */
  size_t event_output;     /* the output that the rule reads */
  const char *kernels;     /* such as "native (avx512vnni, fused)" */
  const char *runtime;     /* such as "1.31.1" */
} streamssm_info;

/* Holds as long as the model is open. NULL for NULL. */
STREAMSSM_API const streamssm_info *streamssm_model_info(const streamssm_model *model);

/* ---- Streams ------------------------------------------------------------------------------------------ */

typedef struct streamssm_stream_options {
  size_t size;             /* sizeof(streamssm_stream_options) */
  int64_t block;           /* items of a run, a multiple of the hop; 0: the model's */
  int32_t allow_nonfinite; /* let NaN and infinity in: they may stay in the state until a reset */
} streamssm_stream_options;

/* Memory of yours for the frames of one output. Where a function takes several, there is one for each output
 * of the model, in order. */
typedef struct streamssm_frames {
  float *data;  /* room for `room` frames; NULL: this output is not wanted */
  size_t room;  /* frames that fit */
  size_t count; /* set by the call: frames that were written; after STREAMSSM_ERROR_ROOM, frames needed */
} streamssm_frames;

/* A stream at item 0. */
STREAMSSM_API streamssm_status streamssm_stream_open(streamssm_model *model,
                                                     const streamssm_stream_options *options,
                                                     streamssm_stream **stream);
/* A stream where a snapshot left off; what options leave at zero is the snapshot's own. */
STREAMSSM_API streamssm_status streamssm_resume(streamssm_model *model, const void *snapshot, size_t bytes,
                                                const streamssm_stream_options *options,
                                                streamssm_stream **stream);
STREAMSSM_API void streamssm_stream_close(streamssm_stream *stream);

/* Give the stream `count` items; get what became known by them. */
STREAMSSM_API streamssm_status streamssm_push(streamssm_stream *stream, const void *items, size_t count,
                                              streamssm_frames *outputs);
/* End the stream: N items give ceil(N * up / down) frames in all. Of an ended stream: nothing more. */
STREAMSSM_API streamssm_status streamssm_flush(streamssm_stream *stream, streamssm_frames *outputs);
/* Frames of this output that a push of `count` items, or a flush now, will give. 0: out of range. */
STREAMSSM_API size_t streamssm_frames_of_push(const streamssm_stream *stream, size_t count, size_t output);
STREAMSSM_API size_t streamssm_frames_of_flush(const streamssm_stream *stream, size_t output);

/* Forget everything: the stream is as new, at item 0. */
STREAMSSM_API streamssm_status streamssm_reset(streamssm_stream *stream);
/* An independent stream that goes on from here. */
STREAMSSM_API streamssm_status streamssm_fork(const streamssm_stream *stream, streamssm_stream **twin);

/* Items accepted since the start, those of them that do not fill a block yet, and whether it was flushed. */
STREAMSSM_API int64_t streamssm_position(const streamssm_stream *stream);
STREAMSSM_API int64_t streamssm_pending(const streamssm_stream *stream);
STREAMSSM_API int32_t streamssm_ended(const streamssm_stream *stream);

/* The stream as a snapshot, the same bytes as Python's: it may go on there, and Python's here. `bytes` is set
 * to what the snapshot needs, also with STREAMSSM_ERROR_ROOM; memory NULL with room 0 asks for that. */
STREAMSSM_API streamssm_status streamssm_save(const streamssm_stream *stream, void *memory, size_t room,
                                              size_t *bytes);
/* Go on where a snapshot of a stream of this model left off; the stream keeps its own block. */
STREAMSSM_API streamssm_status streamssm_restore(streamssm_stream *stream, const void *snapshot,
                                                 size_t bytes);

/* ---- Pools: many streams, stepped as one batch -------------------------------------------------------- */

typedef struct streamssm_pool_options {
  size_t size;             /* sizeof(streamssm_pool_options) */
  int64_t block;           /* as of a stream */
  int64_t limit;           /* items that may wait in one stream; 0: 8 blocks */
  int32_t allow_nonfinite; /* as of a stream */
} streamssm_pool_options;

/* What a step has for one stream. */
typedef struct streamssm_result {
  size_t slot;
  int32_t ended;                   /* this was its last result, and the slot is free */
  const streamssm_frames *outputs; /* one for each output of the model */
} streamssm_result;

STREAMSSM_API streamssm_status streamssm_pool_open(streamssm_model *model, size_t slots,
                                                   const streamssm_pool_options *options,
                                                   streamssm_pool **pool);
STREAMSSM_API void streamssm_pool_close(streamssm_pool *pool);

/* Take the first free slot, at item 0 or where a snapshot left off; forget a stream at once. */
STREAMSSM_API streamssm_status streamssm_pool_join(streamssm_pool *pool, size_t *slot);
STREAMSSM_API streamssm_status streamssm_pool_resume(streamssm_pool *pool, const void *snapshot, size_t bytes,
                                                     size_t *slot);
STREAMSSM_API streamssm_status streamssm_pool_leave(streamssm_pool *pool, size_t slot);
STREAMSSM_API streamssm_status streamssm_pool_reset(streamssm_pool *pool, size_t slot);

/* Give a stream more items, which are copied and run by later steps; end it, so that later steps run what
 * waits, release the look-ahead and free the slot. */
STREAMSSM_API streamssm_status streamssm_pool_push(streamssm_pool *pool, size_t slot, const void *items,
                                                   size_t count);
STREAMSSM_API streamssm_status streamssm_pool_flush(streamssm_pool *pool, size_t slot);
/* Streams that a step would run; items of one that wait, -1 if there is no such stream. */
STREAMSSM_API size_t streamssm_pool_ready(streamssm_pool *pool);
STREAMSSM_API int64_t streamssm_pool_waiting(streamssm_pool *pool, size_t slot);

/* Run one block of every stream that has one. `results` holds until the next call of a function of this pool
 * other than _push, _waiting and _ready. Where a run fails, the streams in it are as they were; the others
 * run, and their results are there beside the status. */
STREAMSSM_API streamssm_status streamssm_pool_step(streamssm_pool *pool, const streamssm_result **results,
                                                   size_t *count);
STREAMSSM_API streamssm_status streamssm_pool_save(streamssm_pool *pool, size_t slot, void *memory,
                                                   size_t room, size_t *bytes);

/* ---- Events: starts and ends, by the model's own rule ------------------------------------------------- */

typedef struct streamssm_event {
  int64_t index; /* number of the frame at which it starts or ends */
  double time;   /* the same in seconds, rounded to microseconds; negative without a clock */
  int32_t start; /* 1 start, 0 end */
  int32_t cut;   /* an end that is only that of the input */
} streamssm_event;

STREAMSSM_API streamssm_status streamssm_detector_open(streamssm_model *model, streamssm_detector **detector);
STREAMSSM_API void streamssm_detector_close(streamssm_detector *detector);
/* Take `count` frames of the output that the rule reads; get the events that they complete, at most one for
 * each frame. With too little room nothing is taken, and `found` says what is needed. */
STREAMSSM_API streamssm_status streamssm_detect(streamssm_detector *detector, const float *frames,
                                                size_t count, streamssm_event *events, size_t room,
                                                size_t *found);
/* The input has ended: `found` is 1 if an event was open, which ends here. The detector is as new. */
STREAMSSM_API streamssm_status streamssm_detector_end(streamssm_detector *detector, streamssm_event *event,
                                                      size_t *found);

#ifdef __cplusplus
}
#endif
#endif
