/*
 * fastcgi.h
 *	  A connection of the web server's: requests in, answers out (FastCGI
 *	  Specification, version 1.0; section numbers in fastcgi.c are its own).
 *
 * Requests come one after the other; one that begins while another is served is
 * refused, as the protocol provides for. Nothing a peer sends takes more memory
 * than FASTCGI_PARAMS_MAX and this struct, and whatever breaks the protocol ends
 * the connection, and nothing else.
 *
 * A connection belongs to one task, and its descriptor to the caller. A peer that keeps
 * us waiting for too long is a failure.
 */
#ifndef REGPILOT_FASTCGI_H
#define REGPILOT_FASTCGI_H

#include "buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sizes in bytes; the fuzz target has others. */
#ifndef FASTCGI_PARAMS_MAX
#define FASTCGI_PARAMS_MAX (256 * 1024) /* of a request, as they come */
#define FASTCGI_CONTENT_MAX 65528		/* of a record: the most that is a multiple of 8 (3.3) */
#define FASTCGI_IN_SIZE 4096			/* read at once, but for more that is asked for */
#define FASTCGI_OUT_SIZE 4096			/* collected before they are sent */
#endif

typedef struct Fastcgi
{
	int fd;
	int max_requests; /* that we say we can serve at once, over as many connections */
	bool failed;	  /* the connection is of no more use */

	/* the request that is being read or served */
	uint16_t id;	/* 0: none */
	bool keep;		/* another one may follow */
	bool oversized; /* it had too much in its parameters: they are forgotten */
	bool complete;	/* its input has come to its end */
	bool aborted;	/* the peer has lost interest in it */
	Buffer params;	/* as they come; then each as NAME NUL VALUE NUL */

	/* the record that is being read */
	size_t content; /* bytes that are still to come */
	size_t padding;

	size_t in_begin; /* bytes read from here on wait to be looked at */
	size_t in_end;
	size_t out_length;
	char in[FASTCGI_IN_SIZE];
	char out[FASTCGI_OUT_SIZE + 40]; /* a record's header, content, and what ends an answer */
} Fastcgi;

extern void fastcgi_init(Fastcgi *connection, int fd, int max_requests);

/* Waits for a request and reads its parameters. False: the connection is to be closed. */
extern bool fastcgi_accept(Fastcgi *connection) __attribute__((warn_unused_result));

/*
 * A parameter of the request, which lives until fastcgi_finish; the first of
 * that name. NULL: none. One that has a NUL in it counts as none.
 */
extern const char *fastcgi_param(const Fastcgi *connection, const char *name);

/*
 * Reads from the request's body. Gives less than was asked for only at its end,
 * when "complete" is set, and after a failure.
 */
extern size_t fastcgi_read(Fastcgi *connection, char *bytes, size_t size);

/* Adds to the answer. Both return whether all is well with the connection. */
extern bool fastcgi_write(Fastcgi *connection, const char *bytes, size_t length);
extern bool fastcgi_flush(Fastcgi *connection);

/* Ends the answer. False: the connection is to be closed. */
extern bool fastcgi_finish(Fastcgi *connection, bool keep) __attribute__((warn_unused_result));

/*
 * Before the caller closes the descriptor: makes sure that an answer reaches a
 * peer that has not sent all of its request.
 */
extern void fastcgi_close(Fastcgi *connection);

#endif
