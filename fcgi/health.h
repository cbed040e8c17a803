/*
 * health.h
 *	  Which upstreams have failed lately, and are passed over for a while.
 *
 * After a failure an upstream is passed over for HEALTH_BACKOFF_MIN, or for as long
 * as its Retry-After says. Then one request tries it, while others still pass it over:
 * if that fails too, the time doubles, up to HEALTH_BACKOFF_MAX. An answer ends it.
 * Who finds no other upstream may try one that is passed over all the same.
 *
 * An upstream is known by its name and base URL: with another URL it begins anew. All
 * of this is the process's own, outlives changes of the routes, and may be called by
 * any thread.
 */
#ifndef REGPILOT_HEALTH_H
#define REGPILOT_HEALTH_H

#include "buffer.h"

#include <stdbool.h>

/* ms that an upstream is passed over, at first and at most */
#define HEALTH_BACKOFF_MIN 1000
#define HEALTH_BACKOFF_MAX 60000

/* What came of a try. */
typedef enum HealthNews
{
	HEALTH_ANSWERED,
	HEALTH_FAILED,
	HEALTH_UNKNOWN /* the client's fault, or it has gone: says nothing of the upstream */
} HealthNews;

/*
 * Whether the upstream may be tried as if nothing had happened. *probe: this is the
 * one request that tries one which has been passed over; whatever the caller gets, it
 * reports what came of its try, with the same probe.
 */
extern bool health_admits(const char *upstream, const char *base_url, bool *probe)
	__attribute__((warn_unused_result));

/* retry_after: seconds, as the upstream has asked; 0: it has not. */
extern void health_report(const char *upstream, const char *base_url, bool probe, HealthNews news,
						  int retry_after);

/* Appends the upstreams that are passed over to the answer of /metrics. */
extern void health_metrics(Buffer *out);

#endif
