/*-------------------------------------------------------------------------
 *
 * upstream.c
 *		The provider behind the benchmarks: one thread that answers in the
 *		formats of OpenAI's "chat completion" objects, as fast as it can.
 *
 *	upstream PORT
 *
 * The model asked for says what comes:
 *
 *	plain			an answer at once
 *	stream-N-MS		a stream of N events, the first at once and the others MS
 *					milliseconds apart
 *
 * The content of an event is its number, from 0, and the microseconds of
 * CLOCK_MONOTONIC at which it was sent; its id ends in the request's "user", by
 * which the client tells its own stream from others.  Both are found by a plain
 * search of the body, which must be compact JSON.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 4096
/* Bytes of a request. */
#define REQUEST_MAX 16384
#define USER_SIZE 64
/* Different pauses between events at a time. */
#define PACES_MAX 16
#define EPOLL_EVENTS 256

typedef struct Connection
{
	int fd;
	size_t length; /* of what has been read of a request */
	char request[REQUEST_MAX + 1];

	/* the stream that runs */
	int left; /* events; 0: none runs */
	int sent;
	char user[USER_SIZE];
	struct Pace *pace; /* NULL: in no queue */
	int64_t due;	   /* of the next event */
	TAILQ_ENTRY(Connection) link;
} Connection;

/* The streams with one pause between events, in the order in which they are due. */
typedef struct Pace
{
	int64_t pause; /* microseconds */
	TAILQ_HEAD(, Connection) queue;
} Pace;

static Pace paces[PACES_MAX];
static int pace_count;

static int64_t
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t) time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static Pace *
find_pace(int64_t pause)
{
	int i;

	for (i = 0; i < pace_count; i++)
	{
		if (paces[i].pause == pause)
			return &paces[i];
	}
	if (pace_count == PACES_MAX)
		return NULL;
	paces[i].pause = pause;
	TAILQ_INIT(&paces[i].queue);
	pace_count++;
	return &paces[i];
}

static void
queue(Connection *connection, Pace *pace, int64_t due)
{
	connection->pace = pace;
	connection->due = due;
	TAILQ_INSERT_TAIL(&pace->queue, connection, link);
}

static void
unqueue(Connection *connection)
{
	if (connection->pace != NULL)
		TAILQ_REMOVE(&connection->pace->queue, connection, link);
	connection->pace = NULL;
}

static void
close_connection(Connection *connection)
{
	unqueue(connection);
	close(connection->fd);
	free(connection);
}

/* Sends all, or closes: what the socket's buffer does not take, nobody reads. */
static bool
send_all(Connection *connection, const char *bytes, int length)
{
	if (write(connection->fd, bytes, (size_t) length) == length)
		return true;
	close_connection(connection);
	return false;
}

/* Sends the next event of a stream, and its end after the last; whether more are to come. */
static bool
send_event(Connection *connection)
{
	char event[512 + USER_SIZE];
	char chunks[sizeof(event) + 64];
	int length;

	length =
		snprintf(event, sizeof(event),
				 "data: {\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion.chunk\","
				 "\"created\":1700000000,\"model\":\"bench\",\"system_fingerprint\":\"fp_bench\","
				 "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d %lld\"},"
				 "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
				 connection->user, connection->sent++, (long long) now());
	connection->left--;
	length = snprintf(chunks, sizeof(chunks), "%x\r\n%s\r\n%s", (unsigned int) length, event,
					  connection->left == 0 ? "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" : "");
	return send_all(connection, chunks, length) && connection->left > 0;
}

/* Sends the events that are due; gives the ms until others are, or -1. */
static int
send_due_events(void)
{
	int64_t wait = -1;

	for (int i = 0; i < pace_count; i++)
	{
		Pace *pace = &paces[i];
		Connection *connection;

		while ((connection = TAILQ_FIRST(&pace->queue)) != NULL)
		{
			int64_t due = connection->due;
			int64_t left = due - now();

			if (left > 0)
			{
				if (wait < 0 || left < wait)
					wait = left;
				break;
			}
			unqueue(connection);
			if (send_event(connection))
				queue(connection, pace, due + pace->pause);
		}
	}
	return wait < 0 ? -1 : (int) ((wait + 999) / 1000);
}

static void
answer_plain(Connection *connection)
{
	static const char body[] =
		"{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,"
		"\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
		"\"content\":\"The quick brown fox jumps over the lazy dog, again and again.\"},"
		"\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,"
		"\"completion_tokens\":13,\"total_tokens\":22}}";
	char answer[sizeof(body) + 128];
	int length = snprintf(answer, sizeof(answer),
						  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
						  "Content-Length: %zu\r\n\r\n%s",
						  sizeof(body) - 1, body);

	send_all(connection, answer, length);
}

static void
answer_stream(Connection *connection, int events, int ms)
{
	static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
							   "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n";
	const char *user = strstr(connection->request, "\"user\":\"");
	Pace *pace = find_pace((int64_t) ms * 1000);

	connection->user[0] = '\0';
	if (user != NULL)
		sscanf(user, "\"user\":\"%63[^\"]", connection->user);
	connection->left = events;
	connection->sent = 0;
	if (pace == NULL)
		close_connection(connection);
	else if (send_all(connection, head, sizeof(head) - 1) && send_event(connection))
		queue(connection, pace, now() + pace->pause);
}

static void
answer(Connection *connection)
{
	static const char not_found[] = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"
									"Content-Length: 2\r\n\r\n{}";
	const char *model = strstr(connection->request, "\"model\":\"");
	int events;
	int ms;

	if (model != NULL && strncmp(model + 9, "plain\"", 6) == 0)
		answer_plain(connection);
	else if (model != NULL && sscanf(model + 9, "stream-%d-%d\"", &events, &ms) == 2 && events > 0)
		answer_stream(connection, events, ms);
	else
		send_all(connection, not_found, sizeof(not_found) - 1);
}

/* Reads what has come, and answers once a request is complete. */
static void
on_readable(Connection *connection)
{
	ssize_t length = read(connection->fd, connection->request + connection->length,
						  REQUEST_MAX - connection->length);
	char *body;
	const char *announced;
	size_t complete;

	/* The client has gone, or sends what we do not expect of it. */
	if (length <= 0 || connection->left > 0)
	{
		close_connection(connection);
		return;
	}
	connection->length += (size_t) length;
	connection->request[connection->length] = '\0';
	body = strstr(connection->request, "\r\n\r\n");
	if (body == NULL)
		return;
	body += 4;

	announced = strcasestr(connection->request, "\r\nContent-Length:");
	complete = (size_t) (body - connection->request);
	if (announced != NULL && announced < body)
		complete += strtoul(announced + 17, NULL, 10);
	if (connection->length < complete)
		return;
	connection->length = 0;
	answer(connection);
}

static void
accept_connections(int epoll, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
	{
		Connection *connection = calloc(1, sizeof(Connection));
		struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = connection};
		int on = 1;

		if (connection == NULL)
			abort();
		connection->fd = fd;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted);
	}
}

static int
listen_on(const char *port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t) atoi(port)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(fd, BACKLOG) == 0)
		return fd;
	perror(port);
	exit(1);
}

int
main(int argc, char **argv)
{
	struct rlimit files;
	struct epoll_event wanted = {.events = EPOLLIN};
	struct epoll_event events[EPOLL_EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int listener;

	if (argc != 2)
	{
		fprintf(stderr, "usage: upstream PORT\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	listener = listen_on(argv[1]);
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted);

	for (;;)
	{
		int count = epoll_wait(epoll, events, EPOLL_EVENTS, send_due_events());

		for (int i = 0; i < count; i++)
		{
			if (events[i].data.ptr != NULL)
				on_readable(events[i].data.ptr);
			else
				accept_connections(epoll, listener);
		}
	}
}
