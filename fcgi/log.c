/*
 * log.c
 *	  The log, on standard error: a JSON object a line.
 *
 * Locking: "lock" protects all static variables.
 */
#include "log.h"
#include "clock.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes of a line. */
#define LINE_MAX_SIZE (16 * 1024)
/* Bytes that wait to be written. */
#define PENDING_MAX (1024 * 1024)
/* ms that a line waits for others, to be written with them at once */
#define GATHER 20
/* ms that log_stop() waits */
#define STOP_WAIT 1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake; /* signalled when there is something to write, or nothing more */
static pthread_cond_t idle; /* signalled when all has been written */
static Buffer pending = {.limit = PENDING_MAX};
static bool started;
static bool stopping;
static bool writing;
static int64_t lost;

static int64_t
count_lines(const char *bytes, size_t length)
{
	int64_t lines = 0;

	for (size_t i = 0; i < length; i++)
		lines += bytes[i] == '\n';
	return lines;
}

/* Writes it all; gives the number of lines that could not be. */
static int64_t
write_lines(const char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t written = write(STDERR_FILENO, bytes, length);

		if (written > 0)
		{
			bytes += written;
			length -= (size_t) written;
		}
		else if (written < 0 && errno == EAGAIN) /* somebody has made it nonblocking */
		{
			struct pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT};

			poll(&ready, 1, -1);
		}
		else if (written == 0 || errno != EINTR)
			return count_lines(bytes, length);
	}
	return 0;
}

/* A line about lines that are not there. */
static void
confess(int64_t lines)
{
	static int64_t confessed; /* the writer's */

	if (lines > confessed)
	{
		log_line("lost %lld lines of log", (long long) (lines - confessed));
		confessed = lines;
	}
}

static void *
log_main(void *argument)
{
	Buffer batch;

	(void) argument;
	buffer_init(&batch, PENDING_MAX);
	pthread_mutex_lock(&lock);
	for (;;)
	{
		Buffer empty = batch;
		int64_t failed;
		int64_t lost_until_now;

		while (pending.length == 0 && !stopping)
			pthread_cond_wait(&wake, &lock);
		if (pending.length == 0)
			break;
		if (!stopping)
		{
			struct timespec end = clock_timespec(clock_ms() + GATHER);

			pthread_cond_timedwait(&idle, &lock, &end); /* only log_stop() ends it early */
		}
		batch = pending;
		pending = empty;
		pending.length = 0;
		pending.failed = false;
		writing = true;
		pthread_mutex_unlock(&lock);

		failed = write_lines(batch.data, batch.length);

		pthread_mutex_lock(&lock);
		writing = false;
		lost += failed;
		lost_until_now = lost;
		if (failed == 0)
		{
			pthread_mutex_unlock(&lock);
			confess(lost_until_now);
			pthread_mutex_lock(&lock);
		}
	}
	pthread_cond_signal(&idle);
	pthread_mutex_unlock(&lock);
	buffer_free(&batch);
	return NULL;
}

bool
log_start(void)
{
	pthread_condattr_t monotonic;
	pthread_attr_t detached;
	sigset_t all;
	sigset_t before;
	pthread_t thread;
	int error;

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&wake, &monotonic);
	pthread_cond_init(&idle, &monotonic);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the main thread */
	error = pthread_create(&thread, &detached, log_main, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
		log_line("could not start the thread of the log: %s", strerror(error));
	started = error == 0;
	return started;
}

void
log_stop(void)
{
	struct timespec deadline = clock_timespec(clock_ms() + STOP_WAIT);

	pthread_mutex_lock(&lock);
	stopping = true;
	pthread_cond_signal(&wake);
	pthread_cond_signal(&idle);
	while ((pending.length > 0 || writing) &&
		   pthread_cond_timedwait(&idle, &lock, &deadline) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&lock);
}

int64_t
log_lost(void)
{
	int64_t lines;

	pthread_mutex_lock(&lock);
	lines = lost;
	pthread_mutex_unlock(&lock);
	return lines;
}

void
log_begin(Buffer *line, const char *level)
{
	struct timespec now;
	struct tm utc;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	buffer_init(line, LINE_MAX_SIZE);
	buffer_printf(line,
				  "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ\",\"pid\":%d,\"level\":\"%s\"",
				  utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min,
				  utc.tm_sec, now.tv_nsec / 1000000, (int) getpid(), level);
}

void
log_end(Buffer *line)
{
	buffer_append_string(line, "}\n");
	pthread_mutex_lock(&lock);
	if (line->failed)
		lost++;
	else if (!started)
		lost += write_lines(line->data, line->length);
	else
	{
		bool first = pending.length == 0;

		/* Not with buffer_append(), after whose failure shorter lines would be refused as well. */
		if (line->length > pending.limit - pending.length ||
			!buffer_append(&pending, line->data, line->length))
			lost++;
		else if (first)
			pthread_cond_signal(&wake);
	}
	pthread_mutex_unlock(&lock);
	buffer_free(line);
}

static void __attribute__((format(printf, 2, 0)))
log_message(const char *level, const char *format, va_list arguments)
{
	char message[1024];
	char *json = NULL;
	json_t *value;
	Buffer line;

	vsnprintf(message, sizeof(message), format, arguments);

	/* The database's messages end in a newline, and nobody vouches for their encoding. */
	for (size_t length = strlen(message); length > 0 && message[length - 1] == '\n'; length--)
		message[length - 1] = '\0';
	value = json_string(message);
	if (value == NULL)
	{
		for (char *c = message; *c != '\0'; c++)
		{
			if ((unsigned char) *c >= 0x80)
				*c = '?';
		}
		value = json_string(message);
	}
	json = json_dumps(value, JSON_ENCODE_ANY);
	json_decref(value);

	log_begin(&line, level);
	buffer_printf(&line, ",\"message\":%s", json != NULL ? json : "null");
	free(json);
	log_end(&line);
}

void
log_info(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_message("info", format, arguments);
	va_end(arguments);
}

void
log_line(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	log_message("warning", format, arguments);
	va_end(arguments);
}
