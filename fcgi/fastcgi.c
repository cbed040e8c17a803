/*
 * fastcgi.c
 *	  A connection of the web server's: requests in, answers out.
 */
#include "fastcgi.h"
#include "clock.h"
#include "task.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* ms that a kept connection may be silent: more than a web server keeps one (nginx: 60 s) */
#define RECEIVE_TIMEOUT 120000
/* ms that a peer may refuse to take what we send */
#define SEND_TIMEOUT 30000
/* ms that a peer may take to go on with a request that has been answered already, and in all */
#define LINGER_SILENCE 2000
#define LINGER_MAX 30000
/* Bytes of a question for our limits that are looked at. */
#define QUESTION_MAX 256

/* Values and layouts of section 8. */
enum
{
	VERSION = 1,

	BEGIN_REQUEST = 1,
	ABORT_REQUEST = 2,
	END_REQUEST = 3,
	PARAMS = 4,
	STDIN = 5,
	STDOUT = 6,
	GET_VALUES = 9,
	GET_VALUES_RESULT = 10,
	UNKNOWN_TYPE = 11,

	RESPONDER = 1,
	AUTHORIZER = 2,

	KEEP_CONN = 1,

	REQUEST_COMPLETE = 0,
	CANT_MPX_CONN = 1,
	UNKNOWN_ROLE = 3
};

typedef struct Header
{
	uint8_t version;
	uint8_t type;
	uint16_t id; /* this and the next in network byte order */
	uint16_t content_length;
	uint8_t padding_length;
	uint8_t reserved;
} Header;

typedef struct BeginBody
{
	uint16_t role; /* in network byte order */
	uint8_t flags;
	uint8_t reserved[5];
} BeginBody;

typedef struct EndBody
{
	uint32_t app_status;
	uint8_t protocol_status;
	uint8_t reserved[3];
} EndBody;

typedef struct EndRecord
{
	Header header;
	EndBody body;
} EndRecord;

static Header
make_header(int type, uint16_t id, size_t content_length)
{
	return (Header){
		.version = VERSION,
		.type = (uint8_t) type,
		.id = htons(id),
		.content_length = htons((uint16_t) content_length),
	};
}

static EndRecord
make_end(uint16_t id, int protocol_status)
{
	return (EndRecord){
		.header = make_header(END_REQUEST, id, sizeof(EndBody)),
		.body.protocol_status = (uint8_t) protocol_status,
	};
}

void
fastcgi_init(Fastcgi *connection, int fd, int max_requests)
{
	memset(connection, 0, offsetof(Fastcgi, in));
	connection->fd = fd;
	connection->max_requests = max_requests;
	buffer_init(&connection->params, FASTCGI_PARAMS_MAX);
}

static bool
fail(Fastcgi *connection)
{
	connection->failed = true;
	return false;
}

/* ---- bytes ---- */

/* Waits, after a call that has failed, until it may succeed; false: it will not, or not in time. */
static bool
wait_for_peer(const Fastcgi *connection, short events, int timeout)
{
	struct pollfd peer = {.fd = connection->fd, .events = events};

	return errno == EINTR ||
		   ((errno == EAGAIN || errno == EWOULDBLOCK) && task_poll(&peer, 1, timeout) > 0);
}

/* Sends all of the pieces, which it changes. */
static bool
send_pieces(Fastcgi *connection, struct iovec *pieces, size_t count)
{
	struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};

	while (!connection->failed && message.msg_iovlen > 0)
	{
		ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0)
		{
			if (!wait_for_peer(connection, POLLOUT, SEND_TIMEOUT))
				return fail(connection);
			continue;
		}
		while (message.msg_iovlen > 0 && (size_t) sent >= message.msg_iov->iov_len)
		{
			sent -= (ssize_t) message.msg_iov->iov_len;
			message.msg_iov++;
			message.msg_iovlen--;
		}
		if (message.msg_iovlen > 0)
		{
			message.msg_iov->iov_base = (char *) message.msg_iov->iov_base + sent;
			message.msg_iov->iov_len -= (size_t) sent;
		}
	}
	return !connection->failed;
}

static bool
send_bytes(Fastcgi *connection, const void *bytes, size_t length)
{
	struct iovec piece = {.iov_base = (void *) bytes, .iov_len = length};

	return send_pieces(connection, &piece, 1);
}

/* Receives up to size bytes, at least one, and waits for that; 0: a failure. */
static size_t
receive_directly(Fastcgi *connection, char *bytes, size_t size)
{
	ssize_t received;

	do
		received = recv(connection->fd, bytes, size, MSG_DONTWAIT);
	while (received < 0 && wait_for_peer(connection, POLLIN, RECEIVE_TIMEOUT));
	if (received > 0)
		return (size_t) received;
	fail(connection);
	return 0;
}

/* Takes up to size bytes that have come, at least one, and waits for that; 0: a failure. */
static size_t
receive(Fastcgi *connection, char *bytes, size_t size)
{
	size_t length;

	if (connection->failed)
		return 0;
	if (connection->in_begin == connection->in_end)
	{
		if (bytes != NULL && size >= sizeof(connection->in))
			return receive_directly(connection, bytes, size);
		connection->in_begin = 0;
		connection->in_end = receive_directly(connection, connection->in, sizeof(connection->in));
	}

	length = connection->in_end - connection->in_begin;
	if (length > size)
		length = size;
	if (bytes != NULL)
		memcpy(bytes, connection->in + connection->in_begin, length);
	connection->in_begin += length;
	return length;
}

/* Takes that many bytes; bytes NULL: and forgets them. */
static bool
receive_all(Fastcgi *connection, void *bytes, size_t size)
{
	char *end = bytes;

	while (size > 0)
	{
		size_t length = receive(connection, end, size);

		if (length == 0)
			return false;
		if (end != NULL)
			end += length;
		size -= length;
	}
	return true;
}

/* Takes from the record's content. */
static size_t
receive_content(Fastcgi *connection, char *bytes, size_t size)
{
	size_t length =
		receive(connection, bytes, size < connection->content ? size : connection->content);

	connection->content -= length;
	return length;
}

/* ---- records ---- */

/* A length of a name or a value (3.4): one byte, or four of which the first has its top bit set. */
static bool
read_length(const char **from, const char *end, size_t *length)
{
	const unsigned char *bytes = (const unsigned char *) *from;

	if (*from == end)
		return false;
	*length = bytes[0];
	if (bytes[0] < 0x80)
	{
		*from += 1;
		return true;
	}
	if (end - *from < 4)
		return false;
	*length = (size_t) (bytes[0] & 0x7f) << 24 | (size_t) bytes[1] << 16 | (size_t) bytes[2] << 8 |
			  bytes[3];
	*from += 4;
	return true;
}

/* Reads the lengths of a pair, which is then wholly there; false: it is not. */
static bool
read_pair(const char **from, const char *end, size_t *name_length, size_t *value_length)
{
	return read_length(from, end, name_length) && read_length(from, end, value_length) &&
		   *name_length <= (size_t) (end - *from) &&
		   *value_length <= (size_t) (end - *from) - *name_length;
}

/* Answers FCGI_GET_VALUES (4.1). */
static bool
tell_limits(Fastcgi *connection)
{
	static const char *const names[] = {"FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS"};
	const int values[] = {connection->max_requests, connection->max_requests, 0};
	bool asked[] = {false, false, false};
	char question[QUESTION_MAX];
	const char *from = question;
	size_t length = connection->content < sizeof(question) ? connection->content : sizeof(question);
	size_t name_length;
	size_t value_length;
	char answer[sizeof(Header) + QUESTION_MAX];
	size_t answer_length = sizeof(Header);
	Header header;

	if (!receive_all(connection, question, length))
		return false;
	connection->content -= length;
	while (read_pair(&from, question + length, &name_length, &value_length))
	{
		for (int i = 0; i < 3; i++)
			asked[i] |= name_length == strlen(names[i]) && memcmp(from, names[i], name_length) == 0;
		from += name_length + value_length;
	}

	for (int i = 0; i < 3; i++)
	{
		char value[12];
		int digits = snprintf(value, sizeof(value), "%d", values[i]);

		if (asked[i])
			answer_length += (size_t) sprintf(answer + answer_length, "%c%c%s%s",
											  (int) strlen(names[i]), digits, names[i], value);
	}
	header = make_header(GET_VALUES_RESULT, 0, answer_length - sizeof(header));
	memcpy(answer, &header, sizeof(header));
	return send_bytes(connection, answer, answer_length);
}

/* Answers a management record of a type we do not know (4.2). */
static bool
tell_unknown(Fastcgi *connection, int type)
{
	struct
	{
		Header header;
		uint8_t type;
		uint8_t reserved[7];
	} answer = {.header = make_header(UNKNOWN_TYPE, 0, 8), .type = (uint8_t) type};

	return send_bytes(connection, &answer, sizeof(answer));
}

static bool
send_end(Fastcgi *connection, uint16_t id, int protocol_status)
{
	EndRecord end = make_end(id, protocol_status);

	return send_bytes(connection, &end, sizeof(end));
}

/* Begins a request (5.1), if it is one for us. */
static bool
begin_request(Fastcgi *connection, uint16_t id)
{
	BeginBody body;
	int role;

	if (connection->id == id || connection->content != sizeof(body))
		return fail(connection);
	if (connection->id != 0)
		return send_end(connection, id, CANT_MPX_CONN);
	if (!receive_all(connection, &body, sizeof(body)))
		return false;
	connection->content = 0;

	role = ntohs(body.role);
	connection->keep = (body.flags & KEEP_CONN) != 0;
	if (role != RESPONDER && role != AUTHORIZER)
		return send_end(connection, id, UNKNOWN_ROLE) && (connection->keep || fail(connection));
	connection->id = id;
	connection->aborted = false;
	connection->complete = role == AUTHORIZER; /* which gets no body (6.3) */
	return true;
}

/*
 * Goes on to the next record of that type and of our request, and sees to all
 * that come before it. False: none will come, because of a failure or because
 * the request was aborted (5.4).
 */
static bool
find_record(Fastcgi *connection, int type)
{
	for (;;)
	{
		Header header;
		uint16_t id;

		if (!receive_all(connection, NULL, connection->content + connection->padding) ||
			!receive_all(connection, &header, sizeof(header)))
			return false;
		if (header.version != VERSION)
			return fail(connection);
		id = ntohs(header.id);
		connection->content = ntohs(header.content_length);
		connection->padding = header.padding_length;

		if (id == 0)
		{
			bool told = header.type == GET_VALUES ? tell_limits(connection)
												  : tell_unknown(connection, header.type);

			if (!told)
				return false;
		}
		else if (header.type == BEGIN_REQUEST)
		{
			if (!begin_request(connection, id))
				return false;
			if (type == BEGIN_REQUEST && connection->id != 0)
				return true;
		}
		else if (id != connection->id)
			continue; /* of a request that was refused or is over (3.3) */
		else if (header.type == type)
			return true;
		else if (header.type == ABORT_REQUEST)
		{
			connection->aborted = true;
			return false;
		}
		else
			return fail(connection);
	}
}

/* ---- a request ---- */

/* Collects the parameters as they come. */
static bool
read_params(Fastcgi *connection)
{
	Buffer *params = &connection->params;

	while (find_record(connection, PARAMS))
	{
		if (connection->content == 0)
			return true;
		while (connection->content > 0)
		{
			char *end = connection->oversized ? NULL : buffer_reserve(params, connection->content);
			size_t length;

			if (end == NULL && !connection->oversized)
			{
				connection->oversized = true;
				buffer_free(params);
			}
			length = receive_content(connection, end, connection->content);
			if (length == 0)
				return false;
			params->length += end != NULL ? length : 0;
		}
	}
	return false;
}

/*
 * Makes strings of them, in place: the lengths, which go, leave room for the
 * NULs. False: they are not what they say.
 */
static bool
split_params(Buffer *params)
{
	const char *from = params->data;
	const char *end;
	char *to = params->data;

	if (params->length == 0)
		return true;
	end = from + params->length;
	while (from < end)
	{
		size_t name_length;
		size_t value_length;

		if (!read_pair(&from, end, &name_length, &value_length))
			return false;
		if (memchr(from, '\0', name_length + value_length) == NULL)
		{
			memmove(to, from, name_length);
			to += name_length;
			*to++ = '\0';
			memmove(to, from + name_length, value_length);
			to += value_length;
			*to++ = '\0';
		}
		from += name_length + value_length;
	}
	params->length = (size_t) (to - params->data);
	return true;
}

/* Forgets the request. */
static void
end_request(Fastcgi *connection)
{
	connection->id = 0;
	connection->oversized = false;
	buffer_free(&connection->params);
}

bool
fastcgi_accept(Fastcgi *connection)
{
	while (find_record(connection, BEGIN_REQUEST))
	{
		if (read_params(connection))
			return split_params(&connection->params) || fail(connection);
		if (connection->failed || !fastcgi_finish(connection, true))
			return false;
	}
	return false;
}

const char *
fastcgi_param(const Fastcgi *connection, const char *name)
{
	const char *at = connection->params.data;
	size_t left = connection->params.length;

	while (left > 0)
	{
		const char *value = at + strlen(at) + 1;
		const char *next = value + strlen(value) + 1;

		if (strcmp(at, name) == 0)
			return value;
		left -= (size_t) (next - at);
		at = next;
	}
	return NULL;
}

size_t
fastcgi_read(Fastcgi *connection, char *bytes, size_t size)
{
	size_t length = 0;

	while (length < size && !connection->complete && !connection->aborted && !connection->failed)
	{
		if (connection->content > 0)
			length += receive_content(connection, bytes + length, size - length);
		else if (find_record(connection, STDIN))
			connection->complete = connection->content == 0;
	}
	return length;
}

/* ---- an answer ---- */

bool
fastcgi_flush(Fastcgi *connection)
{
	Header header = make_header(STDOUT, connection->id, connection->out_length);
	size_t length = sizeof(header) + connection->out_length;

	if (connection->out_length == 0)
		return !connection->failed;
	memcpy(connection->out, &header, sizeof(header));
	connection->out_length = 0;
	return send_bytes(connection, connection->out, length);
}

bool
fastcgi_write(Fastcgi *connection, const char *bytes, size_t length)
{
	if (length <= FASTCGI_OUT_SIZE - connection->out_length)
	{
		memcpy(connection->out + sizeof(Header) + connection->out_length, bytes, length);
		connection->out_length += length;
		return !connection->failed;
	}

	fastcgi_flush(connection);
	while (length > 0 && !connection->failed)
	{
		size_t content = length < FASTCGI_CONTENT_MAX ? length : FASTCGI_CONTENT_MAX;
		Header header = make_header(STDOUT, connection->id, content);
		struct iovec pieces[] = {
			{.iov_base = &header, .iov_len = sizeof(header)},
			{.iov_base = (void *) bytes, .iov_len = content},
		};

		send_pieces(connection, pieces, 2);
		bytes += content;
		length -= content;
	}
	return !connection->failed;
}

/*
 * nginx does not use a connection again when it finds something behind the end of an
 * answer (ngx_http_fastcgi_input_filter). Without that, it might send another request
 * on a connection that we close before it sees that, and lose it. Others would not
 * look; Apache, before it uses a connection, looks whether it is at its end.
 */
static bool
peer_is_nginx(const Fastcgi *connection)
{
	const char *software = fastcgi_param(connection, "SERVER_SOFTWARE"); /* RFC 3875, 4.1.17 */

	return software != NULL && strncmp(software, "nginx/", 6) == 0;
}

/*
 * By one call, with what is left of the answer: the end of the stream, and of the
 * request; and a record that says nothing, where nginx would like to keep the
 * connection and we will close it.
 */
bool
fastcgi_finish(Fastcgi *connection, bool keep)
{
	bool again = keep && connection->keep && (connection->complete || connection->aborted);
	Header header = make_header(STDOUT, connection->id, connection->out_length);
	Header eof = make_header(STDOUT, connection->id, 0);
	EndRecord end = make_end(connection->id, REQUEST_COMPLETE);
	Header nothing = make_header(GET_VALUES_RESULT, 0, 0);
	char *to = connection->out;

	if (connection->out_length > 0)
	{
		memcpy(to, &header, sizeof(header));
		to += sizeof(header) + connection->out_length;
	}
	memcpy(to, &eof, sizeof(eof));
	to += sizeof(eof);
	memcpy(to, &end, sizeof(end));
	to += sizeof(end);
	if (connection->keep && !again && peer_is_nginx(connection))
	{
		memcpy(to, &nothing, sizeof(nothing));
		to += sizeof(nothing);
	}
	send_bytes(connection, connection->out, (size_t) (to - connection->out));

	connection->out_length = 0;
	end_request(connection);
	return again && !connection->failed;
}

void
fastcgi_close(Fastcgi *connection)
{
	struct pollfd readable = {.fd = connection->fd, .events = POLLIN};
	int64_t end = clock_ms() + LINGER_MAX;

	/* What was never read would make the kernel cut the connection, answer and all. */
	if (!connection->failed && !connection->complete && shutdown(connection->fd, SHUT_WR) == 0)
	{
		while (clock_ms() < end && task_poll(&readable, 1, LINGER_SILENCE) > 0 &&
			   recv(connection->fd, connection->in, sizeof(connection->in), MSG_DONTWAIT) > 0)
			;
	}
	buffer_free(&connection->params);
}
