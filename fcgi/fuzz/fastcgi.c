/*
 * fastcgi.c
 *	  Fuzz target: what a web server, or who claims to be one, sends to the responder.
 *
 * Input: a byte that says in which pieces the rest comes and the answers go; then the
 * connection's bytes. Each request is answered with what was understood of it.
 */
#include "fuzz.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Small ones, so that all of them are met. */
#define FASTCGI_PARAMS_MAX 80
#define FASTCGI_CONTENT_MAX 48
#define FASTCGI_IN_SIZE 24
#define FASTCGI_OUT_SIZE 40

/* ---- the peer ---- */

static ssize_t peer_recv(int fd, void *bytes, size_t size, int flags);
static ssize_t peer_sendmsg(int fd, const struct msghdr *message, int flags);
static int peer_shutdown(int fd, int how);

#define recv peer_recv
#define sendmsg peer_sendmsg
#define task_poll peer_poll
#define shutdown peer_shutdown
#include "../fastcgi.c"

static struct
{
	const char *bytes; /* that it has not sent yet */
	size_t length;
	unsigned int pieces;
	Buffer got;
	bool closed; /* we have said that we send no more */
} peer;

static size_t
pick(size_t limit)
{
	peer.pieces = peer.pieces * 1103515245u + 12345u;
	return (peer.pieces >> 8) % limit;
}

static ssize_t
peer_recv(int fd, void *bytes, size_t size, int flags)
{
	size_t length;

	(void) fd, (void) flags;
	CHECK(size > 0);
	if (pick(16) == 0)
	{
		errno = pick(2) == 0 ? EINTR : EAGAIN;
		return -1;
	}
	length = 1 + pick(size);
	if (length > peer.length)
		length = peer.length;
	memcpy(bytes, peer.bytes, length);
	peer.bytes += length;
	peer.length -= length;
	return (ssize_t) length;
}

static ssize_t
peer_sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t most = 1 + pick(100);
	size_t sent = 0;

	(void) fd;
	CHECK(flags == (MSG_NOSIGNAL | MSG_DONTWAIT));
	CHECK(!peer.closed);
	if (pick(16) == 0)
	{
		errno = pick(2) == 0 ? EINTR : EAGAIN;
		return -1;
	}
	for (size_t i = 0; i < message->msg_iovlen && sent < most; i++)
	{
		size_t length = message->msg_iov[i].iov_len;

		if (length > most - sent)
			length = most - sent;
		buffer_append(&peer.got, message->msg_iov[i].iov_base, length);
		sent += length;
	}
	return (ssize_t) sent;
}

int
peer_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	(void) fds, (void) count, (void) timeout;
	return 1;
}

static int
peer_shutdown(int fd, int how)
{
	(void) fd;
	CHECK(how == SHUT_WR);
	peer.closed = true;
	return 0;
}

/* ---- what is said of a request in its answer ---- */

static const char *const names[] = {"A", "NAME", "HTTP_X_API_KEY", ""};

static void
tell_value(Buffer *answer, const char *value)
{
	buffer_append_string(answer, value != NULL ? value : "none");
	buffer_append_string(answer, ";");
}

static void
tell_rest(Buffer *answer, bool oversized, bool complete, bool aborted, const Buffer *body)
{
	buffer_printf(answer, "%d%d%d;", oversized, complete, aborted);
	buffer_append(answer, body->length > 0 ? body->data : "", body->length);
}

/* ---- what is expected, as plainly as can be ---- */

typedef struct Expected
{
	Buffer trace; /* of the records sent */
	uint16_t id;
	bool keep;
	bool oversized;
	bool in_body;
	Buffer params;
	Buffer body;
} Expected;

static size_t
expect_length(const uint8_t *bytes, size_t length, size_t *at)
{
	size_t value;

	if (*at < length && bytes[*at] < 128)
		return bytes[(*at)++];
	if (*at + 4 > length)
		return SIZE_MAX / 4;
	value = (((size_t) bytes[*at] - 128) * 256 + bytes[*at + 1]) * 65536 + bytes[*at + 2] * 256u +
			bytes[*at + 3];
	*at += 4;
	return value;
}

/* Finds the pair of that name, or NULL for the first that is whole; false: a pair is not. */
static bool
expect_pair(const Buffer *pairs, const char *name, char **value)
{
	const uint8_t *bytes = (const uint8_t *) pairs->data;
	size_t at = 0;

	*value = NULL;
	while (at < pairs->length)
	{
		size_t name_length = expect_length(bytes, pairs->length, &at);
		size_t value_length = expect_length(bytes, pairs->length, &at);

		if (name_length + value_length > pairs->length - at)
			return false;
		if (*value == NULL && name_length == strlen(name) &&
			memcmp(bytes + at, name, name_length) == 0 &&
			memchr(bytes + at + name_length, '\0', value_length) == NULL)
			*value = strndup((const char *) bytes + at + name_length, value_length);
		at += name_length + value_length;
	}
	return true;
}

static void
expect_end(Expected *expected, uint16_t id, int status)
{
	buffer_printf(&expected->trace, "end %d %d\n", id, status);
}

/* The request is answered; false: the connection ends then. */
static bool
expect_answer(Expected *expected, bool complete, bool aborted)
{
	Buffer answer;

	buffer_init(&answer, SIZE_MAX / 4);
	for (int i = 0; i < 4; i++)
	{
		char *value;

		CHECK(expect_pair(&expected->params, names[i], &value));
		tell_value(&answer, value);
		free(value);
	}
	tell_rest(&answer, expected->oversized, complete, aborted, &expected->body);
	buffer_printf(&expected->trace, "answer %d ", expected->id);
	buffer_append(&expected->trace, answer.data, answer.length);
	expect_end(expected, expected->id, REQUEST_COMPLETE);
	buffer_free(&answer);

	expected->id = 0;
	return expected->keep && (complete || aborted);
}

static void
expect_limits(Expected *expected, const uint8_t *content, size_t length)
{
	static const char *const limits[] = {"FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS"};

	buffer_append_string(&expected->trace, "limits");
	for (int i = 0; i < 3; i++)
	{
		size_t at = 0;

		while (at < length)
		{
			size_t name_length = expect_length(content, length, &at);
			size_t value_length = expect_length(content, length, &at);

			if (name_length + value_length > length - at)
				break;
			if (name_length == strlen(limits[i]) &&
				memcmp(content + at, limits[i], name_length) == 0)
			{
				buffer_printf(&expected->trace, " %s=%s", limits[i], i == 2 ? "0" : "77");
				break;
			}
			at += name_length + value_length;
		}
	}
	buffer_append_string(&expected->trace, "\n");
}

/* One record, of which so many bytes of content are there; false: the connection ends. */
static bool
expect_record(Expected *expected, int type, uint16_t id, const uint8_t *content, size_t length,
			  size_t there)
{
	bool served = expected->in_body;

	if (id == 0 && type == GET_VALUES)
	{
		size_t looked_at = length < QUESTION_MAX ? length : QUESTION_MAX;

		if (there < looked_at)
			return false;
		expect_limits(expected, content, looked_at);
		return true;
	}
	if (id == 0)
	{
		buffer_printf(&expected->trace, "unknown %d\n", type);
		return true;
	}
	if (type == BEGIN_REQUEST)
	{
		if (id == expected->id || length != 8)
			return false;
		if (expected->id != 0)
		{
			expect_end(expected, id, CANT_MPX_CONN);
			return true;
		}
		if (there < 8)
			return false;
		expected->keep = content[2] & 1;
		if (content[0] != 0 || (content[1] != RESPONDER && content[1] != AUTHORIZER))
		{
			expect_end(expected, id, UNKNOWN_ROLE);
			return expected->keep;
		}
		expected->id = id;
		expected->oversized = false;
		expected->in_body = false;
		expected->params.length = expected->body.length = 0;
		buffer_printf(&expected->body, "%s", content[1] == AUTHORIZER ? "authorizer" : "");
		return true;
	}
	if (id != expected->id)
		return true;
	if (type == ABORT_REQUEST)
	{
		expected->in_body = false;
		if (served)
			return expect_answer(expected, false, true);
		expect_end(expected, id, REQUEST_COMPLETE);
		expected->id = 0;
		return expected->keep;
	}
	if (type != (expected->in_body ? STDIN : PARAMS))
		return false;
	if (expected->in_body && length == 0)
	{
		expected->in_body = false;
		return expect_answer(expected, true, false);
	}
	if (expected->in_body)
	{
		buffer_append(&expected->body, content, there);
		return true;
	}
	if (length == 0)
	{
		char *value;
		bool sound = expect_pair(&expected->params, names[0], &value);
		bool authorizer = expected->body.length > 0;

		free(value);
		if (!sound)
			return false;
		expected->body.length = 0;
		expected->in_body = !authorizer;
		return !authorizer || expect_answer(expected, true, false);
	}
	if (expected->params.length + length > FASTCGI_PARAMS_MAX)
		expected->oversized = true;
	if (expected->oversized)
		expected->params.length = 0;
	else
		buffer_append(&expected->params, content, there);
	return true;
}

static void
expect(Expected *expected, const uint8_t *bytes, size_t length)
{
	size_t at = 0;
	bool open = true;

	memset(expected, 0, sizeof(*expected));
	expected->trace.limit = expected->params.limit = expected->body.limit = SIZE_MAX / 4;
	while (open && length - at >= 8 && bytes[at] == 1)
	{
		const uint8_t *header = bytes + at;
		size_t content = (size_t) header[4] * 256 + header[5];
		size_t there = content < length - at - 8 ? content : length - at - 8;

		open = expect_record(expected, header[1], (uint16_t) (header[2] * 256 + header[3]),
							 header + 8, content, there);
		at += 8 + content + header[6];
		if (at > length)
			at = length;
	}
	buffer_free(&expected->params);
	buffer_free(&expected->body);
}

/* ---- what happens ---- */

/* Writes down what the peer got, without the limits of records. */
static void
read_answers(Buffer *trace)
{
	const uint8_t *at = (const uint8_t *) peer.got.data;
	size_t left = peer.got.length;
	bool answering = false;
	bool ended = false;

	while (left > 0)
	{
		size_t content;
		size_t size;
		int id;

		CHECK(left >= 8);
		content = (size_t) at[4] * 256 + at[5];
		size = 8 + content + at[6];
		id = at[2] * 256 + at[3];
		CHECK(at[0] == 1);
		CHECK(left >= size);
		switch (at[1])
		{
			case STDOUT:
				CHECK(!ended);
				if (!answering && content > 0)
					buffer_printf(trace, "answer %d ", id);
				answering = content > 0;
				ended = !answering;
				buffer_append(trace, at + 8, content);
				break;
			case END_REQUEST:
				CHECK(!answering && content == 8);
				buffer_printf(trace, "end %d %d\n", id, at[12]);
				ended = false;
				break;
			case GET_VALUES_RESULT:
			{
				size_t pair = 8;

				buffer_append_string(trace, "limits");
				while (pair < 8 + content)
				{
					buffer_printf(trace, " %.*s=", at[pair], at + pair + 2);
					buffer_append(trace, at + pair + 2 + at[pair], at[pair + 1]);
					pair += 2u + at[pair] + at[pair + 1];
				}
				CHECK(pair == 8 + content);
				buffer_append_string(trace, "\n");
				break;
			}
			case UNKNOWN_TYPE:
				CHECK(content == 8);
				buffer_printf(trace, "unknown %d\n", at[8]);
				break;
			default:
				CHECK(!"a record that a responder may send");
		}
		at += size;
		left -= size;
	}
}

static bool
answer(Fastcgi *connection)
{
	Buffer body;
	Buffer text;
	size_t at = 0;
	size_t size = 1 + pick(30);
	bool more = true;

	buffer_init(&body, SIZE_MAX / 4);
	buffer_init(&text, SIZE_MAX / 4);
	while (more)
	{
		char *end = buffer_reserve(&body, size);
		size_t length = fastcgi_read(connection, end, size);

		body.length += length;
		more = length == size;
	}
	for (int i = 0; i < 4; i++)
		tell_value(&text, fastcgi_param(connection, names[i]));
	tell_rest(&text, connection->oversized, connection->complete, connection->aborted, &body);

	while (at < text.length)
	{
		size_t length = 1 + pick(text.length - at);

		fastcgi_write(connection, text.data + at, length);
		at += length;
		if (pick(4) == 0)
			fastcgi_flush(connection);
	}
	buffer_free(&body);
	buffer_free(&text);
	return fastcgi_finish(connection, true);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	Fastcgi connection;
	Expected expected;
	Buffer trace;

	if (length == 0)
		return 0;
	memset(&peer, 0, sizeof(peer));
	peer.pieces = bytes[0];
	peer.bytes = (const char *) bytes + 1;
	peer.length = length - 1;
	buffer_init(&peer.got, SIZE_MAX / 4);
	buffer_init(&trace, SIZE_MAX / 4);

	fastcgi_init(&connection, 7, 77);
	while (fastcgi_accept(&connection) && answer(&connection))
		;
	fastcgi_close(&connection);

	expect(&expected, bytes + 1, length - 1);
	read_answers(&trace);
	CHECK(trace.length == expected.trace.length);
	CHECK(trace.length == 0 || memcmp(trace.data, expected.trace.data, trace.length) == 0);

	buffer_free(&expected.trace);
	buffer_free(&trace);
	buffer_free(&peer.got);
	return 0;
}
