/*
 * traffic.h
 *	  How much is being relayed, up to a limit, and what came of it by upstream; for
 *	  /metrics.
 */
#ifndef REGPILOT_TRAFFIC_H
#define REGPILOT_TRAFFIC_H

#include "upstream.h"

#include <stdbool.h>

/* Begins an answer that is relayed; false: config.max_streams are already. */
extern bool traffic_begin(void) __attribute__((warn_unused_result));

/* That answer is a stream, whose head has been sent. */
extern void traffic_stream(void);

/* Ends the answer. */
extern void traffic_end(bool streamed);

/* Counts a call of the upstream that has ended. */
extern void traffic_count(const char *upstream, UpstreamResult result, const UpstreamCall *call);

extern void traffic_metrics(Buffer *out);

#endif
