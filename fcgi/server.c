/*
 * server.c
 *	  Accepts connections and gives each a thread, until a signal ends it.
 *
 * The main thread accepts; a worker serves one connection, request after
 * request, until the web server closes it, and then waits a while for another. So kept
 * connections pin their threads. When all that config allows are pinned, further
 * connections wait in the backlog. For these a connection that has had no request
 * for KEPT_UNUSED is closed, though a web server may send one at that very moment,
 * which is lost: hence not sooner, and the advice in deploy/ to keep fewer
 * connections than there are threads. Where all are in use, one is closed that has
 * just had its answer, every PRESS_INTERVAL; fastcgi_finish() lets the web server know.
 *
 * Locking: "lock" protects all of struct server, and the fields of a Worker
 * except where they say otherwise.
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

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Bytes of stack. jansson recurses up to 2048 levels deep, which takes half of
 * it; pages that are never touched cost nothing.
 */
#define STACK_SIZE (1024 * 1024)
/* Descriptors that a worker may need: its connection, and those of its relay. */
#define DESCRIPTORS_EACH (1 + RELAY_DESCRIPTORS)
/* Those of the process itself: ours, of the database's connections, and some in reserve. */
#define DESCRIPTORS_SHARED 20
/* Seconds that a kept connection may be silent: more than a web server keeps one (nginx: 60). */
#define RECEIVE_TIMEOUT 120
/* Seconds that a client may refuse to take what we send. */
#define SEND_TIMEOUT 30
/* ms to wait when the process is out of descriptors or memory for a connection */
#define ACCEPT_PAUSE 100
/* ms after which a thread without a connection ends */
#define IDLE_TIME 5000
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

typedef enum WorkerState
{
	WORKER_IDLE,	/* no connection; on the idle list */
	WORKER_WAITING, /* for the next request on its connection */
	WORKER_SERVING	/* a request */
} WorkerState;

typedef struct Worker
{
	WorkerState state;
	int connection; /* our descriptor of it; -1 when idle */
	bool closing;	/* no request will follow on the connection: we have shut its receiving side */
	bool kept;		/* waits for another request than the first: is on the kept list */
	int64_t kept_since;
	pthread_cond_t wake;
	LIST_ENTRY(Worker) all;
	LIST_ENTRY(Worker) idle;
	TAILQ_ENTRY(Worker) kept_link;
	Relay *relay; /* the worker's own, not under the lock */
} Worker;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct
{
	LIST_HEAD(, Worker) all;
	LIST_HEAD(, Worker) idle;
	TAILQ_HEAD(, Worker) kept; /* whose connections are kept without a request, longest first */
	int count;				   /* of all */
	bool full;				   /* a connection waits until a worker becomes idle */
	bool pressed;			   /* the next answer is to be the last on its connection */
	bool stopping;			   /* no connection is kept any more */
	bool closing;			   /* none waits for a request any more */
	pthread_cond_t ended;	   /* a worker has: count fell */
	int idle_event;			   /* eventfd: a worker became idle while full */
	int signals;			   /* signalfd */
	pthread_attr_t thread_attributes;
	pthread_condattr_t monotonic;
} server;

bool
server_init(void)
{
	sigset_t blocked;
	sigset_t ending;
	struct rlimit files;

	/* All but those that mean a bug here; the main thread reads the ending ones. */
	sigfillset(&blocked);
	sigdelset(&blocked, SIGSEGV);
	sigdelset(&blocked, SIGBUS);
	sigdelset(&blocked, SIGFPE);
	sigdelset(&blocked, SIGILL);
	sigdelset(&blocked, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &blocked, NULL);
	signal(SIGPIPE, SIG_IGN);

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		rlim_t needed = DESCRIPTORS_SHARED + DESCRIPTORS_EACH * (rlim_t) config.max_threads;

		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
		if (files.rlim_max < needed)
		{
			config.max_threads = 1;
			if (files.rlim_max > DESCRIPTORS_SHARED + DESCRIPTORS_EACH)
				config.max_threads =
					(int) ((files.rlim_max - DESCRIPTORS_SHARED) / DESCRIPTORS_EACH);
			log_info(
				"serving at most %d connections at once, since this process may open %llu files",
				config.max_threads, (unsigned long long) files.rlim_max);
		}
	}

	sigemptyset(&ending);
	sigaddset(&ending, SIGTERM);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGQUIT);
	sigaddset(&ending, SIGHUP);
	server.signals = signalfd(-1, &ending, SFD_CLOEXEC);
	server.idle_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (server.signals < 0 || server.idle_event < 0)
	{
		log_line("could not make descriptors: %s", strerror(errno));
		return false;
	}

	pthread_condattr_init(&server.monotonic);
	pthread_condattr_setclock(&server.monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&server.ended, &server.monotonic);
	pthread_attr_init(&server.thread_attributes);
	pthread_attr_setstacksize(&server.thread_attributes, STACK_SIZE);
	pthread_attr_setdetachstate(&server.thread_attributes, PTHREAD_CREATE_DETACHED);
	LIST_INIT(&server.all);
	LIST_INIT(&server.idle);
	TAILQ_INIT(&server.kept);
	return true;
}

/* ---- workers ---- */

/* No more requests on this connection; what has been sent is still read. Holds the lock. */
static void
close_receiving(Worker *worker)
{
	worker->closing = true;
	shutdown(worker->connection, SHUT_RD);
}

/* Marks the worker as waiting, for the first request on its connection or another. */
static void
begin_waiting(Worker *worker, bool first)
{
	pthread_mutex_lock(&lock);
	worker->state = WORKER_WAITING;
	worker->kept = !first;
	if (worker->kept)
	{
		worker->kept_since = clock_ms();
		TAILQ_INSERT_TAIL(&server.kept, worker, kept_link);
	}
	if (server.closing)
		close_receiving(worker);
	pthread_mutex_unlock(&lock);
}

/* The worker is no longer one whose connection is kept. Holds the lock. */
static void
end_keeping(Worker *worker)
{
	if (worker->kept)
		TAILQ_REMOVE(&server.kept, worker, kept_link);
	worker->kept = false;
}

/* Marks the worker as serving; gives the descriptor on which a client can be seen to go. */
static int
begin_serving(Worker *worker)
{
	int client;

	pthread_mutex_lock(&lock);
	end_keeping(worker);
	worker->state = WORKER_SERVING;
	/* A side that we have shut looks as if the client had gone. */
	client = worker->closing ? -1 : worker->connection;
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

static void
serve_connection(Worker *worker)
{
	Fastcgi fastcgi;
	bool more = true;

	fastcgi_init(&fastcgi, worker->connection, config.max_threads);
	for (bool first = true; more; first = false)
	{
		begin_waiting(worker, first);
		more = fastcgi_accept(&fastcgi);
		if (more)
		{
			bool complete = request_serve(&fastcgi, begin_serving(worker), worker->relay);

			more = fastcgi_finish(&fastcgi, complete && may_keep());
		}
	}
	fastcgi_close(&fastcgi);
}

/* A worker is there, or can be, for a connection that waits. Holds the lock. */
static void
end_fullness(void)
{
	if (server.full)
	{
		server.full = server.pressed = false;
		eventfd_write(server.idle_event, 1);
	}
}

/* Waits while the worker is idle; false: it is to end. Holds the lock. */
static bool
wait_for_connection(Worker *worker)
{
	struct timespec end = clock_timespec(clock_ms() + IDLE_TIME);

	while (worker->connection < 0 && !server.stopping &&
		   pthread_cond_timedwait(&worker->wake, &lock, &end) != ETIMEDOUT)
		;
	return worker->connection >= 0;
}

static void *
worker_main(void *argument)
{
	Worker *worker = argument;

	pthread_mutex_lock(&lock);
	for (;;)
	{
		if (!wait_for_connection(worker))
			break;

		pthread_mutex_unlock(&lock);
		serve_connection(worker);
		pthread_mutex_lock(&lock);

		end_keeping(worker);
		close(worker->connection);
		worker->connection = -1;
		worker->closing = false;
		worker->state = WORKER_IDLE;
		LIST_INSERT_HEAD(&server.idle, worker, idle);
		end_fullness();
	}
	LIST_REMOVE(worker, idle);
	LIST_REMOVE(worker, all);
	pthread_mutex_unlock(&lock);

	relay_free(worker->relay);
	pthread_cond_destroy(&worker->wake);
	free(worker);

	pthread_mutex_lock(&lock);
	server.count--;
	end_fullness();
	pthread_cond_signal(&server.ended);
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* Whether it is time to say something again that was said at that time, if ever. */
static bool
may_complain(int64_t *complained)
{
	bool may = *complained == 0 || clock_ms() - *complained >= COMPLAINT_INTERVAL;

	if (may)
		*complained = clock_ms();
	return may;
}

/* Starts a worker, which is on the idle list then; false after a message. Holds the lock. */
static bool
start_worker(void)
{
	static int64_t complained;
	Worker *worker = calloc(1, sizeof(Worker));
	pthread_t thread;
	int error = ENOMEM;

	if (worker == NULL)
		goto failed;
	worker->connection = -1;
	worker->relay = relay_create();
	if (worker->relay == NULL)
		goto failed;
	pthread_cond_init(&worker->wake, &server.monotonic);
	error = pthread_create(&thread, &server.thread_attributes, worker_main, worker);
	if (error != 0)
		goto failed;

	LIST_INSERT_HEAD(&server.all, worker, all);
	LIST_INSERT_HEAD(&server.idle, worker, idle);
	server.count++;
	return true;

failed:
	if (may_complain(&complained))
		log_line("could not start a thread: %s", strerror(error));
	if (worker != NULL)
		relay_free(worker->relay);
	free(worker);
	return false;
}

void
server_metrics(Buffer *out)
{
	int serving = 0;
	int waiting = 0;
	int idle = 0;
	Worker *worker;

	pthread_mutex_lock(&lock);
	LIST_FOREACH(worker, &server.all, all)
	{
		switch (worker->state)
		{
			case WORKER_IDLE:
				idle++;
				break;
			case WORKER_WAITING:
				waiting++;
				break;
			case WORKER_SERVING:
				serving++;
				break;
		}
	}
	pthread_mutex_unlock(&lock);

	metrics_head(out, "regpilot_threads", "gauge",
				 "Threads that serve a request, wait for one on a connection, or have none.");
	buffer_printf(out,
				  "regpilot_threads{state=\"serving\"} %d\n"
				  "regpilot_threads{state=\"waiting\"} %d\n"
				  "regpilot_threads{state=\"idle\"} %d\n",
				  serving, waiting, idle);
	metrics_single(out, "regpilot_threads_max", "gauge", "Threads that there may be.",
				   config.max_threads);
}

/* ---- the main thread ---- */

static void
set_options(int connection)
{
	struct timeval receive = {.tv_sec = RECEIVE_TIMEOUT};
	struct timeval send = {.tv_sec = SEND_TIMEOUT};
	int on = 1;

	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof(receive));
	setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &send, sizeof(send));
	if (config.address_length == 0 || config.address.ss_family != AF_UNIX)
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* no use on others */
}

/* Gives a connection to an idle worker, of which there is one. Holds the lock. */
static void
dispatch(int connection)
{
	Worker *worker = LIST_FIRST(&server.idle);

	set_options(connection);
	LIST_REMOVE(worker, idle);
	worker->connection = connection;
	worker->state = WORKER_WAITING;
	pthread_cond_signal(&worker->wake);
}

/* Closes the connection that has been kept for longest, if it is not in use. Holds the lock. */
static void
close_unused(void)
{
	Worker *worker = TAILQ_FIRST(&server.kept);

	if (worker != NULL && clock_ms() - worker->kept_since >= KEPT_UNUSED)
	{
		end_keeping(worker);
		shutdown(worker->connection, SHUT_RDWR);
	}
}

/*
 * Whether a worker is idle, for the connection that has come: one is started if need be.
 * If not, idle_event tells when one is. Holds the lock.
 */
static bool
has_worker(void)
{
	bool has = !LIST_EMPTY(&server.idle) || (server.count < config.max_threads && start_worker());

	server.full = !has;
	if (!has)
		close_unused();
	return has;
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

	if (may_complain(&complained))
		log_line("connections wait: all %d threads are taken%s", count,
				 count == config.max_threads ? " (REGPILOT_MAX_THREADS)" : "");
}

/* Accepts a connection; false when no worker is idle, nor can be started. */
static bool
accept_connection(int listener)
{
	static int64_t complained;
	int connection = -1;
	int error = 0;
	bool has;

	/* All under the lock, lest the worker's time be over; accept4() does not block. */
	pthread_mutex_lock(&lock);
	has = has_worker();
	if (has)
	{
		connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		error = errno;
	}
	if (connection >= 0)
		dispatch(connection);
	pthread_mutex_unlock(&lock);

	if (has && connection < 0 &&
		(error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM))
	{
		if (may_complain(&complained))
			log_line("could not accept a connection: %s", strerror(error));
		poll(NULL, 0, ACCEPT_PAUSE);
	}
	return has;
}

/* Keeps no connection any more, and lets workers go that have none. */
static void
begin_stopping(void)
{
	Worker *worker;

	pthread_mutex_lock(&lock);
	server.stopping = true;
	LIST_FOREACH(worker, &server.all, all)
	pthread_cond_signal(&worker->wake);
	pthread_mutex_unlock(&lock);
}

/* Lets workers go that still wait for a request, and the others after their answer. */
static void
close_waiting(void)
{
	Worker *worker;

	pthread_mutex_lock(&lock);
	server.closing = true;
	LIST_FOREACH(worker, &server.all, all)
	{
		if (worker->state == WORKER_WAITING)
			close_receiving(worker);
	}
	pthread_mutex_unlock(&lock);
}

/* Waits until all workers have ended; false after so many ms. */
static bool
wait_for_workers(int ms)
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
	Worker *worker;

	pthread_mutex_lock(&lock);
	log_line("cutting off %d answers", server.count);
	LIST_FOREACH(worker, &server.all, all)
	{
		if (worker->connection >= 0)
			shutdown(worker->connection, SHUT_RDWR);
	}
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
		IDLE,
		LISTENER,
		HANDOVER,
		DESCRIPTORS
	};
	struct pollfd ready[DESCRIPTORS] = {
		[SIGNAL] = {.fd = server.signals, .events = POLLIN},
		[IDLE] = {.fd = server.idle_event, .events = POLLIN},
		[LISTENER] = {.fd = listener, .events = POLLIN}, /* -1: until a worker is idle */
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
			ready[LISTENER].fd = listener; /* there may be room for a thread by now */
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
		if (ready[IDLE].revents != 0)
		{
			eventfd_t ignored;

			eventfd_read(server.idle_event, &ignored);
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
	if (wait_for_workers(linger < config.shutdown_grace ? linger : config.shutdown_grace))
		return true;
	close_waiting();
	if (wait_for_workers(clock_remaining(deadline)))
		return true;
	cut_off_answers();
	return wait_for_workers(CUT_OFF_GRACE);
}
