/*
 * metrics.h
 *	  What is counted, and the Prometheus text format (version 0.0.4) it is shown in.
 *
 * Each file owns what it counts and appends that to the answer of /metrics by a
 * function xxx_metrics(Buffer *). Counting takes no lock.
 */
#ifndef REGPILOT_METRICS_H
#define REGPILOT_METRICS_H

#include "buffer.h"

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BOUNDS_MAX 20

typedef struct Histogram
{
	const int64_t *bounds; /* upper ones, rising, and a 0 at the end */
	double unit;		   /* of bounds and of what is observed, in that of the metric */
	_Atomic int64_t bucket[HISTOGRAM_BOUNDS_MAX + 1]; /* the last: above all bounds */
	_Atomic int64_t sum;
} Histogram;

/* Bounds for latencies in microseconds, to be shown in seconds: 0.1 ms to 100 s. */
extern const int64_t latency_bounds[];
#define LATENCY_HISTOGRAM                                                                          \
	{                                                                                              \
		.bounds = latency_bounds, .unit = 1e-6                                                     \
	}

extern void histogram_observe(Histogram *histogram, int64_t value);

/* The lines before the samples of a metric; type: counter, gauge or histogram. */
extern void metrics_head(Buffer *out, const char *name, const char *type, const char *help);

/* A metric of one sample without labels. */
extern void metrics_single(Buffer *out, const char *name, const char *type, const char *help,
						   int64_t value);

/* The samples of a histogram. labels: name="value" pairs separated by commas, or empty. */
extern void metrics_histogram(Buffer *out, const char *name, const char *labels,
							  Histogram *histogram);

#endif
