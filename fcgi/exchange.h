/*
 * exchange.h
 *	  One request and its answer, as those who serve it see them: no FastCGI.
 *
 * An Exchange belongs to the task that serves it. Whoever serves it sends one
 * answer: exchange_refuse(), exchange_answer(), or exchange_begin_stream() and then
 * exchange_send() for each piece.
 */
#ifndef REGPILOT_EXCHANGE_H
#define REGPILOT_EXCHANGE_H

#include "authorizer.h"
#include "buffer.h"
#include "chat.h"
#include "credentials.h"
#include "reply.h"

#include <stdbool.h>
#include <stdint.h>

/* Status of an outcome whose client went away before the answer was complete (nginx's number). */
#define STATUS_CLIENT_GONE 499

typedef struct Exchange
{
	struct Fastcgi *fastcgi;
	int client;			   /* readable once the client has gone; -1: not to be watched */
	char id[33];		   /* x-request-id */
	Credential credential; /* length 0: none has been looked for, or found */
	bool asked;			   /* authorization has a verdict */
	bool judged; /* authorization is valid, of a key that is good or has used up its limit */
	Authorization authorization;
	const char *allow; /* the method that the address takes, for a 405 */
	bool guards;	   /* the answer is for a web server that asks whether a request may pass */
	bool confidential; /* nobody on the way may keep the answer */

	/* what is known of the outcome */
	int64_t started;	/* clock_ms() */
	int64_t first_byte; /* the same, when the answer began; 0: it has not */
	int status;			/* as answered, or 499, or why a stream broke off */
	bool streaming;		/* the head of a stream has been sent */
	Usage usage;
	char *model;	  /* asked of the upstream; owned; NULL: none */
	char *model_path; /* upstream/model; owned; NULL: none */
} Exchange;

/* A parameter of the request (RFC 3875, 4.1), which lives as long as that; NULL: none. */
extern const char *exchange_param(const Exchange *exchange, const char *name);

/* Looks for a key in the headers that may have one; exchange->credential is it. False: there is none. */
extern bool exchange_find_key(Exchange *exchange) __attribute__((warn_unused_result));

/* Reads a JSON body to its end, as long as that is within the buffer's limit. */
extern Refusal exchange_read_json(const Exchange *exchange, Buffer *body)
	__attribute__((warn_unused_result));

/*
 * Reads and forgets what is left of the request. False: it is too much, or cut
 * off, so the connection must be closed, or the rest would be taken for the
 * next request.
 */
extern bool exchange_drain(const Exchange *exchange) __attribute__((warn_unused_result));

/* Begins a head with what every answer has; the caller adds headers and gives it to the next. */
extern void exchange_begin_head(const Exchange *exchange, int status, Buffer *head);

/* Ends and frees the head, and sends it with a body. type NULL: no body. */
extern void exchange_answer(Exchange *exchange, Buffer *head, const char *type, const Buffer *body);

/* Sends a body that was made here, with status 200. One that failed: refused as our own fault. */
extern void exchange_answer_text(Exchange *exchange, const char *type, const Buffer *body);

/* Sends a JSON value with status 200; takes the value over. NULL: refused as our own fault. */
extern void exchange_answer_json(Exchange *exchange, json_t *value);

extern void exchange_refuse(Exchange *exchange, Refusal refusal);

/* Sends the head of an event stream. */
extern void exchange_begin_stream(Exchange *exchange);

/* Sends a piece of a stream at once; false when the client has gone. */
extern bool exchange_send(Exchange *exchange, const char *bytes, size_t length);

#endif
