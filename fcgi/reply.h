/*
 * reply.h
 *	  The parts of an answer: CGI response head (RFC 3875, 6.3) and the fixed bodies.
 */
#ifndef REGPILOT_REPLY_H
#define REGPILOT_REPLY_H

#include "buffer.h"

#include <stdint.h>

/* Answers that say why a request was not served. */
typedef enum Refusal
{
	REFUSAL_NONE,
	REFUSAL_INVALID_JSON,
	REFUSAL_MISSING_MESSAGES,
	REFUSAL_INVALID_MESSAGE_FORMAT,
	REFUSAL_MISSING_INPUT,
	REFUSAL_INVALID_INPUT,
	REFUSAL_INVALID_QUALITY,
	REFUSAL_INVALID_TEMPERATURE,
	REFUSAL_INVALID_MODEL,
	REFUSAL_INVALID_STREAM,
	REFUSAL_INVALID_STREAM_OPTIONS,
	REFUSAL_INVALID_PERMISSION,
	REFUSAL_INVALID_QUERY,
	REFUSAL_MISSING_KEY,
	REFUSAL_INVALID_KEY,
	REFUSAL_REVOKED_KEY,
	REFUSAL_NOT_SIGNED_IN,
	REFUSAL_SIGN_IN_FAILED,
	REFUSAL_FORBIDDEN,
	REFUSAL_CROSS_SITE,
	REFUSAL_NOT_FOR_KEYS,
	REFUSAL_NOT_FOUND,
	REFUSAL_MODEL_NOT_FOUND,
	REFUSAL_METHOD_NOT_ALLOWED,
	REFUSAL_BODY_TOO_LARGE,
	REFUSAL_UNSUPPORTED_MEDIA_TYPE,
	REFUSAL_RATE_LIMITED,
	REFUSAL_SIGN_IN_THROTTLED,
	REFUSAL_HEADERS_TOO_LARGE,
	REFUSAL_INTERNAL_ERROR,
	REFUSAL_UPSTREAM_FAILED,
	REFUSAL_DATABASE_UNAVAILABLE,
	REFUSAL_TOO_MANY_STREAMS,
	REFUSAL_UNREACHABLE,
	REFUSAL_TOO_MANY_SESSIONS,
	REFUSAL_QUERY_TIMEOUT,
	REFUSAL_UPSTREAM_TIMEOUT
} Refusal;

/* What some bodies say beyond their fixed text. */
typedef struct RefusalDetail
{
	const char *request_id;	 /* for the upstream's failures */
	int retry_after;		 /* seconds, for RATE_LIMITED */
	int requests_per_minute; /* for RATE_LIMITED */
} RefusalDetail;

extern int refusal_status(Refusal refusal);
extern void refusal_body(Refusal refusal, const RefusalDetail *detail, Buffer *body);

/* The event that ends a stream which broke off; for UPSTREAM_FAILED and UPSTREAM_TIMEOUT. */
extern void refusal_event(Refusal refusal, const char *request_id, Buffer *event);

extern void reply_status(Buffer *head, int status);
extern void reply_number(Buffer *head, const char *name, int64_t value);

/* In value, bytes other than printable ASCII become '?': nothing in it can end the header. */
extern void reply_header(Buffer *head, const char *name, const char *value);

#endif
