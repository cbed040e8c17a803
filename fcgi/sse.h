/*
 * sse.h
 *	  Splits a stream of server-sent events into events.
 *
 * The format is that of the HTML standard, section 9.2 (Server-sent events).
 * The parser owns what it holds; use sse_init, then any number of sse_feed,
 * each followed by sse_next until that returns false, then sse_free.
 */
#ifndef REGPILOT_SSE_H
#define REGPILOT_SSE_H

#include "buffer.h"

typedef struct SseParser
{
	Buffer pending;	 /* normalised bytes: lines end in one LF */
	Buffer data;	 /* the data of the event that sse_next returned last */
	size_t consumed; /* bytes of pending that belong to events already returned */
	size_t scanned;	 /* bytes of pending known to hold no end of an event */
	bool after_cr;	 /* the last byte fed was CR: an LF now belongs to it */
} SseParser;

typedef struct SseEvent
{
	const char *text; /* the whole event with its empty line, to be passed on; not NUL-terminated */
	size_t length;
	const char *data; /* its data lines joined by LF; empty for a mere comment */
	size_t data_length;
} SseEvent;

/* limit: bytes that one event, and what was fed of the next, may have together */
extern void sse_init(SseParser *parser, size_t limit);
extern void sse_free(SseParser *parser);

/* False when the limit is exceeded. */
extern bool sse_feed(SseParser *parser, const char *bytes, size_t length)
	__attribute__((warn_unused_result));

/* The next complete event, valid until the next call with this parser; false when there is none. */
extern bool sse_next(SseParser *parser, SseEvent *event);

/*
 * Appends the event with its data replaced, by a text in which a newline means no
 * more than a space: so it is one line.
 */
extern bool sse_replace_data(const SseEvent *event, const Buffer *data, Buffer *result)
	__attribute__((warn_unused_result));

#endif
