/*-------------------------------------------------------------------------
 *
 * streams.c
 *		Clients of streamed chat calls, with bench/upstream.c at the other end,
 *		whose events tell when they were sent.
 *
 *	streams hold PORT KEY STREAMS EVENTS MS [PID]
 *	streams first PORT OTHER_PORT KEY COUNT
 *
 * "hold" opens so many streams, of so many events that are MS milliseconds apart,
 * and reads them all to their ends.  It prints, in lines of NAME=NUMBER,
 *
 *	open		streams that were open at once
 *	whole		that had all their events, in order and no others, and [DONE]
 *	failed		that had not
 *	lost		events that never came
 *	late		that came more than a second after they were sent
 *	worst		ms that the slowest took
 *
 * and of the process PID, where one is named, as it was when it had most memory while
 * all were open: memory (kilobytes of Pss), threads and files; and what these were
 * before the first stream, as memory_before and so on.
 *
 * "first" makes one call at a time, in turn to the two ports, and prints the
 * median microseconds until the first event came from the first and from the
 * second, and the median of what the first one took longer.
 *
 * Calls are made with HTTP/1.0, so that answers end with their connections.
 *
 *-------------------------------------------------------------------------
 */
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Bytes of a request, and of a line of an answer. */
#define BUFFER_SIZE 4096
/* Streams that may be on their way to their first event. */
#define OPENING_MAX 64
/* Microseconds after which an event is late. */
#define LATE 1000000
/* Microseconds that streams may take beyond the time of their events. */
#define PATIENCE 60000000
/* Microseconds between two looks at a process. */
#define LOOK_INTERVAL 1000000
/* Streams whose failure is told of. */
#define COMPLAINTS 5
#define EPOLL_EVENTS 256

typedef struct Stream
{
	int fd; /* -1 before and after */
	int number;
	bool in_body;
	bool begun; /* the first event has come */
	bool done;	/* [DONE] has */
	int next;	/* number of the event that comes next */
	size_t length;
	char buffer[BUFFER_SIZE]; /* a line that is not complete yet */
} Stream;

/* What a process uses. */
typedef struct Use
{
	long memory; /* kB */
	long threads;
	long files;
} Use;

static int event_count;
static int pause_ms;
static int opening; /* streams that have not begun */
static int running; /* that have, and are not over */

/* results of "hold" */
static int most_open;
static int whole;
static int failed;
static long lost;
static long late;
static int64_t worst;

static int64_t
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t) time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static void
give_up(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static int
to_number(const char *text)
{
	char *end;
	long number = strtol(text, &end, 10);

	if (*text == '\0' || *end != '\0' || number <= 0 || number > INT32_MAX)
		give_up("not a number: %s", text);
	return (int) number;
}

/* Connects and sends a request for a stream; its descriptor, for the answer. */
static int
call(int port, const char *key, int number, int events, int ms)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t) port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	char body[512];
	char request[BUFFER_SIZE];
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;
	int length;

	if (fd < 0 || connect(fd, (struct sockaddr *) &address, sizeof(address)) != 0)
		give_up("port %d: %s", port, strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));

	length = snprintf(body, sizeof(body),
					  "{\"model\":\"stream-%d-%d\",\"stream\":true,\"user\":\"%d\","
					  "\"messages\":[{\"role\":\"user\",\"content\":\"Say something.\"}]}",
					  events, ms, number);
	length = snprintf(request, sizeof(request),
					  "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nX-API-Key: %s\r\n"
					  "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
					  key, length, body);
	if (length >= (int) sizeof(request))
		give_up("the key is too long");
	if (write(fd, request, (size_t) length) != length)
		give_up("port %d: could not send a request", port);
	return fd;
}

/* ---- hold ---- */

static bool
complain(const Stream *stream, const char *problem, const char *line)
{
	if (failed < COMPLAINTS)
		fprintf(stderr, "stream %d, event %d: %s: %.200s\n", stream->number, stream->next, problem,
				line);
	return false;
}

/* Takes an event that has come; false when it is not the one that was to come. */
static bool
take_event(Stream *stream, const char *line, int64_t came)
{
	const char *id = strstr(line, "\"id\":\"chatcmpl-");
	const char *content = strstr(line, "\"content\":\"");
	int number;
	int event;
	long long sent;

	if (id == NULL || content == NULL || sscanf(id + 15, "%d\"", &number) != 1 ||
		sscanf(content + 11, "%d %lld\"", &event, &sent) != 2)
		return complain(stream, "no event of the upstream", line);
	if (number != stream->number)
		return complain(stream, "an event of another stream", line);
	if (event != stream->next)
		return complain(stream, "not the event that comes next", line);

	stream->next++;
	late += came - sent > LATE;
	if (came - sent > worst)
		worst = came - sent;
	return true;
}

/* Takes a line, which has no CR or LF at its end; false when it should not have come. */
static bool
take_line(Stream *stream, const char *line, int64_t came)
{
	if (!stream->in_body)
	{
		if (strncmp(line, "HTTP/", 5) == 0 && strncmp(line + 8, " 200 ", 5) != 0)
			return complain(stream, "refused", line);
		stream->in_body = line[0] == '\0';
		return true;
	}
	if (line[0] == '\0' || line[0] == ':')
		return true;
	if (stream->done)
		return complain(stream, "went on after [DONE]", line);
	if (strcmp(line, "data: [DONE]") == 0)
	{
		stream->done = true;
		return true;
	}
	if (!take_event(stream, line, came))
		return false;
	if (!stream->begun)
	{
		stream->begun = true;
		opening--;
		running++;
		if (running > most_open)
			most_open = running;
	}
	return true;
}

static void
end_stream(Stream *stream, bool good)
{
	if (good && (!stream->done || stream->next < event_count))
		good = complain(stream, "ended too soon", "");
	whole += good;
	failed += !good;
	lost += event_count - stream->next;
	if (stream->begun)
		running--;
	else
		opening--;
	close(stream->fd);
	stream->fd = -1;
}

static void
read_stream(Stream *stream)
{
	ssize_t length =
		read(stream->fd, stream->buffer + stream->length, sizeof(stream->buffer) - stream->length);
	int64_t came = now();
	char *line = stream->buffer;
	char *end;

	if (length <= 0)
	{
		end_stream(stream, length == 0);
		return;
	}
	stream->length += (size_t) length;
	while ((end = memchr(line, '\n', stream->length)) != NULL)
	{
		stream->length -= (size_t) (end + 1 - line);
		*end = '\0';
		if (end > line && end[-1] == '\r')
			end[-1] = '\0';
		if (!take_line(stream, line, came))
		{
			end_stream(stream, false);
			return;
		}
		line = end + 1;
	}
	if (stream->length == sizeof(stream->buffer))
		give_up("an endless line");
	memmove(stream->buffer, line, stream->length);
}

/* The number behind a name at the begin of a line of a file in /proc/PID. */
static long
look_up(const char *pid, const char *file, const char *name)
{
	char path[64];
	char line[256];
	long number = 0;
	FILE *lines;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, file);
	lines = fopen(path, "r");
	if (lines == NULL)
		give_up("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), lines) != NULL)
	{
		if (strncmp(line, name, strlen(name)) == 0)
			number = strtol(line + strlen(name), NULL, 10);
	}
	fclose(lines);
	return number;
}

static long
count_files(const char *pid)
{
	char path[64];
	long count = -2; /* . and .. */
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	directory = opendir(path);
	if (directory == NULL)
		give_up("%s: %s", path, strerror(errno));
	while (readdir(directory) != NULL)
		count++;
	closedir(directory);
	return count;
}

static Use
look_at(const char *pid)
{
	Use use = {0};

	if (pid != NULL)
	{
		use.memory = look_up(pid, "smaps_rollup", "Pss:");
		use.threads = look_up(pid, "status", "Threads:");
		use.files = count_files(pid);
	}
	return use;
}

static void
hold(int port, const char *key, int count, const char *pid)
{
	Stream *streams = calloc((size_t) count, sizeof(Stream));
	Use before = look_at(pid);
	Use during = {0};
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int64_t deadline = now() + (int64_t) event_count * pause_ms * 1000 + PATIENCE;
	int64_t look = 0;
	int opened = 0;

	if (streams == NULL)
		give_up("out of memory");
	while (opened < count || opening + running > 0)
	{
		struct epoll_event events[EPOLL_EVENTS];
		int ready;

		for (; opened < count && opening < OPENING_MAX; opened++, opening++)
		{
			Stream *stream = &streams[opened];
			struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = stream};

			stream->number = opened;
			stream->fd = call(port, key, opened, event_count, pause_ms);
			epoll_ctl(epoll, EPOLL_CTL_ADD, stream->fd, &wanted);
		}
		ready = epoll_wait(epoll, events, EPOLL_EVENTS, 100);
		for (int i = 0; i < ready; i++)
			read_stream(events[i].data.ptr);

		if (pid != NULL && running == count && now() >= look)
		{
			Use use = look_at(pid);

			if (use.memory > during.memory)
				during = use;
			look = now() + LOOK_INTERVAL;
		}
		if (now() > deadline)
		{
			fprintf(stderr, "%d streams did not begin, and %d did not end\n", opening, running);
			failed += count - opened + opening + running;
			break;
		}
	}

	printf("open=%d\nwhole=%d\nfailed=%d\nlost=%ld\nlate=%ld\nworst=%lld\n", most_open, whole,
		   failed, lost, late, (long long) worst / 1000);
	if (pid != NULL)
		printf("memory_before=%ld\nmemory=%ld\nthreads_before=%ld\nthreads=%ld\n"
			   "files_before=%ld\nfiles=%ld\n",
			   before.memory, during.memory, before.threads, during.threads, before.files,
			   during.files);
	free(streams);
}

/* ---- first ---- */

/* Makes a call; microseconds until the first event has come. */
static int64_t
time_first(int port, const char *key)
{
	char answer[BUFFER_SIZE + 1];
	size_t length = 0;
	int64_t called = now();
	int fd = call(port, key, 0, 2, 1);
	int64_t came = 0;
	ssize_t more;

	while ((more = read(fd, answer + length, BUFFER_SIZE - length)) > 0)
	{
		length += (size_t) more;
		answer[length] = '\0';
		if (came == 0 && strstr(answer, "\ndata: ") != NULL)
			came = now() - called;
	}
	close(fd);
	if (came == 0 || strstr(answer, "[DONE]") == NULL)
		give_up("port %d does not stream: %s", port, answer);
	return came;
}

static int
compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *) a;
	int64_t y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

static long long
median(int64_t *values, int count)
{
	qsort(values, (size_t) count, sizeof(*values), compare);
	return (long long) values[count / 2];
}

static void
first(int port, int other_port, const char *key, int count)
{
	int64_t *times = calloc((size_t) count * 3, sizeof(int64_t));
	int64_t *other = times + count;
	int64_t *added = other + count;

	if (times == NULL)
		give_up("out of memory");
	for (int i = 0; i < count; i++)
	{
		times[i] = time_first(port, key);
		other[i] = time_first(other_port, key);
		added[i] = times[i] - other[i];
	}
	printf("%lld %lld %lld\n", median(times, count), median(other, count), median(added, count));
	free(times);
}

int
main(int argc, char **argv)
{
	struct rlimit files;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	signal(SIGPIPE, SIG_IGN);

	if ((argc == 7 || argc == 8) && strcmp(argv[1], "hold") == 0)
	{
		event_count = to_number(argv[5]);
		pause_ms = to_number(argv[6]);
		hold(to_number(argv[2]), argv[3], to_number(argv[4]), argv[7]);
	}
	else if (argc == 6 && strcmp(argv[1], "first") == 0)
		first(to_number(argv[2]), to_number(argv[3]), argv[4], to_number(argv[5]));
	else
	{
		fprintf(stderr, "usage: streams hold PORT KEY STREAMS EVENTS MS [PID]\n"
						"       streams first PORT OTHER_PORT KEY COUNT\n");
		return 2;
	}
	return 0;
}
