/*
 * request.h
 *	  One request, from its parameters to the end of its answer.
 */
#ifndef REGPILOT_REQUEST_H
#define REGPILOT_REQUEST_H

#include "fastcgi.h"

#include <stdbool.h>

/*
 * Answers the request; the caller finishes it. client is a descriptor of its
 * connection, to notice a client that goes away, or -1 not to look. False: the
 * request was not read to its end, so the connection must be closed, or what
 * is left of this request would be taken for the next.
 */
extern bool request_serve(Fastcgi *fastcgi, int client) __attribute__((warn_unused_result));

#endif
