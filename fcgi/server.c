/*
 * server.c
 *	  Accepts connections and gives each a task, until a signal ends it.
 *
 * The main thread accepts; a task serves one connection, request after request, until
 * the web server closes it. When there are as many as config allows, further
 * connections wait in the backlog. For these a connection that has had no request
 * for KEPT_UNUSED is closed, though a web server may send one at that very moment,
 * which is lost: hence not sooner, and the advice in deploy/ to keep fewer
 * connections than there may be. Where all are in use, one is closed that has
 * just had its answer, every PRESS_INTERVAL; fastcgi_finish() lets the web server know.
 *
 * Locking: "lock" protects all of struct server, and the fields of a Connection.
 */
#include "server.h"
#include "clock.h"
#include "config.h"
#include "fastcgi.h"
#include "handover.h"
#include "log.h"
#include "metrics.h"
#include "relay.h"
#include "request.h"
#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Descriptors that a connection may need: itself, and those of a call to an upstream. */
#define DESCRIPTORS_EACH (1 + RELAY_DESCRIPTORS)
/* Those of the process itself: ours, of the database's connections, and some in reserve. */
#define DESCRIPTORS_SHARED 20
/* Those of a thread, beside its idle connections to upstreams. */
#define DESCRIPTORS_THREAD 4
/* Areas of memory that a connection takes: its stack and the guard of that; and all others of the process. */
#define AREAS_EACH 2
#define AREAS_SHARED 8192
/* Idle connections to upstreams that all threads keep together; or one in so many descriptors. */
#define IDLE_MAX 512
#define DESCRIPTORS_IDLE 4
/* ms to wait when the process is out of descriptors or memory for a connection */
#define ACCEPT_PAUSE 100
/* ms without a request after which a kept connection may be closed in favour of another */
#define KEPT_UNUSED 1000
/* ms that connections wait before one that is in use is closed in their favour */
#define PRESS_INTERVAL 1000
/* ms between two messages that connections wait */
#define COMPLAINT_INTERVAL 60000
/* ms that a new process may take until it serves */
#define HANDOVER_WAIT 30000
/*
 * ms without a request, after which a kept connection is closed when we end: a web
 * server may send another request on it at that moment, which would be lost. More
 * where another process serves already and nobody waits for us to end.
 */
#define LINGER 500
#define LINGER_HANDED_OVER 10000
/* ms that cut-off answers get to notice */
#define CUT_OFF_GRACE 2000

typedef struct Connection
{
	Task *task;
	int fd;
	bool serving; /* a request; or else it waits for one */
	bool closing; /* no request will follow: we have shut its receiving side */
	bool kept;	  /* waits for another request than the first: is on the kept list */
	int64_t kept_since;
	LIST_ENTRY(Connection) all;
	TAILQ_ENTRY(Connection) kept_link;
} Connection;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct
{
	LIST_HEAD(, Connection) all;
	TAILQ_HEAD(, Connection) kept; /* without a request, longest first */
	int count;					   /* of all */
	bool full;					   /* one waits until there is room for it */
	bool pressed;				   /* the next answer is to be the last on its connection */
	bool stopping;				   /* no connection is kept any more */
	bool closing;				   /* none waits for a request any more */
	pthread_cond_t ended;		   /* one has: count fell */
	Connection *next;			   /* with a task, but no descriptor yet; not counted */
	int room_event;				   /* eventfd: there is room for one, while full */
	int signals;				   /* signalfd */
} server;

/* Threads that can run at the same time. */
static int
count_processors(void)
{
	cpu_set_t processors;

	return sched_getaffinity(0, sizeof(processors), &processors) == 0 ? CPU_COUNT(&processors) : 1;
}

/* Areas of memory that a process may have; 0: unknown. */
static int
count_areas(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	int areas = 0;

	if (file != NULL && fscanf(file, "%d", &areas) != 1)
		areas = 0;
	if (file != NULL)
		fclose(file);
	return areas;
}

/* Without areas, there would be no memory for anything else either. */
static void
bound_by_areas(void)
{
	int areas = count_areas();
	int possible = areas > AREAS_SHARED + AREAS_EACH ? (areas - AREAS_SHARED) / AREAS_EACH : 1;

	if (areas > 0 && config.max_connections > possible)
	{
		config.max_connections = possible;
		log_info("serving at most %d connections at once, since this process may have %d areas of"
				 " memory (vm.max_map_count)",
				 possible, areas);
	}
}

/* Of all the files that this process may open, so many connections are possible. */
static void
bound_connections(void)
{
	struct rlimit files;
	rlim_t others;

	if (getrlimit(RLIMIT_NOFILE, &files) != 0)
		return;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);

	if (files.rlim_max / DESCRIPTORS_IDLE < IDLE_MAX)
		config.kept_upstreams = (int) files.rlim_max / DESCRIPTORS_IDLE / config.threads + 1;
	else
		config.kept_upstreams = IDLE_MAX / config.threads + 1;
	others = DESCRIPTORS_SHARED + (rlim_t) config.max_sessions +
			 (rlim_t) config.threads * (DESCRIPTORS_THREAD + (rlim_t) config.kept_upstreams);
	if (files.rlim_max < others + DESCRIPTORS_EACH * (rlim_t) config.max_connections)
	{
		config.max_connections = 1;
		if (files.rlim_max > others + DESCRIPTORS_EACH)
			config.max_connections = (int) ((files.rlim_max - others) / DESCRIPTORS_EACH);
		log_info("serving at most %d connections at once, since this process may open %llu files",
				 config.max_connections, (unsigned long long) files.rlim_max);
	}
}

bool
server_init(void)
{
	sigset_t blocked;
	sigset_t ending;
	pthread_condattr_t monotonic;

	/* All but those that mean a bug here; the main thread reads the ending ones. */
	sigfillset(&blocked);
	sigdelset(&blocked, SIGSEGV);
	sigdelset(&blocked, SIGBUS);
	sigdelset(&blocked, SIGFPE);
	sigdelset(&blocked, SIGILL);
	sigdelset(&blocked, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &blocked, NULL);
	signal(SIGPIPE, SIG_IGN);

	if (config.threads == 0)
		config.threads = count_processors();
	bound_by_areas();
	bound_connections();

	sigemptyset(&ending);
	sigaddset(&ending, SIGTERM);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGQUIT);
	sigaddset(&ending, SIGHUP);
	server.signals = signalfd(-1, &ending, SFD_CLOEXEC);
	server.room_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (server.signals < 0 || server.room_event < 0)
	{
		log_line("could not make descriptors: %s", strerror(errno));
		return false;
	}

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&server.ended, &monotonic);
	pthread_condattr_destroy(&monotonic);
	LIST_INIT(&server.all);
	TAILQ_INIT(&server.kept);
	return tasks_start(config.threads);
}

/* ---- a connection's task ---- */

/* No more requests on this connection; what has been sent is still read. Holds the lock. */
static void
close_receiving(Connection *connection)
{
	connection->closing = true;
	shutdown(connection->fd, SHUT_RD);
}

/* Marks the connection as waiting, for its first request or another. */
static void
begin_waiting(Connection *connection, bool first)
{
	pthread_mutex_lock(&lock);
	connection->serving = false;
	connection->kept = !first;
	if (connection->kept)
	{
		connection->kept_since = clock_ms();
		TAILQ_INSERT_TAIL(&server.kept, connection, kept_link);
	}
	if (server.closing)
		close_receiving(connection);
	pthread_mutex_unlock(&lock);
}

/* The connection is no longer one that is kept. Holds the lock. */
static void
end_keeping(Connection *connection)
{
	if (connection->kept)
		TAILQ_REMOVE(&server.kept, connection, kept_link);
	connection->kept = false;
}

/* Marks the connection as serving; gives the descriptor on which a client can be seen to go. */
static int
begin_serving(Connection *connection)
{
	int client;

	pthread_mutex_lock(&lock);
	end_keeping(connection);
	connection->serving = true;
	/* A side that we have shut looks as if the client had gone. */
	client = connection->closing ? -1 : connection->fd;
	pthread_mutex_unlock(&lock);
	return client;
}

/* Whether another request may follow on a connection. */
static bool
may_keep(void)
{
	bool keep;

	pthread_mutex_lock(&lock);
	keep = !server.stopping && !server.pressed;
	server.pressed = false;
	pthread_mutex_unlock(&lock);
	return keep;
}

/* Forgets the connection; the main thread may be waiting for that. */
static void
end_connection(Connection *connection)
{
	pthread_mutex_lock(&lock);
	end_keeping(connection);
	close(connection->fd);
	LIST_REMOVE(connection, all);
	server.count--;
	if (server.full)
	{
		server.full = server.pressed = false;
		eventfd_write(server.room_event, 1);
	}
	pthread_cond_signal(&server.ended);
	pthread_mutex_unlock(&lock);
	free(connection);
}

static void
serve_connection(void *argument)
{
	Connection *connection = argument;
	Fastcgi fastcgi;
	bool more = true;

	fastcgi_init(&fastcgi, connection->fd, config.max_connections);
	for (bool first = true; more; first = false)
	{
		begin_waiting(connection, first);
		more = fastcgi_accept(&fastcgi);
		if (more)
		{
			bool complete = request_serve(&fastcgi, begin_serving(connection));

			more = fastcgi_finish(&fastcgi, complete && may_keep());
		}
	}
	fastcgi_close(&fastcgi);
	end_connection(connection);
}

void
server_metrics(Buffer *out)
{
	int serving = 0;
	int count;
	Connection *connection;

	pthread_mutex_lock(&lock);
	count = server.count;
	LIST_FOREACH(connection, &server.all, all)
	serving += connection->serving;
	pthread_mutex_unlock(&lock);

	metrics_head(out, "regpilot_connections", "gauge",
				 "Connections of the web server that have a request served, or wait for one.");
	buffer_printf(out,
				  "regpilot_connections{state=\"serving\"} %d\n"
				  "regpilot_connections{state=\"waiting\"} %d\n",
				  serving, count - serving);
	metrics_single(out, "regpilot_connections_max", "gauge", "Connections that there may be.",
				   config.max_connections);
}

/* ---- the main thread ---- */

/* Whether it is time to say something again that was said at that time, if ever. */
static bool
may_complain(int64_t *complained)
{
	bool may = *complained == 0 || clock_ms() - *complained >= COMPLAINT_INTERVAL;

	if (may)
		*complained = clock_ms();
	return may;
}

/* Whether there is a task for the next connection: there is, unless memory is short. */
static bool
prepare_connection(void)
{
	static int64_t complained;

	if (server.next == NULL)
		server.next = calloc(1, sizeof(Connection));
	if (server.next != NULL && server.next->task == NULL)
		server.next->task = task_create(serve_connection, server.next);
	if (server.next != NULL && server.next->task != NULL)
		return true;
	if (may_complain(&complained))
		log_line("could not make room for a connection: %s", strerror(errno));
	return false;
}

/* Has a connection served that has been accepted. Holds the lock. */
static void
start_connection(int fd)
{
	Connection *connection = server.next;
	int on = 1;

	if (config.address_length == 0 || config.address.ss_family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* no use on others */
	connection->fd = fd;
	LIST_INSERT_HEAD(&server.all, connection, all);
	server.count++;
	server.next = NULL;
	task_wake(connection->task);
}

/* Closes the connection that has been kept for longest, if it is not in use. Holds the lock. */
static void
close_unused(void)
{
	Connection *connection = TAILQ_FIRST(&server.kept);

	if (connection != NULL && clock_ms() - connection->kept_since >= KEPT_UNUSED)
	{
		end_keeping(connection);
		shutdown(connection->fd, SHUT_RDWR);
	}
}

/* Whether there is room for another connection. If not, room_event tells when. Holds the lock. */
static bool
has_room(void)
{
	server.full = server.count >= config.max_connections || !prepare_connection();
	if (server.full)
		close_unused();
	return !server.full;
}

/* Connections have waited for PRESS_INTERVAL. */
static void
press(void)
{
	static int64_t complained;
	int count;

	pthread_mutex_lock(&lock);
	server.pressed = server.full;
	close_unused();
	count = server.count;
	pthread_mutex_unlock(&lock);

	if (count == config.max_connections && may_complain(&complained))
		log_line("connections wait: there are %d (REGPILOT_MAX_CONNECTIONS)", count);
}

/* Accepts a connection; false when there is no room for it. */
static bool
accept_connection(int listener)
{
	static int64_t complained;
	int fd = -1;
	int error = 0;
	bool room;

	pthread_mutex_lock(&lock);
	room = has_room();
	if (room)
	{
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		error = errno;
	}
	if (fd >= 0)
		start_connection(fd);
	pthread_mutex_unlock(&lock);

	if (room && fd < 0 &&
		(error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM))
	{
		if (may_complain(&complained))
			log_line("could not accept a connection: %s", strerror(error));
		poll(NULL, 0, ACCEPT_PAUSE);
	}
	return room;
}

/* Keeps no connection any more. */
static void
begin_stopping(void)
{
	pthread_mutex_lock(&lock);
	server.stopping = true;
	pthread_mutex_unlock(&lock);
}

/* Ends connections that still wait for a request, and the others after their answer. */
static void
close_waiting(void)
{
	Connection *connection;

	pthread_mutex_lock(&lock);
	server.closing = true;
	LIST_FOREACH(connection, &server.all, all)
	{
		if (!connection->serving)
			close_receiving(connection);
	}
	pthread_mutex_unlock(&lock);
}

/* Waits until all connections have ended; false after so many ms. */
static bool
wait_for_connections(int ms)
{
	struct timespec deadline = clock_timespec(clock_ms() + ms);
	bool ended;

	pthread_mutex_lock(&lock);
	while (server.count > 0 && pthread_cond_timedwait(&server.ended, &lock, &deadline) != ETIMEDOUT)
		;
	ended = server.count == 0;
	pthread_mutex_unlock(&lock);
	return ended;
}

static void
cut_off_answers(void)
{
	Connection *connection;

	pthread_mutex_lock(&lock);
	log_line("cutting off %d answers", server.count);
	LIST_FOREACH(connection, &server.all, all)
	shutdown(connection->fd, SHUT_RDWR);
	pthread_mutex_unlock(&lock);
}

/* Whether a SIGHUP is a terminal's that has gone, rather than somebody's wish for a new process. */
static bool
is_hangup(const struct signalfd_siginfo *signal)
{
	return signal->ssi_code == SI_KERNEL;
}

/* Serves until a signal ends it, or a new process has taken over: then true. */
static bool
serve(int listener, char **argv)
{
	enum
	{
		SIGNAL,
		ROOM,
		LISTENER,
		HANDOVER,
		DESCRIPTORS
	};
	struct pollfd ready[DESCRIPTORS] = {
		[SIGNAL] = {.fd = server.signals, .events = POLLIN},
		[ROOM] = {.fd = server.room_event, .events = POLLIN},
		[LISTENER] = {.fd = listener, .events = POLLIN}, /* -1: until there is room */
		[HANDOVER] = {.fd = -1, .events = POLLIN},		 /* -1: no new process has been started */
	};
	int64_t handover_deadline = 0;

	for (;;)
	{
		int timeout = -1;
		int count;

		if (ready[LISTENER].fd < 0)
			timeout = PRESS_INTERVAL;
		else if (ready[HANDOVER].fd >= 0)
			timeout = clock_remaining(handover_deadline);
		count = poll(ready, DESCRIPTORS, timeout);
		if (count < 0)
			continue;
		if (count == 0 && ready[LISTENER].fd < 0)
		{
			press();
			ready[LISTENER].fd = listener;
		}

		if (ready[SIGNAL].revents != 0)
		{
			struct signalfd_siginfo signal;

			if (read(server.signals, &signal, sizeof(signal)) != sizeof(signal))
				continue;
			if (signal.ssi_signo != SIGHUP || is_hangup(&signal))
				return false;
			if (ready[HANDOVER].fd < 0)
			{
				ready[HANDOVER].fd = handover_begin(listener, argv);
				handover_deadline = clock_ms() + HANDOVER_WAIT;
			}
		}
		if (ready[HANDOVER].fd >= 0 &&
			(ready[HANDOVER].revents != 0 || clock_remaining(handover_deadline) == 0))
		{
			if (handover_finish(ready[HANDOVER].fd))
				return true;
			ready[HANDOVER].fd = -1;
		}
		if (ready[ROOM].revents != 0)
		{
			eventfd_t ignored;

			eventfd_read(server.room_event, &ignored);
			ready[LISTENER].fd = listener;
		}
		if (ready[LISTENER].revents != 0)
		{
			if (!accept_connection(listener))
				ready[LISTENER].fd = -1;
		}
	}
}

bool
server_run(int listener, char **argv)
{
	bool handed_over = serve(listener, argv);
	int64_t deadline = clock_ms() + config.shutdown_grace;
	int linger = handed_over ? LINGER_HANDED_OVER : LINGER;

	if (!handed_over)
		handover_stopping();
	close(listener);
	begin_stopping();
	if (wait_for_connections(linger < config.shutdown_grace ? linger : config.shutdown_grace))
		return true;
	close_waiting();
	if (wait_for_connections(clock_remaining(deadline)))
		return true;
	cut_off_answers();
	return wait_for_connections(CUT_OFF_GRACE);
}
