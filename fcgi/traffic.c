/*
 * traffic.c
 *	  How much is being relayed, and what came of it by upstream.
 */
#include "traffic.h"
#include "config.h"
#include "metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Upstreams counted by name; what comes after them is counted as the last, "other". */
#define UPSTREAMS_MAX 64

static const char *const results[] = {
	[UPSTREAM_ANSWERED] = "answered",		[UPSTREAM_FAILED] = "failed",
	[UPSTREAM_TIMED_OUT] = "timed_out",		[UPSTREAM_BROKEN_OFF] = "broken_off",
	[UPSTREAM_FELL_SILENT] = "fell_silent", [UPSTREAM_CLIENT_GONE] = "client_gone",
};

#define RESULTS (sizeof(results) / sizeof(results[0]))

typedef struct Tally
{
	char upstream[64]; /* does not change once it is counted in "tallies" */
	_Atomic int64_t calls[RESULTS];
	Histogram first_byte; /* of answers that began */
	Histogram duration;
} Tally;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Tally tally[UPSTREAMS_MAX];
static int tallies; /* protected by lock */

static _Atomic int relaying;
static _Atomic int streaming;
static _Atomic int64_t refused;

bool
traffic_begin(void)
{
	if (atomic_fetch_add(&relaying, 1) < config.max_streams)
		return true;
	relaying--;
	refused++;
	return false;
}

void
traffic_stream(void)
{
	streaming++;
}

void
traffic_end(bool streamed)
{
	relaying--;
	if (streamed)
		streaming--;
}

static Tally *
find_tally(const char *upstream)
{
	Tally *found = tally;

	pthread_mutex_lock(&lock);
	while (found < tally + tallies && strcmp(found->upstream, upstream) != 0)
		found++;
	if (found == tally + UPSTREAMS_MAX)
		found--;
	else if (found == tally + tallies)
	{
		snprintf(found->upstream, sizeof(found->upstream), "%s",
				 tallies == UPSTREAMS_MAX - 1 ? "other" : upstream);
		found->first_byte = (Histogram) LATENCY_HISTOGRAM;
		found->duration = (Histogram) LATENCY_HISTOGRAM;
		tallies++;
	}
	pthread_mutex_unlock(&lock);
	return found;
}

void
traffic_count(const char *upstream, UpstreamResult result, const UpstreamCall *call)
{
	Tally *counted = find_tally(upstream);

	counted->calls[result]++;
	histogram_observe(&counted->duration, call->duration);
	if (call->latency > 0)
		histogram_observe(&counted->first_byte, call->latency);
}

/* Shows one of the histograms of each upstream. */
static void
show_histograms(Buffer *out, int count, const char *name, const char *help, size_t field)
{
	metrics_head(out, name, "histogram", help);
	for (Tally *shown = tally; shown < tally + count; shown++)
	{
		char label[sizeof(shown->upstream) + 16];

		snprintf(label, sizeof(label), "upstream=\"%.*s\"", (int) sizeof(shown->upstream) - 1,
				 shown->upstream);
		metrics_histogram(out, name, label, (Histogram *) ((char *) shown + field));
	}
}

void
traffic_metrics(Buffer *out)
{
	int count;

	pthread_mutex_lock(&lock);
	count = tallies;
	pthread_mutex_unlock(&lock);

	metrics_single(out, "regpilot_relays_open", "gauge", "Answers being relayed.", relaying);
	metrics_single(out, "regpilot_streams_open", "gauge", "Those of them that stream.", streaming);
	metrics_single(out, "regpilot_relays_max", "gauge", "Answers that may be relayed at once.",
				   config.max_streams);
	metrics_single(out, "regpilot_relays_refused_total", "counter",
				   "Requests refused because as many were being relayed.", refused);
	metrics_head(out, "regpilot_upstream_calls_total", "counter",
				 "Calls of an upstream, by what came of them.");
	for (Tally *shown = tally; shown < tally + count; shown++)
	{
		for (size_t i = 0; i < RESULTS; i++)
			buffer_printf(out,
						  "regpilot_upstream_calls_total{upstream=\"%s\",result=\"%s\"} %lld\n",
						  shown->upstream, results[i], (long long) shown->calls[i]);
	}
	show_histograms(out, count, "regpilot_upstream_first_byte_seconds",
					"How long an upstream took to begin its answer.", offsetof(Tally, first_byte));
	show_histograms(out, count, "regpilot_upstream_seconds", "How long a call of an upstream took.",
					offsetof(Tally, duration));
}
