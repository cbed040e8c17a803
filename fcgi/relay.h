/*
 * relay.h
 *	  Calls to upstreams over HTTP. The only user of libcurl.
 */
#ifndef REGPILOT_RELAY_H
#define REGPILOT_RELAY_H

#include "upstream.h"

/*
 * Descriptors that a call may need: its connection, and two while that is being made
 * (to look up its address, or to try two at once).
 */
#define RELAY_DESCRIPTORS 3

/* Before the first call; false after a message. */
extern bool relay_init(void) __attribute__((warn_unused_result));

/* Carries the call out; only tasks make one. */
extern UpstreamResult relay_call(UpstreamCall *call) __attribute__((warn_unused_result));

#endif
