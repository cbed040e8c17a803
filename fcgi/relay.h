/*
 * relay.h
 *	  Calls to upstreams over HTTP. The only user of libcurl.
 */
#ifndef REGPILOT_RELAY_H
#define REGPILOT_RELAY_H

#include "upstream.h"

/* What a thread keeps between its calls: its connections to upstreams. Not to be shared. */
typedef struct Relay Relay;

/* Connections that one keeps. */
#define RELAY_CONNECTIONS 4
/*
 * Descriptors that one may hold: those, two while one more is being made (to look up its
 * address, or to try two at once), and two that libcurl has for itself.
 */
#define RELAY_DESCRIPTORS (RELAY_CONNECTIONS + 4)

/* Before the first thread starts; false after a message. */
extern bool relay_init(void) __attribute__((warn_unused_result));

/* NULL: out of memory. */
extern Relay *relay_create(void);
extern void relay_free(Relay *relay);

extern UpstreamResult relay_call(Relay *relay, UpstreamCall *call)
	__attribute__((warn_unused_result));

#endif
