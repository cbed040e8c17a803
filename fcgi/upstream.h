/*
 * upstream.h
 *	  One call to an upstream, as seen by those who make it (request.c) and
 *	  those who carry it out (relay.c, echo.c).
 */
#ifndef REGPILOT_UPSTREAM_H
#define REGPILOT_UPSTREAM_H

#include "buffer.h"
#include "chat.h"

/* Bytes that an answer which is not streamed may have. */
#define UPSTREAM_BODY_MAX (16 * 1024 * 1024)

typedef enum UpstreamResult
{
	UPSTREAM_ANSWERED,	  /* completely: status and body are set, or all events forwarded */
	UPSTREAM_FAILED,	  /* nothing was forwarded: another upstream may be tried */
	UPSTREAM_TIMED_OUT,	  /* the same, for want of time */
	UPSTREAM_BROKEN_OFF,  /* failed after an event was forwarded */
	UPSTREAM_FELL_SILENT, /* the same, for want of time */
	UPSTREAM_CLIENT_GONE  /* ended because nobody waits for the answer any more */
} UpstreamResult;

typedef struct UpstreamCall
{
	/* what is asked */
	const char *base_url;
	const char *path;	/* behind base_url */
	const char *secret; /* NULL: none */
	const char *body;	/* JSON */
	size_t body_length;
	bool stream;
	bool hides_usage;	 /* the usage in a stream is for us, not for the client */
	int connect_timeout; /* ms */
	int timeout;		 /* ms of silence */
	int64_t deadline;	 /* of clock_ms(), for all of it */
	int client;			 /* readable once the client has gone; -1: it stays to the end */

	/* Passes an event on to the client; false when that has gone. */
	bool (*forward)(void *context, const char *event, size_t length);
	void *context;

	/* what comes back */
	bool at_fault;	   /* a failure is the upstream's own */
	int64_t latency;   /* µs until its answer began; 0: it did not */
	int64_t duration;  /* µs in all */
	int retry_after;   /* seconds, when it has failed and said so */
	int status;		   /* of an answer that was not streamed */
	Buffer answer;	   /* its body; made and freed by the caller */
	Usage usage;	   /* as far as known, whatever the result */
	char problem[160]; /* for the log, when it failed */
} UpstreamCall;

#endif
