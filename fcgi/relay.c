/*
 * relay.c
 *	  Calls to upstreams over HTTP. The only user of libcurl.
 *
 * Each thread has a multi handle for the calls that its tasks make. libcurl is told by the
 * thread's loop when a descriptor is ready, and by a task of its own when it is time
 * (see libcurl-multi(3), "MULTI_SOCKET"). Its callbacks keep what has come and wake the
 * task whose call it is; they never wait.
 */
#include "relay.h"
#include "clock.h"
#include "config.h"
#include "log.h"
#include "sse.h"
#include "task.h"

#include <curl/curl.h>
#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>

/* Bytes that one event of a stream may have. */
#define EVENT_MAX (1024 * 1024)
/* Characters from which on a secret is one, and not "none" or "test", which an answer may well say. */
#define SECRET_SHORTEST 12
/* ms that an upstream may take to end its answer after it has said [DONE] */
#define DONE_GRACE 1000
/* Bytes received at once: of a stream, whose memory that is for long, and of another answer. */
#define STREAM_BUFFER 2048L
#define ANSWER_BUFFER 16384L
/* ms between two looks at how a request is sent */
#define SENDING_INTERVAL 100
/* Bytes of a stream that wait for the client to take those before. */
#define RECEIVED_MAX (64 * 1024)
/* Easy handles kept for calls to come */
#define HANDLES_KEPT 64

/* What a thread has for its calls. */
typedef struct Driver
{
	CURLM *multi; /* owns the connections */
	CURL *handles[HANDLES_KEPT];
	int handles_kept;
	int64_t timer_at;	/* when libcurl wants to be called */
	Task *timer;		/* calls it then */
	bool timer_sleeps;	/* until */
	int64_t timer_ends; /* this moment, which may be another */
	struct Driver *next;
} Driver;

static __thread Driver *driver; /* the thread's; NULL: there has been no call */

/* All of them. They last as long as the process; and without this they would look lost. */
static _Atomic(Driver *) drivers;

/* What the body of the answer is. */
typedef enum BodyKind
{
	BODY_UNSEEN, /* nothing has come yet */
	BODY_PLAIN,	 /* to be collected */
	BODY_EVENTS	 /* to be forwarded event by event */
} BodyKind;

/* Why we end a transfer that libcurl would go on with. */
typedef enum Stop
{
	STOP_NOT,
	STOP_FAILED,  /* libcurl, or we, cannot do what is needed */
	STOP_GARBAGE, /* the answer is none, or too large, or gives the secret away */
	STOP_SILENCE,
	STOP_LIMIT, /* it has taken too long in all */
	STOP_CLIENT_GONE
} Stop;

typedef struct Transfer
{
	UpstreamCall *call;
	CURL *easy;
	Task *task;
	bool waiting; /* the task is, to be woken */
	bool ended;
	CURLcode code; /* how */
	bool paused;   /* libcurl holds back what comes, until there is room for it */
	BodyKind kind;
	Stop stop;
	Buffer received; /* of a stream, not looked at yet */
	SseParser events;
	Buffer chunk; /* an event's data and the event, without usage */
	Buffer stripped;
	bool forwarded; /* an event has reached the client */
	bool done;		/* [DONE] has */
	bool sound;		/* an answer that was not streamed is JSON */
	long status;
	int64_t started; /* clock_us() */
	int64_t done_at;
	int64_t forwarded_at; /* the last event was, or a ping was sent */
	int64_t heard_at;	  /* the upstream has said something, of a stream a whole event */
	curl_off_t sent;	  /* bytes of the request, when that was last looked at */
} Transfer;

/*
 * The CAs that we trust. libcurl would read them for each connection, which takes some
 * 30 ms, and keep them with each, which takes a megabyte.
 */
static X509_STORE *authorities;

static bool
read_authorities(void)
{
	authorities = X509_STORE_new();

	/* libcurl's flags: any certificate among them is trusted, not only a root */
	return authorities != NULL &&
		   X509_STORE_set_flags(authorities,
								X509_V_FLAG_TRUSTED_FIRST | X509_V_FLAG_PARTIAL_CHAIN) == 1 &&
		   (config.ca_file != NULL ? X509_STORE_load_locations(authorities, config.ca_file, NULL)
								   : X509_STORE_set_default_paths(authorities)) == 1;
}

/* libcurl's callback for a TLS connection that it is about to make. */
static CURLcode
trust_authorities(CURL *easy, void *context, void *argument)
{
	(void) easy;
	(void) argument;
	SSL_CTX_set1_cert_store(context, authorities);
	SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS); /* an idle connection needs none */
	return CURLE_OK;
}

bool
relay_init(void)
{
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK && read_authorities())
		return true;
	log_line("could not initialise libcurl, or read the certificates of CAs");
	return false;
}

static bool
stop(Transfer *transfer, Stop why, const char *problem)
{
	transfer->stop = why;
	snprintf(transfer->call->problem, sizeof(transfer->call->problem), "%s", problem);
	return false;
}

/* ---- the thread's driver of libcurl ---- */

/* Has the task of a call go on. */
static void
wake(Transfer *transfer)
{
	if (transfer->waiting)
		task_wake(transfer->task);
	transfer->waiting = false;
}

/* To be called when libcurl may have set its timer. */
static void
check_timer(void)
{
	if (driver->timer_sleeps && driver->timer_at < driver->timer_ends)
	{
		driver->timer_sleeps = false;
		task_wake(driver->timer);
	}
}

/* Lets libcurl get on with a descriptor that is ready, or with what it is time for. */
static void
act(curl_socket_t fd, int events)
{
	CURLMsg *message;
	int count;

	curl_multi_socket_action(driver->multi, fd, events, &count);
	while ((message = curl_multi_info_read(driver->multi, &count)) != NULL)
	{
		Transfer *transfer;

		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer);
		transfer->ended = true;
		transfer->code = message->data.result;
		wake(transfer);
	}
	check_timer();
}

static void
on_ready(int fd, uint32_t events)
{
	int in = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 ? CURL_CSELECT_IN : 0;
	int out = (events & (EPOLLOUT | EPOLLERR)) != 0 ? CURL_CSELECT_OUT : 0;

	act(fd, in | out);
}

/* libcurl's callback for what it wants to know of a descriptor. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *unused, void *unused_too)
{
	uint32_t events = 0;
	Transfer *transfer = NULL;

	(void) unused, (void) unused_too;
	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= EPOLLIN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= EPOLLOUT;
	if (task_watch(fd, events, on_ready) || events == 0)
		return 0;

	/* -1 would end all calls of the thread. */
	curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **) &transfer);
	if (transfer != NULL)
	{
		stop(transfer, STOP_FAILED, "out of memory");
		transfer->ended = true;
		wake(transfer);
	}
	return 0;
}

/* libcurl's callback for the time until it wants to be called; -1: never. */
static int
on_timer(CURLM *multi, long ms, void *unused)
{
	(void) multi, (void) unused;
	/* clock_ms() rounds down, and libcurl does not repeat itself when it is called too early. */
	driver->timer_at = ms < 0 ? INT64_MAX : clock_ms() + ms + 1;
	return 0;
}

/* A task for ever. */
static void
keep_time(void *unused)
{
	(void) unused;
	for (;;)
	{
		driver->timer_ends = driver->timer_at;
		driver->timer_sleeps = true;
		task_wait(-1, driver->timer_ends);
		driver->timer_sleeps = false;
		if (clock_ms() >= driver->timer_at)
			act(CURL_SOCKET_TIMEOUT, 0);
	}
}

/* Makes the thread's driver if it has none; false: out of memory. */
static bool
ensure_driver(void)
{
	Driver *new;

	if (driver != NULL)
		return true;
	new = calloc(1, sizeof(Driver));
	if (new == NULL)
		return false;
	new->timer_at = INT64_MAX;
	new->multi = curl_multi_init();
	new->timer = task_create_here(keep_time, NULL);
	if (new->multi == NULL || new->timer == NULL)
	{
		curl_multi_cleanup(new->multi);
		free(new);
		return false;
	}
	curl_multi_setopt(new->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(new->multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(new->multi, CURLMOPT_MAXCONNECTS, (long) config.kept_upstreams);
	new->next = atomic_exchange(&drivers, new);
	driver = new;
	task_wake(driver->timer);
	return true;
}

/* ---- what comes ---- */

static bool
contains_secret(const UpstreamCall *call, const char *text, size_t length)
{
	return call->secret != NULL && length > 0 && strlen(call->secret) >= SECRET_SHORTEST &&
		   memmem(text, length, call->secret, strlen(call->secret)) != NULL;
}

static bool
stop_at_limit(Transfer *transfer)
{
	return stop(transfer, STOP_LIMIT, "it took longer than REGPILOT_MAX_DURATION");
}

/* Makes an event without its usage, in transfer->stripped. */
static bool
strip_usage(Transfer *transfer, const SseEvent *event)
{
	buffer_consume(&transfer->chunk, transfer->chunk.length);
	buffer_consume(&transfer->stripped, transfer->stripped.length);
	return chat_strip_usage(event->data, event->data_length, &transfer->chunk) &&
		   sse_replace_data(event, &transfer->chunk, &transfer->stripped);
}

/* An event to be read, and what came of it. */
typedef struct Reading
{
	const SseEvent *event;
	Usage *usage;
	ChatKind kind;
	bool sound;
} Reading;

static void
read_usage(void *argument)
{
	Reading *reading = argument;

	reading->sound = chat_read_usage(reading->event->data, reading->event->data_length,
									 reading->usage, &reading->kind);
}

/* Reads an event's usage; false: it is not a JSON object. */
static bool
read_event(Transfer *transfer, const SseEvent *event, ChatKind *kind)
{
	Reading reading = {.event = event, .usage = &transfer->call->usage};

	if (event->data_length >= CHAT_LARGE)
		task_call(read_usage, &reading);
	else
		read_usage(&reading);
	*kind = reading.kind;
	return reading.sound;
}

/* Judges and forwards one event; false when the transfer is to end. */
static bool
on_event(Transfer *transfer, const SseEvent *event)
{
	UpstreamCall *call = transfer->call;
	ChatKind kind = CHAT_WITHOUT_USAGE;
	const char *text = event->text;
	size_t length = event->length;

	if (transfer->done)
		return true;
	/* Of what came at once, the client may take each event only after a while. */
	if (clock_remaining(call->deadline) == 0)
		return stop_at_limit(transfer);

	if (event->data_length == 0)
	{
		/* A comment or a ping: keeps the client's connection busy, but is no answer yet. */
		if (!transfer->forwarded)
			return true;
	}
	else if (strcmp(event->data, "[DONE]") == 0)
	{
		transfer->done = true;
		transfer->done_at = clock_ms();
	}
	else if (!read_event(transfer, event, &kind))
		return stop(transfer, STOP_GARBAGE, "an event was not a JSON object");

	if (contains_secret(call, event->text, event->length))
		return stop(transfer, STOP_GARBAGE, "the answer contained the secret");
	if (call->hides_usage)
	{
		if (kind == CHAT_ALL_USAGE)
			return true;
		if (kind == CHAT_WITH_USAGE)
		{
			if (!strip_usage(transfer, event))
				return stop(transfer, STOP_GARBAGE, "an event was too large");
			text = transfer->stripped.data;
			length = transfer->stripped.length;
		}
	}
	if (!call->forward(call->context, text, length))
		return stop(transfer, STOP_CLIENT_GONE, "the client has gone");
	transfer->forwarded = true;
	transfer->forwarded_at = clock_ms();
	return true;
}

/* Sends a comment to a client that has waited long enough for the next event: is it still there? */
static bool
ping(Transfer *transfer)
{
	static const char comment[] = ": ping\n\n";
	UpstreamCall *call = transfer->call;

	if (!call->forward(call->context, comment, sizeof(comment) - 1))
		return stop(transfer, STOP_CLIENT_GONE, "the client has gone");
	transfer->forwarded_at = clock_ms();
	return true;
}

/* Whether the answer that begins is a stream as asked for. */
static bool
is_event_stream(const Transfer *transfer)
{
	static const char expected[] = "text/event-stream";
	const char *type = NULL;
	long status = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &type);
	return transfer->call->stream && status == 200 && type != NULL &&
		   strncasecmp(type, expected, sizeof(expected) - 1) == 0;
}

/* libcurl's callback for a line of the answer's head. */
static size_t
on_head(char *bytes, size_t size, size_t length, void *argument)
{
	Transfer *transfer = argument;

	(void) bytes, (void) size; /* always 1 */
	transfer->heard_at = clock_ms();
	return length;
}

/* libcurl's write callback: anything but length, or a pause, ends the transfer. */
static size_t
on_body(char *bytes, size_t size, size_t length, void *argument)
{
	Transfer *transfer = argument;
	Buffer *received = &transfer->received;

	(void) size; /* always 1 */
	if (transfer->kind == BODY_UNSEEN)
	{
		transfer->kind = is_event_stream(transfer) ? BODY_EVENTS : BODY_PLAIN;
		transfer->call->latency = clock_us() - transfer->started;
		transfer->heard_at = clock_ms();
	}

	if (transfer->kind == BODY_PLAIN)
	{
		transfer->heard_at = clock_ms();
		if (!buffer_append(&transfer->call->answer, bytes, length))
		{
			stop(transfer, STOP_GARBAGE, "the answer was too large");
			return 0;
		}
		return length;
	}

	transfer->paused = received->length > 0 && received->length + length > RECEIVED_MAX;
	if (transfer->paused)
		return CURL_WRITEFUNC_PAUSE;
	if (!buffer_append(received, bytes, length))
	{
		stop(transfer, STOP_FAILED, "out of memory");
		return 0;
	}
	wake(transfer);
	return length;
}

/* Passes on what has come of a stream; false when the transfer is to end. */
static bool
forward_received(Transfer *transfer)
{
	SseEvent event;

	while (transfer->received.length > 0)
	{
		if (!sse_feed(&transfer->events, transfer->received.data, transfer->received.length))
			return stop(transfer, STOP_GARBAGE, "an event was too large");
		buffer_consume(&transfer->received, transfer->received.length);
		while (sse_next(&transfer->events, &event))
		{
			transfer->heard_at = clock_ms();
			if (!on_event(transfer, &event))
				return false;
		}
		if (transfer->paused)
		{
			curl_easy_pause(transfer->easy, CURLPAUSE_CONT);
			check_timer();
		}
	}
	return true;
}

/* The headers of every request, as libcurl wants them: Accept, or Authorization and then that, first. */
static char content_type[] = "Content-Type: application/json";
static char no_expect[] = "Expect:"; /* "100-continue" would cost a round trip */
static char accept_json[] = "Accept: application/json";
static char accept_stream[] = "Accept: text/event-stream, application/json";
static struct curl_slist last_header = {.data = no_expect};
static struct curl_slist type_header = {.data = content_type, .next = &last_header};
static struct curl_slist answer_headers = {.data = accept_json, .next = &type_header};
static struct curl_slist stream_headers = {.data = accept_stream, .next = &type_header};

/* A handle with what all calls have in common. NULL: libcurl cannot do what it must. */
static CURL *
make_handle(void)
{
	CURL *easy = curl_easy_init();

	if (easy == NULL)
		return NULL;
	curl_easy_setopt(easy, CURLOPT_POST, 1L);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_head);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	/* The end of a call does not wait for the end of looking up a name. */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "regpilot/" REGPILOT_VERSION);
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 16384L);
	/* A connection has one call at a time: HTTP/2 would only take memory. */
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);

	/* No one but the upstream in the table: no proxy of the environment, no redirect. */
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_CAINFO, NULL);
	curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	if (curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, trust_authorities) == CURLE_OK)
		return easy;
	curl_easy_cleanup(easy);
	return NULL;
}

static CURL *
get_handle(void)
{
	return driver->handles_kept > 0 ? driver->handles[--driver->handles_kept] : make_handle();
}

/* A handle whose call has gone wrong is not used again. */
static void
put_handle(CURL *easy, bool sound)
{
	if (sound && driver->handles_kept < HANDLES_KEPT)
		driver->handles[driver->handles_kept++] = easy;
	else
		curl_easy_cleanup(easy);
}

/* What is of this call alone; false: out of memory. The strings stay where they are, but for the URL. */
static bool
set_options(Transfer *transfer, const char *url, struct curl_slist *headers)
{
	const UpstreamCall *call = transfer->call;
	CURL *easy = transfer->easy;

	curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) call->body_length);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) call->connect_timeout);
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, call->stream ? STREAM_BUFFER : ANSWER_BUFFER);
	return curl_easy_setopt(easy, CURLOPT_URL, url) == CURLE_OK;
}

/* Whether the request is still on its way. The upstream cannot be expected to answer before. */
static bool
is_sending(Transfer *transfer)
{
	curl_off_t sent = 0;

	if (transfer->sent == (curl_off_t) transfer->call->body_length)
		return false;
	curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	if (sent != transfer->sent)
		transfer->heard_at = clock_ms();
	transfer->sent = sent;
	return sent < (curl_off_t) transfer->call->body_length;
}

/* When something is to be done though nothing comes. */
static int64_t
next_deadline(const Transfer *transfer)
{
	int64_t deadline = transfer->heard_at + transfer->call->timeout;
	int64_t next_ping = transfer->forwarded_at + config.ping_interval;

	if (transfer->done)
		return transfer->done_at + DONE_GRACE;
	if (deadline > transfer->call->deadline)
		deadline = transfer->call->deadline;
	return transfer->forwarded && next_ping < deadline ? next_ping : deadline;
}

/* Does it; false when the transfer is to end. */
static bool
at_deadline(Transfer *transfer)
{
	if (transfer->done)
		return false;
	if (clock_remaining(transfer->call->deadline) == 0)
		return stop_at_limit(transfer);
	if (clock_remaining(transfer->heard_at + transfer->call->timeout) == 0)
		return stop(transfer, STOP_SILENCE, "no answer in time");
	return ping(transfer);
}

/*
 * Has libcurl look at a transfer again. When an address of a host has refused, 7.88 goes
 * on to the next one only when it is called again, without having asked for that: until
 * half the time to connect is over. Each change of what is paused has it do so.
 */
static void
nudge(Transfer *transfer)
{
	curl_easy_pause(transfer->easy, CURLPAUSE_SEND);
	curl_easy_pause(transfer->easy, CURLPAUSE_CONT);
	check_timer();
}

/* Runs the transfer to its end, or until we stop it. */
static void
run(Transfer *transfer)
{
	transfer->heard_at = clock_ms();
	if (curl_multi_add_handle(driver->multi, transfer->easy) != CURLM_OK)
	{
		stop(transfer, STOP_FAILED, "libcurl does not take it");
		return;
	}
	act(CURL_SOCKET_TIMEOUT, 0); /* begins */

	while (forward_received(transfer) && !transfer->ended)
	{
		bool sending = is_sending(transfer);
		int64_t deadline = next_deadline(transfer);
		TaskEvent event;

		if (clock_remaining(deadline) == 0)
		{
			if (!at_deadline(transfer))
				break;
			continue;
		}
		if (sending && clock_remaining(deadline) > SENDING_INTERVAL)
			deadline = clock_ms() + SENDING_INTERVAL;
		transfer->waiting = true;
		event = task_wait(transfer->call->client, deadline);
		transfer->waiting = false;

		/*
		 * The request has been read to its end, so what makes its connection
		 * readable now is the web server closing it, or FCGI_ABORT_REQUEST.
		 */
		if (event == TASK_READABLE)
		{
			stop(transfer, STOP_CLIENT_GONE, "the client has gone");
			break;
		}
		if (event == TASK_TIMED_OUT && sending && transfer->sent == 0)
			nudge(transfer);
	}
	curl_multi_remove_handle(driver->multi, transfer->easy);
	check_timer();
}

/* An answer that counts against the upstream, not against the request. */
static bool
is_upstream_failure(long status)
{
	return status < 200 || (status > 200 && status < 400) || status == 401 || status == 403 ||
		   status == 408 || status == 429 || status >= 500;
}

/* Reads an answer that was not streamed, and its usage. */
static void
read_answer(void *argument)
{
	Transfer *transfer = argument;
	UpstreamCall *call = transfer->call;
	ChatKind kind;

	transfer->sound =
		transfer->status == 200
			? chat_read_usage(call->answer.data, call->answer.length, &call->usage, &kind)
			: chat_is_json(call->answer.data, call->answer.length);
}

static bool
is_json(Transfer *transfer)
{
	if (transfer->call->answer.length >= CHAT_LARGE)
		task_call(read_answer, transfer);
	else
		read_answer(transfer);
	return transfer->sound;
}

static UpstreamResult
judge(Transfer *transfer)
{
	UpstreamCall *call = transfer->call;
	UpstreamResult failed = transfer->forwarded ? UPSTREAM_BROKEN_OFF : UPSTREAM_FAILED;
	UpstreamResult too_late = transfer->forwarded ? UPSTREAM_FELL_SILENT : UPSTREAM_TIMED_OUT;

	switch (transfer->stop)
	{
		case STOP_CLIENT_GONE:
			return UPSTREAM_CLIENT_GONE;
		case STOP_LIMIT:
			/* It may have had a lot to say. */
			call->at_fault = !transfer->forwarded;
			return too_late;
		case STOP_SILENCE:
			return too_late;
		case STOP_FAILED:
			call->at_fault = false;
			return failed;
		case STOP_GARBAGE:
			return failed;
		case STOP_NOT:
			break;
	}

	if (transfer->done)
		return UPSTREAM_ANSWERED;
	if (transfer->code != CURLE_OK)
	{
		snprintf(call->problem, sizeof(call->problem), "%s", curl_easy_strerror(transfer->code));
		return transfer->code == CURLE_OPERATION_TIMEDOUT ? too_late : failed;
	}

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &transfer->status);
	if (is_upstream_failure(transfer->status))
	{
		curl_off_t seconds = 0;

		snprintf(call->problem, sizeof(call->problem), "status %ld", transfer->status);
		curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &seconds);
		call->retry_after = seconds > INT32_MAX ? INT32_MAX : (int) seconds;
	}
	else if (transfer->kind == BODY_EVENTS)
		snprintf(call->problem, sizeof(call->problem), "the stream ended before [DONE]");
	else if (transfer->status == 200 && call->stream)
		snprintf(call->problem, sizeof(call->problem), "the answer was not an event stream");
	else if (!is_json(transfer))
		snprintf(call->problem, sizeof(call->problem), "the answer was not JSON, status %ld",
				 transfer->status);
	else if (contains_secret(call, call->answer.data, call->answer.length))
		snprintf(call->problem, sizeof(call->problem), "the answer contained the secret");
	else
	{
		call->status = (int) transfer->status;
		return UPSTREAM_ANSWERED;
	}
	return failed;
}

UpstreamResult
relay_call(UpstreamCall *call)
{
	Transfer transfer = {.call = call, .task = task_self(), .started = clock_us()};
	struct curl_slist authorization = {
		.next = call->stream ? &stream_headers : &answer_headers,
	};
	struct curl_slist *headers = authorization.next;
	bool sound = true;
	UpstreamResult result = UPSTREAM_FAILED;
	Buffer url;

	buffer_init(&url, 8192);
	buffer_init(&transfer.received, SIZE_MAX / 2);
	sse_init(&transfer.events, EVENT_MAX);
	buffer_init(&transfer.chunk, EVENT_MAX);
	buffer_init(&transfer.stripped, EVENT_MAX);

	buffer_append_string(&url, call->base_url);
	while (url.length > 0 && url.data[url.length - 1] == '/')
		url.length--;
	buffer_append_string(&url, call->path);
	if (call->secret != NULL)
	{
		sound = asprintf(&authorization.data, "Authorization: Bearer %s", call->secret) >= 0;
		headers = &authorization;
	}

	if (sound && !url.failed && ensure_driver())
		transfer.easy = get_handle();
	if (transfer.easy != NULL)
	{
		if (set_options(&transfer, url.data, headers))
		{
			call->at_fault = true;
			run(&transfer);
			result = judge(&transfer);
		}
		put_handle(transfer.easy, result == UPSTREAM_ANSWERED);
	}

	if (sound)
		config_forget_secret(authorization.data);
	buffer_free(&transfer.received);
	sse_free(&transfer.events);
	buffer_free(&transfer.chunk);
	buffer_free(&transfer.stripped);
	buffer_free(&url);
	return result;
}
