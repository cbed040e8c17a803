/*
 * metrics.c
 *	  What is counted, and the Prometheus text format it is shown in.
 */
#include "metrics.h"

#include <inttypes.h>

const int64_t latency_bounds[] = {100,	   250,		 500,	   1000,	  2500,	  5000,	   10000,
								  25000,   50000,	 100000,   250000,	  500000, 1000000, 2500000,
								  5000000, 10000000, 30000000, 100000000, 0};

void
histogram_observe(Histogram *histogram, int64_t value)
{
	int i = 0;

	while (histogram->bounds[i] != 0 && value > histogram->bounds[i])
		i++;
	atomic_fetch_add_explicit(&histogram->bucket[i], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&histogram->sum, value, memory_order_relaxed);
}

void
metrics_head(Buffer *out, const char *name, const char *type, const char *help)
{
	buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void
metrics_single(Buffer *out, const char *name, const char *type, const char *help, int64_t value)
{
	metrics_head(out, name, type, help);
	buffer_printf(out, "%s %" PRId64 "\n", name, value);
}

void
metrics_histogram(Buffer *out, const char *name, const char *labels, Histogram *histogram)
{
	const char *comma = labels[0] != '\0' ? "," : "";
	const char *open = labels[0] != '\0' ? "{" : "";
	const char *close = labels[0] != '\0' ? "}" : "";
	int64_t count = 0;
	int i;

	for (i = 0; histogram->bounds[i] != 0; i++)
	{
		count += atomic_load_explicit(&histogram->bucket[i], memory_order_relaxed);
		buffer_printf(out, "%s_bucket{%s%sle=\"%g\"} %" PRId64 "\n", name, labels, comma,
					  (double) histogram->bounds[i] * histogram->unit, count);
	}
	count += atomic_load_explicit(&histogram->bucket[i], memory_order_relaxed);
	buffer_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRId64 "\n", name, labels, comma, count);
	buffer_printf(out, "%s_sum%s%s%s %.6f\n", name, open, labels, close,
				  (double) atomic_load_explicit(&histogram->sum, memory_order_relaxed) *
					  histogram->unit);
	buffer_printf(out, "%s_count%s%s%s %" PRId64 "\n", name, open, labels, close, count);
}
